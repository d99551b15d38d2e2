from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from vt_core.errors import VocabularyError
from vt_core.vocab import collection
from vt_core.vocab.collection import check_task, collection_directory, find_task
from vt_core.vocab.task import TaskVocabulary

DIGESTS = {"one": "a" * 64, "two": "b" * 64}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch) -> Path:
    """A collection that has `math` for two tokenizers and `sql` for one, outside the working directory."""
    for name, digest in DIGESTS.items():
        (tmp_path / "all" / f"{name}-{digest[:12]}").mkdir(parents=True)
        ids = np.arange(3)
        for task in ("math", "sql") if name == "one" else ("math",):
            file = tmp_path / "all" / f"{name}-{digest[:12]}" / f"{task}.vt.json"
            TaskVocabulary(task, digest, 9, ids, ids * 0).save(file)
    monkeypatch.setenv("VT_VOCABULARIES", str(tmp_path / "all"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "all"


@pytest.mark.parametrize("name", DIGESTS)
def test_task_is_found_by_the_tokenizer(directory: Path, caplog, name: str) -> None:
    caplog.set_level(logging.INFO, "vt")
    file = find_task("math", DIGESTS[name])
    assert file == directory / f"{name}-{DIGESTS[name][:12]}" / "math.vt.json"
    assert TaskVocabulary.load(file).tokenizer_digest == DIGESTS[name]
    assert caplog.messages == [f"task math: {file}"]


def test_file_goes_before_the_collection(tmp_path: Path, caplog) -> None:
    (tmp_path / "math").write_text("[]")
    assert find_task("math", DIGESTS["one"]) == Path("math")
    assert find_task(tmp_path / "math", "") == tmp_path / "math"
    assert caplog.messages == []


def test_task_of_another_tokenizer_is_refused(directory: Path) -> None:
    check_task("sql")
    with pytest.raises(VocabularyError, match=f"sql: .* tokenizer {'b' * 12} in .*, which has math; make"):
        find_task("sql", DIGESTS["two"])


def test_unknown_task_is_refused_before_the_model_is_opened(directory: Path) -> None:
    with pytest.raises(
        VocabularyError, match=f"mth: .*no task of that name in {directory}, which has math, sql; make"
    ):
        check_task("mth")


@pytest.mark.parametrize("file", ["absent/math", "math.vt.json", "*", "../math"])
def test_absent_file_is_not_looked_for_in_the_collection(file: str) -> None:
    with pytest.raises(VocabularyError, match=r"there is no such (task vocabulary|file)"):
        find_task(file, DIGESTS["one"])


def test_absent_collection_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VT_VOCABULARIES", str(tmp_path / "absent"))
    with pytest.raises(VocabularyError, match="absent: VT_VOCABULARIES does not name a directory"):
        check_task("math")
    monkeypatch.delenv("VT_VOCABULARIES")
    monkeypatch.setattr(
        collection, "__file__", str(tmp_path / "site-packages" / "vt_core" / "vocab" / "x.py")
    )
    assert collection_directory() is None
    with pytest.raises(VocabularyError, match=r"math: .* no collection .* set VT_VOCABULARIES"):
        check_task("math")


def test_checkout_has_the_tasks_of_its_table(monkeypatch) -> None:
    monkeypatch.delenv("VT_VOCABULARIES")
    directory = collection_directory()
    assert directory is not None
    table = (directory / "README.md").read_text().split("<!-- vocabularies -->")[1].split("<!-- /")[0]
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()
    )
    assert len(rows) == 12
    for row in rows:
        for tokenizer, cell in zip(header[3:], row[3:], strict=True):
            (file,) = directory.glob(f"{tokenizer}-*/{row[0]}.vt.json")
            task = TaskVocabulary.load(file)
            assert file.parent.name == f"{tokenizer}-{task.tokenizer_digest[:12]}"
            assert task.held_out is not None
            assert cell == f"{len(task.ids):,}: {1 - task.held_out['token_coverage']:.2%}"
            assert all(entry["origin"] and entry["license"] for entry in task.source)
