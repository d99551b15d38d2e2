"""Finds task vocabularies by name: in files, else in a collection that has them for many tokenizers.

A collection is a directory with one directory for each tokenizer, named by any text, a dash and the first 12
digits of the tokenizer's digest. It holds one `NAME.vt.json` for each task.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vt_core.errors import VocabularyError
from vt_core.files.model_dir import ModelDirectory
from vt_core.vocab.task import PublishedTask, TaskVocabulary, read_task

_LOG = logging.getLogger("vt")

#: Names the directory of the collection.
VARIABLE = "VT_VOCABULARIES"

_SUFFIX = ".vt.json"


def collection_directory() -> Path | None:
    """The collection: the one that ``VT_VOCABULARIES`` names, else that of a checkout of vt, if there is one.

    Raises:
        VocabularyError: ``VT_VOCABULARIES`` does not name a directory.
    """
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_dir():
            raise VocabularyError(f"{named}: {VARIABLE} does not name a directory of task vocabularies.")
        return Path(named)
    checkout = Path(__file__).parents[2] / "vocabularies"
    return checkout if checkout.is_dir() else None


def check_task(task: str | Path) -> TaskVocabulary | PublishedTask | None:
    """Check a task vocabulary before a model is there, so that a bad one is refused before one is downloaded.

    Returns:
        What the file holds; None for a name, which only a model's tokenizer leads to a file.

    Raises:
        VocabularyError: the file is damaged; or there is neither such a file nor a task of this name for any
            tokenizer.
    """
    if Path(task).exists():
        return read_task(task)
    _find(task, "")
    return None


def find_task(task: str | Path, tokenizer_digest: str) -> Path:
    """The file of a task vocabulary.

    Args:
        task: a file, or the name of a task in the collection. Files go first.
        tokenizer_digest: chooses among the collection's vocabularies of that name.

    Raises:
        VocabularyError: there is no such file, and the collection has no such task for this tokenizer.
    """
    return Path(task) if Path(task).exists() else _find(task, tokenizer_digest)


def open_task(task: str | Path, directory: ModelDirectory) -> tuple[TaskVocabulary, Path]:
    """The task vocabulary of a file, or of a name in the collection, for a model; and its file.

    Raises:
        VocabularyError: there is none, it is damaged, or it belongs to another tokenizer.
        TokenizerError: the model's tokenizer cannot be read.
    """
    file = find_task(task, directory.manifest.tokenizer_digest)
    read = read_task(file)
    if isinstance(read, PublishedTask):
        read = read.of_tokenizer(directory.tokenizer_path)
    return read, file


def _find(task: str | Path, tokenizer_digest: str) -> Path:
    name, directory = os.fspath(task), collection_directory()
    if Path(name).name != name or name.endswith(".json"):
        raise VocabularyError(f"{name}: there is no such task vocabulary; make it with the profile command")
    if directory is None:
        raise VocabularyError(
            f"{name}: there is no such file, and no collection with a task of that name; set {VARIABLE} to "
            "the directory 'vocabularies' of vt's repository, or make the file with the profile command"
        )
    paths = sorted(directory.glob(f"*-{tokenizer_digest[:12]}*/*{_SUFFIX}"))
    for path in paths:
        if path.name == name + _SUFFIX:
            if tokenizer_digest:
                _LOG.info("task %s: %s", name, path)
            return path
    known = ", ".join(dict.fromkeys(path.name.removesuffix(_SUFFIX) for path in paths)) or "none"
    whose = f" for tokenizer {tokenizer_digest[:12]}" if tokenizer_digest else ""
    raise VocabularyError(
        f"{name}: there is no such file, and no task of that name{whose} in {directory}, which has {known}; "
        "make it with the profile command"
    )
