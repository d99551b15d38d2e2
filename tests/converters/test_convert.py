from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import convert, resolve
from converters.convert import shard_names, shards
from converters.safetensors_io import read_chunks, read_header
from converters.source import TensorInfo
from tests.converters import tiny
from tests.converters.gguf_tiny import weights
from vt_core.errors import ModelError, OptionError, StoreError, TokenizerError
from vt_core.files import dtypes
from vt_core.files.model_dir import ModelDirectory

#: The module; the package's attribute of its name is the function.
MODULE = sys.modules["converters.convert"]
OUTPUT = sys.modules["converters.output"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "source")


def body(path: Path) -> dict[str, tuple[TensorInfo, bytes]]:
    tensors = {}
    for file in ModelDirectory.open(path).weight_paths:
        for name, entry in read_header(file).items():
            tensors[name] = (
                entry.info,
                b"".join(chunk.tobytes() for chunk in read_chunks(file, entry, 1 << 20)),
            )
    return tensors


def table(path: Path, name: str) -> np.ndarray:
    with ModelDirectory.open(path).open_store() as store:
        rows = store.tables[name]
        return rows.read(np.arange(rows.spec.rows))


def hidden_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.name.startswith("."))


@pytest.mark.parametrize("source_shards", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_value_arrives(tmp_path: Path, tied: bool, bias: bool, source_shards: int) -> None:
    tensors = tiny.llama(tied, bias)
    path = tiny.write_model(tmp_path / "s", tensors, shards=source_shards, tie_word_embeddings=tied)
    out = convert(path, tmp_path / "out", progress=False)
    manifest = ModelDirectory.open(out).manifest
    assert (manifest.tied, manifest.head_bias, manifest.model_type) == (tied, bias, "llama")
    assert (manifest.source.kind, manifest.source.name) == ("huggingface", "s")
    places = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "head_bias": "lm_head.bias"}
    present = {name: tensor for name, tensor in places.items() if tensor in tensors}
    assert set(manifest.tables) == set(present)
    for name, tensor in present.items():
        np.testing.assert_array_equal(table(out, name), tensors[tensor].reshape(tiny.VOCAB, -1))
    kept = {name: tensor for name, tensor in tensors.items() if name not in places.values()}
    assert {name: content for name, (_, content) in body(out).items()} == {
        name: tensor.tobytes() for name, tensor in kept.items()
    }
    assert hidden_files(tmp_path) == []


def test_files_of_the_source_are_there(tmp_path: Path, source: Path) -> None:
    out = convert(source, tmp_path / "out", progress=False)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if name.endswith("json"):
            assert json.loads((out / name).read_text()) == json.loads((source / name).read_text())
        else:
            assert (out / name).read_text() == (source / name).read_text()
    assert json.loads((out / "config.json").read_text()) == tiny.config()
    listed = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert listed - set(ModelDirectory.open(out).manifest.files) <= {"vt.json", "vocab.lmdb/lock.mdb"}


def test_tied_model_that_stores_its_head_too(tmp_path: Path) -> None:
    tensors = tiny.llama()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    out = convert(tiny.write_model(tmp_path / "s", tensors), tmp_path / "out", progress=False)
    assert set(ModelDirectory.open(out).manifest.tables) == {"embedding"}
    assert "lm_head.weight" not in body(out)


def test_tied_model_whose_head_differs_is_refused(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "s", tiny.llama(tied=False), tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"lm_head.weight and model.embed_tokens.weight differ"):
        convert(path, tmp_path / "out", progress=False)


def test_default_tying_is_written_out(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "s", model_type="gemma3_text", tie_word_embeddings=...)
    out = convert(path, tmp_path / "out", progress=False)
    assert ModelDirectory.open(out).config["tie_word_embeddings"] is True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tmp_path: Path, source: Path, dtype: str) -> None:
    out = convert(source, tmp_path / "out", dtype=dtype, progress=False)
    directory = ModelDirectory.open(out)
    assert directory.manifest.dtype == dtype and directory.config["torch_dtype"] == dtype
    stored = tiny.llama()["model.embed_tokens.weight"]
    exact = (stored.astype("<u4") << 16).view("<f4")
    expected = {"float32": exact, "bfloat16": stored, "float16": exact.astype("<f2")}[dtype]
    np.testing.assert_array_equal(table(out, "embedding"), expected)
    assert {name: info.dtype for name, (info, _) in body(out).items()} == {
        "model.layers.0.mlp.up_proj.weight": dtype,
        "model.norm.weight": dtype,
        "model.positions": "int64",
    }


