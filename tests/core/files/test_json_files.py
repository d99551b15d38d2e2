"""Reading JSON files with limits, checked fields, and atomic writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from vt_core.errors import DataError, ModelError, OutputError
from vt_core.files import json_files
from vt_core.files.json_files import (
    MAX_DEPTH,
    Fields,
    parse_json,
    read_bytes,
    read_json,
    read_object,
    read_text,
    write_atomically,
    write_json,
    write_together,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a report: not valid JSON"),
        (b"{", "not a report: not valid JSON"),
        (b"[1]", r"it holds \[1\] and not a JSON object"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the field 'b' appears twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "is UTF-16, not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run git lfs pull"),
        (b"[" * 100_000, "levels deep"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_damaged_files_are_refused_with_one_short_line(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_object(path, "report", DataError)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 250


def test_files_of_other_programs_are_read_as_python_reads_them():
    text = '{"a": 1, "a": Infinity}'
    assert parse_json(text, "config.json", "configuration", ModelError, strict=False) == {"a": float("inf")}


def test_nesting_up_to_the_limit_is_read():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text, "x", "list", DataError)) == text


def test_reading_stops_at_the_limit_on_a_device(monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES", 1 << 16)
    with pytest.raises(DataError, match=r"/dev/zero: not a task vocabulary; .* limit of 65536 bytes"):
        read_json("/dev/zero", "task vocabulary", DataError)


@pytest.mark.parametrize("name", ["absent.json", "a\0b"])
def test_an_unreadable_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match="report cannot be read"):
        read_bytes(tmp_path / name, "report", DataError)


def fields(**values):
    return Fields("x.json", values, ModelError, "convert the model again")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: fields().text("a"), r"^x\.json: field 'a' is missing; convert the model again\.$"),
        (lambda: fields(a=3).text("a"), "field 'a' is 3, not text"),
        (lambda: fields(a=True).whole("a"), "field 'a' is True, not a whole number"),
        (lambda: fields(a=1).flag("a"), "field 'a' is 1, not true or false"),
        (lambda: fields(a=2.5).whole("a"), "field 'a' is 2.5, not a whole number"),
        (lambda: fields(a=0).whole("a", least=1), "field 'a' is 0, not from 1 to"),
        (lambda: fields(a=9).whole("a", 8), "field 'a' is 9, not from 0 to 8"),
        (lambda: fields(a=10**30).whole("a"), "not from 0 to 9223372036854775807"),
        (lambda: fields(a=[1, -1]).whole_list("a", 5), "holds -1, not a number from 0 to 5"),
        (lambda: fields(a=[1]).texts("a"), "is not a list of names"),
        (lambda: fields(a=[{"file": "x"}]).files("a"), "not a file and its rows"),
        (lambda: fields(a={"b": {}}).part("a").part("b").text("c"), "field 'a.b.c' is missing"),
        (lambda: fields(a={"b": 1}).parts("a"), "field 'a.b' is 1, not an object"),
    ],
)
def test_wrong_fields_are_named_with_their_value(read, message):
    with pytest.raises(ModelError, match=message):
        read()


def test_a_long_value_is_shortened_in_the_message():
    with pytest.raises(ModelError) as caught:
        fields(a={str(i): "x" * 1000 for i in range(1000)}).text("a")
    assert len(str(caught.value)) < 200


def test_text_written_is_read_again(tmp_path):
    path = tmp_path / "x.json"
    values = {"name": "caf\u00e9", "file": "bad-\udcff-name", "ids": [1, 2]}
    write_json(path, values)
    assert read_object(path, "report", DataError) == values
    assert read_text(path, "report", DataError).count("\n") == 5


def test_writing_keeps_the_umask_of_the_process_and_of_other_threads(tmp_path, monkeypatch):
    def refuse(mask):
        raise AssertionError("the umask belongs to all threads")

    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", refuse)
        thread = threading.Thread(target=write_atomically, args=(tmp_path / "x", "text"))
        thread.start()
        thread.join()
        monkeypatch.undo()
    finally:
        assert os.umask(before) == 0o027
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match=r"x\.json: cannot be written \(No space left\)"):
        write_atomically(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == "old"


def test_files_are_written_together_or_not_at_all(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_together({a: b"1", b: b"2"})
    assert (a.read_bytes(), b.read_bytes()) == (b"1", b"2")
    for wrong in (tmp_path / "absent" / "c", tmp_path):
        with pytest.raises(OutputError, match="cannot be written"):
            write_together({a: b"3", wrong: b"4"})
        assert a.read_bytes() == b"1"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_the_error_class_of_a_failed_write_can_be_chosen(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_json(tmp_path / "absent" / "x.json", {})
    with pytest.raises(ModelError, match="cannot be written"):
        write_json(tmp_path / "absent" / "x.json", {}, ModelError)


def test_links_are_followed_and_devices_written_in_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    code = "from vt_core.files.json_files import write_atomically; write_atomically('/dev/stdout', 'text')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("text", 0), done.stderr
