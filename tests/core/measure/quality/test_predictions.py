"""The file of predictions survives interruption and refuses other settings."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from vt_core.errors import DataError, OptionError, OutputError
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions

SETTINGS = {"max_tokens": 8, "stop": ()}


def record(variant: str, row: int) -> dict:
    return {"variant": variant, "row": row, "text": f"{variant} {row} è"}


def test_predictions_are_read_again(tmp_path):
    with closing(Predictions(tmp_path, SETTINGS)) as first:
        first.add(record("exact", 0))
        assert first.get("exact", 0) == record("exact", 0) and first.get("exact", 1) is None
    with closing(Predictions(tmp_path, SETTINGS)) as second:
        assert second.get("exact", 0) == record("exact", 0)
        rows = [Example(row, "", "", ()) for row in range(2)]
        assert second.missing("exact", rows) == rows[1:] and second.missing("original", rows) == rows
        second.add(record("exact", 1))
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line).get("row") for line in lines] == [None, 0, 1]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    with closing(Predictions(tmp_path, SETTINGS)) as first:
        first.add(record("exact", 0))
        first.add(record("exact", 1))
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with closing(Predictions(tmp_path, SETTINGS)) as second:
        assert second.get("exact", 0) and second.get("exact", 1) is None
        second.add(record("exact", 1))
    with closing(Predictions(tmp_path, SETTINGS)) as third:
        assert third.get("exact", 1) == record("exact", 1)


def test_other_settings_are_refused(tmp_path):
    Predictions(tmp_path, SETTINGS).close()
    with pytest.raises(OptionError, match="max_tokens was 8 and is now 9; give another --out"):
        Predictions(tmp_path, SETTINGS | {"max_tokens": 9})


def test_foreign_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "predictions.jsonl"
    for content in ('{"text": "mine"}\n', "mine\n", '{"settings": {"max_tokens": 8, "stop": []}}\n[1]\n'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"\.jsonl, line [12]: not a prediction of this command"):
            Predictions(tmp_path, SETTINGS)
        assert path.read_text() == content


def test_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    real = Predictions._write

    def full(self, values):
        self._file.write(b"{")
        self._file.flush()
        raise OutputError("predictions.jsonl: cannot be written (No space left on device).")

    monkeypatch.setattr(Predictions, "_write", full)
    with pytest.raises(OutputError):
        Predictions(tmp_path / "out", SETTINGS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Predictions, "_write", real)
    Predictions(tmp_path / "out", SETTINGS).close()
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, DataError), match=r"predictions\.jsonl: cannot be"):
        Predictions(tmp_path / "file", SETTINGS)
