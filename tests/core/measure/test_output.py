"""Files of results: written together or not at all, and read again."""

from __future__ import annotations

import json

import pytest

from tests.core.measure.made_up import results
from vt_core.errors import DataError, OptionError, OutputError
from vt_core.measure import output
from vt_core.measure.output import (
    check_folder,
    dump,
    folder_lock,
    load_bench,
    load_eval,
    write_bench,
    write_files,
)


def test_results_survive_writing_and_reading(tmp_path):
    (tmp_path / "results.json").write_text(dump(results()))
    assert load_bench(tmp_path / "results.json") == results()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 2}', "schema is 2, not 1"),
        ('{"format": "vt-eval/0"}', "schema is None"),
        ("[1]", "not a JSON object"),
        ("mine", "not valid JSON"),
    ],
)
def test_foreign_results_are_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_bench(path)
    with pytest.raises(DataError):
        load_eval(path)


def test_missing_results_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        load_eval(tmp_path / "absent.json")


def test_failed_write_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot be written .No space left on device"):
        write_files(tmp_path / "a" / "b", {"results.json": b"{}", "memory.png": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_earlier_files(tmp_path, monkeypatch):
    write_files(tmp_path, {"results.json": b"old"})
    monkeypatch.setattr(output.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_files(tmp_path, {"results.json": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_bytes() == b"old"


def test_missing_matplotlib_is_reported(tmp_path, monkeypatch):
    def missing(_):
        raise OptionError("A plot needs the library matplotlib.")

    monkeypatch.setattr(output, "draw", missing)
    assert write_bench(results(), tmp_path) == "A plot needs the library matplotlib."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md", "results.json"]
    assert "No pictures: A plot needs the library matplotlib." in (tmp_path / "report.html").read_text()


def test_folder_is_checked_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(OptionError, match="file is not a folder that can be written to"):
        check_folder(tmp_path / "file" / "out")
    check_folder(tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_one_run_at_a_time_writes_into_a_folder(tmp_path):
    out = tmp_path / "new" / "out"
    with folder_lock(out):
        with (
            pytest.raises(OutputError, match="another run of bench or eval is writing there"),
            folder_lock(out),
        ):
            pass
        with folder_lock(tmp_path / "new" / "other"):
            pass
        assert not out.exists()
    assert list(tmp_path.iterdir()) == [], "nothing was written, so nothing is left"
    with folder_lock(out):
        out.mkdir()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_folder_and_a_link_to_it_are_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with folder_lock(tmp_path / "out"), pytest.raises(OutputError), folder_lock(tmp_path / "link"):
        pass
