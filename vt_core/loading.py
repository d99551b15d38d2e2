"""Loading a model, step by step: its directory, the task's files, the tokenizer, the rows, the body."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from converters.cache import cache_directory, open_model
from vt_core.decode import backend as backends
from vt_core.decode.options import LoadOptions
from vt_core.files.adapters import LowRank, layers_digest, read_adapter
from vt_core.files.model_dir import ModelDirectory
from vt_core.host import memory_bytes, trim_heap
from vt_core.model import Model
from vt_core.vocab.collection import open_task
from vt_core.vocab.learning import LearnedFile, learned_path
from vt_core.vocab.ngrams import NgramTable, open_tables
from vt_core.vocab.static import static_ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.tokenizer import Tokenizer


def load_model(options: LoadOptions) -> Model:
    """See :func:`vt_core.load`."""
    # A damaged file fails before anything is downloaded or converted.
    adapter = [] if options.adapter is None else read_adapter(options.adapter)
    directory = _open_directory(options)
    tasks, files = _read_tasks(options, directory)
    drafts = _open_drafts(options, files, directory)
    # Before the framework and the weights: reading a large tokenizer takes a few hundred megabytes, which
    # must not add to the peak.
    tokenizer = Tokenizer(directory.path)
    trim_heap()
    static = static_ids(directory, tokenizer, tasks)
    trim_heap()
    learned = _learned_file(options, directory, tokenizer) if options.learn else None
    model = _load_body(options, directory, tokenizer, adapter, learned)
    model.set_drafts(*drafts)
    model.set_static(static)
    model.decoder.release()  # a framework keeps freed buffers, which the next line returns to the system
    trim_heap()
    return model


def _open_directory(options: LoadOptions) -> ModelDirectory:
    def check_backend_options() -> None:
        backends.backend(options.backend).check_options(
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            compile=options.compile,
        )

    return open_model(
        options.path,
        revision=options.revision,
        quantize=options.quantize,
        progress=options.progress,
        before_conversion=check_backend_options,
    )


def _read_tasks(options: LoadOptions, directory: ModelDirectory) -> tuple[list[TaskVocabulary], list[Path]]:
    """The task vocabularies for this model, and the files of those that are files, each once."""
    tasks: list[TaskVocabulary] = []
    files: list[Path] = []
    for task in options.tasks:
        if not isinstance(task, TaskVocabulary):
            task, file = open_task(task, directory)
            files.append(file)
        tasks.append(task)
    return tasks, list(dict.fromkeys(files))


def _open_drafts(options: LoadOptions, tasks: Sequence[Path], directory: ModelDirectory) -> list[NgramTable]:
    """The n-gram tables next to task files, and the one that was given."""
    digest = directory.manifest.tokenizer_digest
    tables = open_tables(tasks, digest)
    if options.draft_file is not None:
        tables.append(NgramTable.open(options.draft_file))
        tables[-1].check(digest)
    return tables


def _learned_file(options: LoadOptions, directory: ModelDirectory, tokenizer: Tokenizer) -> LearnedFile:
    """The file of learned ids: next to the first task file, but never in the collection."""
    tasks = (Path(task) for task in options.tasks if not isinstance(task, TaskVocabulary))
    digest = directory.manifest.tokenizer_digest
    path = learned_path((task for task in tasks if task.exists()), cache_directory(), digest)
    file = LearnedFile(path, digest, tokenizer.size(directory.manifest.vocab_rows))
    file.load()  # a damaged file fails before the weights are read
    return file


def _load_body(
    options: LoadOptions,
    directory: ModelDirectory,
    tokenizer: Tokenizer,
    adapter: Sequence[LowRank],
    learned: LearnedFile | None,
) -> Model:
    """Load the weights, and join all parts."""
    if options.compile:
        # PyTorch reads it when it compiles for the first time.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "compiled"))
    decoder = backends.backend(options.backend).load_decoder(
        directory,
        head=options.head,
        store=options.store,
        device=options.device,
        dtype=options.dtype,
        tile_bytes=options.tile_bytes,
        tokens=tokenizer.size(directory.manifest.vocab_rows),
        adapter=adapter,
        compile=options.compile,
    )
    return Model(
        directory,
        decoder,
        tokenizer,
        backend=options.backend,
        learned_file=learned,
        adapter=layers_digest(adapter),
        slots=options.slots,
        cache_bytes=memory_bytes() // 4 if options.cache_bytes is None else options.cache_bytes,
    )