def test_unknown_dtype(tmp_path: Path, source: Path) -> None:
    with pytest.raises(OptionError, match="'int8' is not one of float32, bfloat16, float16"):
        convert(source, tmp_path / "out", dtype="int8")


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_gguf_file(tmp_path: Path, dtype: str | None, untied: bool) -> None:
    values = weights("llama", untied=untied)
    file = tiny.write_gguf_model(tmp_path / "tiny.gguf", values)
    out = convert(file, tmp_path / "out", dtype=dtype, progress=False)
    manifest = ModelDirectory.open(out).manifest
    assert (manifest.source.kind, manifest.source.name, manifest.tied) == ("gguf", "tiny.gguf", not untied)
    tables = {"embedding": "token_embd.weight", **({"head": "output.weight"} if untied else {})}
    assert set(manifest.tables) == set(tables)
    for name, tensor in tables.items():
        expected = values[tensor] if dtype is None else dtypes.from_float32(values[tensor], dtype)
        np.testing.assert_array_equal(table(out, name), expected)
    norm = dtypes.from_float32(values["output_norm.weight"], dtype or "float32")
    assert body(out)["model.norm.weight"][1] == norm.tobytes()


def test_unusable_tokenizer_is_seen_before_the_weights_are_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(MODULE, "_write_tables", lambda plan, path, bar: written.append(path))
    (source / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(TokenizerError, match="neither byte-level BPE nor SentencePiece"):
        convert(source, tmp_path / "out", progress=False)
    assert written == []


def test_table_of_another_type(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": np.zeros((tiny.VOCAB, 4), "<f8")}
    with pytest.raises(
        ModelError, match=r"table model.embed_tokens.weight is float64, which vt does not store"
    ):
        convert(tiny.write_model(tmp_path / "s", tensors), tmp_path / "out", progress=False)


def test_large_bodies_are_cut_into_shards(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(source, tmp_path / "whole", progress=False)
    monkeypatch.setattr(MODULE, "SHARD_BYTES", 200)
    out = convert(source, tmp_path / "out", progress=False)
    assert [file.name for file in ModelDirectory.open(out).weight_paths] == shard_names(2)
    assert body(out) == body(whole)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 24 * 32 * 2 + 24 * 4 + 5 * 8}
    for name, file in index["weight_map"].items():
        assert name in read_header(out / file)
    assert set(index["weight_map"]) == set(body(out))


def test_shards() -> None:
    infos = [TensorInfo(str(size), "uint8", (size,)) for size in (3, 3, 9, 1, 2)]
    assert [[info.name for info in run] for run in shards(infos, 6)] == [["3", "3"], ["9"], ["1", "2"]]
    assert shards([], 6) == [[]]
    assert shard_names(1) == ["model.safetensors"]


def test_empty_directory_is_used(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    ModelDirectory.open(convert(source, tmp_path / "out", progress=False)).verify()


def test_parents_are_made_and_paths_resolved(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(Path("source"), "a/b/out", progress=False) == (tmp_path / "a" / "b" / "out").resolve()


@pytest.mark.parametrize("force", [False, True])
def test_foreign_directory_is_never_touched(tmp_path: Path, source: Path, force: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(
        ModelError, match=r"exists and is not a model directory of vt. Give the path of a new directory"
    ):
        convert(source, out, force=force, progress=False)
    with pytest.raises(ModelError, match="exists and is not a model directory"):
        convert(source, source, force=force, progress=False)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert hidden_files(tmp_path) == []


def test_existing_model_is_replaced_only_by_force(tmp_path: Path, source: Path) -> None:
    out = convert(source, tmp_path / "out", progress=False)
    with pytest.raises(ModelError, match=r"exists. Give another path, or --force to replace it"):
        convert(source, out, dtype="float32", progress=False)
    assert ModelDirectory.open(out).manifest.dtype == "bfloat16"
    convert(source, out, dtype="float32", force=True, progress=False)
    assert ModelDirectory.open(out).manifest.dtype == "float32"
    assert hidden_files(tmp_path) == []


def test_failed_replacement_leaves_the_old_model(tmp_path: Path, source: Path) -> None:
    out = convert(source, tmp_path / "out", progress=False)
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        convert(source, out, force=True, progress=False)
    ModelDirectory.open(out).verify()
    assert hidden_files(tmp_path) == []


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("{tmp}/none", "none does not exist, and it is not a hub id"),
        ("none.gguf", "none.gguf does not exist, and it is not a hub id"),
        ("{tmp}/out", "is a model directory of vt already"),
    ],
)
def test_unusable_sources_are_refused(tmp_path: Path, source: Path, argument: str, sentence: str) -> None:
    convert(source, tmp_path / "out", progress=False)
    with pytest.raises(ModelError, match=sentence):
        convert(argument.format(tmp=tmp_path), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_file_in_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK" * 50)
    with pytest.raises(ModelError, match=r"model\.zip"):
        convert(tmp_path / "model.zip", tmp_path / "out", progress=False)


@pytest.mark.parametrize("call", [lambda path, out: convert(path, out), lambda path, out: resolve(path)])
def test_source_that_must_not_be_read(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Path, Path], Path]
) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules["converters.huggingface"], "read_header", refused)
    with pytest.raises(ModelError, match=r"cannot be read: .*Permission denied: 'model\.safetensors'"):
        call(source, tmp_path / "out")


@pytest.mark.parametrize("call", [lambda name, out: convert(name, out), lambda name, out: resolve(name)])
def test_name_that_is_far_too_long(tmp_path: Path, call: Callable[[str, Path], Path]) -> None:
    with pytest.raises(ModelError, match=r"cannot be read: .*name too long|is not a hub id"):
        call("a " * 5000, tmp_path / "out")


def test_revision_of_a_path(tmp_path: Path, source: Path) -> None:
    with pytest.raises(OptionError, match=r"A revision \(main\) goes with a hub id"):
        convert(source, tmp_path / "out", revision="main")


def test_too_little_room_is_seen_before(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=30_000_000)
    monkeypatch.setattr(OUTPUT.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"writes 0\.07 GB, and .* has 0\.03 GB free"):
        convert(source, tmp_path / "out", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def write_file(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(MODULE, "write_file", write_file)
    with pytest.raises(
        ModelError, match=r"The disk is full: .*out was not written, and what had been written"
    ):
        convert(source, tmp_path / "out", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_other_failures_of_the_disk(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_file(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setattr(MODULE, "write_file", write_file)
    with pytest.raises(ModelError, match=r"out was not written: .*Permission denied: 'model.safetensors'"):
        convert(source, tmp_path / "out", progress=False)


def test_parent_that_is_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="file cannot be written to"):
        convert(source, tmp_path / "file" / "out", progress=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no directory in which nobody can make a file")
def test_parent_that_takes_no_files_is_refused_and_not_waited_for(source: Path) -> None:
    with pytest.raises(ModelError, match="/proc cannot be written to"):
        convert(source, "/proc/out", progress=False)


def test_failed_read_back_keeps_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(self: ModelDirectory) -> None:
        raise StoreError("checksum differs")

    monkeypatch.setattr(ModelDirectory, "verify_tables", verify)
    with pytest.raises(ModelError, match="what came back from the disk is not what was sent to it"):
        convert(source, tmp_path / "out", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_source_that_breaks_off(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface = sys.modules["converters.huggingface"]
    whole = huggingface.read_chunks

    def cut(*arguments: Any) -> Iterator[np.ndarray]:
        for chunk in whole(*arguments):
            yield chunk[: len(chunk) // 2]

    monkeypatch.setattr(huggingface, "read_chunks", cut)
    with pytest.raises(ModelError, match="must have 40 rows, and the source has 20"):
        convert(source, tmp_path / "out", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_progress_is_silent_without_a_terminal(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    convert(source, tmp_path / "out", progress=True)
    assert capfd.readouterr() == ("", "")


def run(code: str, *arguments: Any) -> str:
    """Run a script in another process; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


KILLED = """
# Runs conversions in forked children, each of which kills itself at another moment: the call of a function,
# ours or the system's, from one of our modules.
import os, shutil, signal, sys
from pathlib import Path
from converters import convert, resolve
from converters.output import locked
from vt_core.errors import ModelError
from vt_core.files.model_dir import ModelDirectory, is_model_directory
import converters.gguf, ml_dtypes, lmdb, tqdm, filelock, vt_core.store, converters.tokenizer_json

source, root, force, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "force", int(sys.argv[4])
out = root / "out"

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def counting(last):
    ours = ("converters", "vt_core")
    moments = 0
    def profile(frame, event, argument):
        nonlocal moments
        if event in ("call", "c_call") and frame.f_globals.get("__name__", "").startswith(ours):
            moments += 1
            if moments == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)
    try:
        convert(source, out, dtype="float16", force=force, progress=False)
    finally:
        sys.setprofile(None)
    return moments

def whole(dtypes):
    directory = ModelDirectory.open(out)
    directory.verify()
    assert directory.manifest.dtype in dtypes, directory.manifest.dtype

def measured():
    Path(root / "count").write_text(str(counting(None)))

def start():
    shutil.rmtree(out, ignore_errors=True)
    if force:
        shutil.copytree(old, out)

os.fsync = lambda descriptor: None  # a killed process takes no written page with it
old = root.parent / "old"
if force:
    assert child(lambda: convert(source, old, dtype="bfloat16", progress=False)) == 0
start()
assert child(measured) == 0
total = int((root / "count").read_text())
spread = {round(1 + i * (total - 1) / (count - 1)) for i in range(count)}
moments = sorted(spread | set(range(total - 16, total + 1)))
unharmed = replaced = 0
for moment in moments:
    start()
    assert child(lambda: counting(moment)) == signal.SIGKILL, moment
    if out.exists():
        assert child(lambda: whole({"bfloat16", "float16"} if force else {"float16"})) == 0, moment
        unharmed += 1
    else:
        assert not is_model_directory(out)
    def again():
        if not force and out.exists():
            return
        convert(source, out, dtype="float32", force=force, progress=False)
        assert ModelDirectory.open(out).manifest.dtype == "float32"
    assert child(again) == 0, moment
    with locked(out, announce=False):
        pass
    assert sorted(os.listdir(root)) == ["count", "out"], (moment, os.listdir(root))
print(total, len(moments), unharmed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("force", ["new", "force"])
def test_killed_at_any_moment(tmp_path: Path, source: Path, force: str) -> None:
    (tmp_path / "root").mkdir()
    total, moments, whole = map(int, run(KILLED, source, tmp_path / "root", force, 16).split())
    assert total > 500 and moments >= 30
    # Kills after the renaming leave the finished model; with force nearly all leave the old or the new one.
    assert (0 < whole < 17) if force == "new" else whole > 24


PEAK = """
import json, resource, sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with what the parent had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

import numpy, ml_dtypes, lmdb, tqdm, filelock
from converters import convert, resolve
import converters.huggingface, converters.gguf, converters.tokenizer_json, vt_core.store
idle = peak()
bits = int(sys.argv[4]) or None
convert(sys.argv[1], sys.argv[2], dtype=sys.argv[3] or None, quantize=bits, progress=False)
print(peak() - idle)
"""


@pytest.mark.parametrize(("dtype", "bits"), [("", 0), ("float16", 0), ("", 8)])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, dtype: str, bits: int) -> None:
    rows, columns = 200_000, 512
    path = tiny.write_model(tmp_path / "s", vocab_size=rows)
    embedding, hidden = rows * columns * 2, 96 << 20
    header = {
        "model.embed_tokens.weight": {
            "dtype": "BF16",
            "shape": [rows, columns],
            "data_offsets": [0, embedding],
        },
        "model.w": {"dtype": "BF16", "shape": [hidden // 2], "data_offsets": [embedding, embedding + hidden]},
    }
    content = tiny.raw_safetensors(header)
    (path / "model.safetensors").write_bytes(content)
    os.truncate(path / "model.safetensors", len(content) + embedding + hidden)  # zeros that take no room
    used = int(run(PEAK, path, tmp_path / "out", dtype, bits))
    stored = embedding * (bits or 16) // 16
    assert (tmp_path / "out" / "vocab.lmdb" / "data.mdb").stat().st_size > stored and embedding > 190 << 20
    assert used < 128 << 20
    shutil.rmtree(tmp_path / "out")


def test_importing_the_converters_needs_no_framework() -> None:
    code = (
        "import sys, converters, converters.gguf; print({'mlx', 'torch', 'transformers'} & set(sys.modules))"
    )
    assert run(code) == "set()\n"


def test_command(tmp_path: Path, source: Path) -> None:
    from click.testing import CliRunner

    from vt_core.cli.convert import convert as command

    result = CliRunner().invoke(command, [str(source), str(tmp_path / "out"), "--dtype", "float32"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "out: llama, " in result.stderr
    assert ModelDirectory.open(tmp_path / "out").manifest.dtype == "float32"
    forced: Callable[..., Any] = CliRunner().invoke
    assert forced(command, [str(source), str(tmp_path / "out")]).exception is not None
    assert forced(command, [str(source), str(tmp_path / "out"), "--force"]).exit_code == 0
