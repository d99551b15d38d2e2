"""Layouts that stock frameworks read, and errors that name the file of the user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from converters import convert
from converters.cache import resolve
from converters.huggingface import HuggingFaceSource
from tests.converters import tiny
from vt_core.errors import ConfigError, ModelError, TokenizerError
from vt_core.files.manifest import MANIFEST_NAME
from vt_core.files.model_dir import ModelDirectory

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 269060552\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "m", shards=2)


def names(path: Path) -> set[str]:
    return {info.name for info in HuggingFaceSource(path).tensors()}


def test_numbered_weights_need_no_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert names(sharded) == set(tiny.llama())


def test_missing_shard_is_noticed_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="is incomplete: of the 2 files of its weights it holds 1"):
        names(sharded)


def test_tensor_in_two_shards_is_refused_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match="which another file of the model holds too"):
        names(sharded)


def test_index_may_say_that_files_lie_in_its_directory(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = {name: f"./{file}" for name, file in index["weight_map"].items()}
    (sharded / INDEX).write_text(json.dumps(index))
    assert names(sharded) == set(tiny.llama())


@pytest.mark.parametrize(
    "file", ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json"]
)
def test_lfs_pointers_are_named(tmp_path: Path, file: str) -> None:
    source = tiny.write_model(tmp_path / "m")
    (source / file).write_text(LFS)
    with pytest.raises(ModelError, match=f"m/{file} is a Git LFS pointer, not the file itself"):
        convert(source, tmp_path / "out", progress=False)


def test_tokenizer_files_are_checked_where_the_user_has_them(tmp_path: Path) -> None:
    source = tiny.write_model(tmp_path / "m")
    (source / "tokenizer_config.json").write_text("\ufeff{}")
    with pytest.raises(TokenizerError, match=f"{source}/tokenizer_config.json starts with a byte order mark"):
        resolve(source, progress=False)
    (source / "tokenizer_config.json").write_text("{}")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=f"{source}/tokenizer.json: not a tokenizer"):
        resolve(source, progress=False)


def test_directory_of_gguf_files_has_a_hint(tmp_path: Path) -> None:
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"no config.json; give the GGUF file itself: .*m-Q4_K_M\.gguf"):
        convert(tmp_path, tmp_path / "out", progress=False)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_links_out_of_a_source_are_refused(tmp_path: Path, file: str) -> None:
    source, secret = tiny.write_model(tmp_path / "m"), tmp_path / "secret"
    (source / file).rename(secret)
    (source / file).symlink_to(secret)
    with pytest.raises(ModelError, match="is a link out of the directory"):
        convert(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_links_within_a_source_and_in_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    source = tiny.write_model(tmp_path / "m")
    (source / "model.safetensors").rename(source / "weights")
    (source / "model.safetensors").symlink_to("weights")
    convert(source, tmp_path / "out", progress=False)
    repository = tmp_path / "hub" / "models--owner--m"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in tiny.write_model(tmp_path / "plain").iterdir():
        file.rename(repository / "blobs" / f"hash of {file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash of {file.name}")
    convert(snapshot, tmp_path / "out2", progress=False)


def test_force_deletes_only_what_a_conversion_wrote(tmp_path: Path) -> None:
    source = tiny.write_model(tmp_path / "m")
    out = convert(source, tmp_path / "out", progress=False)
    convert(source, out, force=True, progress=False)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match=r"would be deleted, and it holds 'thesis\.txt'"):
        convert(source, out, force=True, progress=False)
    assert (out / "thesis.txt").exists() and ModelDirectory.open(out)
    other = tmp_path / "other"
    other.mkdir()
    (other / MANIFEST_NAME).write_text("{}")
    (other / "photos").mkdir()
    with pytest.raises(ModelError, match="it holds 'photos'"):
        convert(source, other, force=True, progress=False)


HOSTILE = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "model type": ({"model_type": ["llama"] * 100_000}, "model_type is"),
    "vocabulary": ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
    "depth": ({"nested": json.loads("[" * 200 + "]" * 200)}, "nested more than"),
}


@pytest.mark.parametrize(("changes", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_configurations_are_refused_in_a_line(tmp_path: Path, changes: dict, sentence: str) -> None:
    source = tiny.write_model(tmp_path / "m", **changes)
    with pytest.raises(ConfigError, match=sentence) as caught:
        convert(source, tmp_path / "out", progress=False)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


ODD_VALUES = [None, True, -1, 0, 10**30, 1.5, "", "x" * 1000, [], [[1]], {}, {"a": {"b": 1}}]
FIELDS = [
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings", "torch_dtype"),
    *("dtype", "text_config", "quantization", "quantization_config", "rope_parameters"),
    *("hidden_size_per_layer_input", "architectures", "max_position_embeddings"),
]


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_of_a_field_converts_or_is_refused_in_a_line(tmp_path: Path, field: str) -> None:
    for number, value in enumerate(ODD_VALUES):
        source = tiny.write_model(tmp_path / f"m{number}", **{field: value})
        try:
            convert(source, tmp_path / f"out{number}", progress=False)
        except ModelError as error:
            assert len(str(error)) < 600 and "\n" not in str(error)
