from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import convert
from tests.converters import tiny
from tests.manifests import update_manifest
from vt_core.errors import ConfigError, ModelError, StoreError
from vt_core.files.manifest import FORMAT_VERSION, FileInfo, Manifest, SourceInfo, TableInfo
from vt_core.files.model_dir import ModelDirectory, is_model_directory
from vt_core.files.quantization import Quantization

TABLE = TableInfo(10, 4, "bfloat16", "sha256:ab")
MANIFEST = Manifest(
    source=SourceInfo("gguf", "tiny.gguf", "f0"),
    model_type="llama",
    vocab_rows=10,
    hidden=4,
    dtype="bfloat16",
    tied=False,
    head_bias=True,
    tables={"embedding": TABLE, "head": TABLE, "head_bias": TableInfo(10, 1, "float32", "sha256:cd")},
    files={
        "config.json": FileInfo(2, "a0"),
        "model.safetensors": FileInfo(100, "b0"),
        "vocab.lmdb/data.mdb": FileInfo(2000, "c0"),
    },
    tokenizer_digest="d1",
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    tensors = tiny.llama(tied=False, bias=True)
    source = tiny.write_model(root / "source", tensors, tie_word_embeddings=False)
    return convert(source, root / "out", progress=False)


@pytest.fixture
def model(converted: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    import shutil

    return Path(shutil.copytree(converted, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_manifest_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), path=Path("vt.json")) == MANIFEST


def test_sizes() -> None:
    assert MANIFEST.body_bytes == 100
    assert MANIFEST.total_bytes == 2102
    assert MANIFEST.table_bytes == 10 * 4 * 2 * 2 + 10 * 4
    assert MANIFEST.table_bytes_of(3) == 3 * 4 * 2 * 2 + 3 * 4


def test_sizes_with_a_per_layer_table() -> None:
    tables = MANIFEST.tables | {"per_layer": TableInfo(7, 12, "bfloat16", "sha256:ef")}
    manifest = replace(MANIFEST, tables=tables)
    assert Manifest.from_json(manifest.to_json(), path=Path("vt.json")) == manifest
    assert manifest.table_bytes == MANIFEST.table_bytes + 7 * 12 * 2
    # Per-layer rows are never kept in memory.
    assert manifest.table_bytes_of(3) == MANIFEST.table_bytes_of(3)


FILE = {"bytes": 1, "sha256": "d0"}
PACKED = {"bits": 4, "group_size": 32, "dtype": "bfloat16", "mode": "affine"}
WRONG: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "newer version": (("format_version",), 3, "has format version 3, and this vt reads version 2"),
    "version as text": (("format_version",), "1", "'format_version' is '1', not a whole number"),
    "version missing": (("format_version",), ..., "'format_version' is missing"),
    "source": (("source",), "x", "'source' is 'x', not an object"),
    "source name": (("source", "name"), 3, "'source.name' is 3, not text"),
    "fingerprint": (("source", "fingerprint"), ..., "'source.fingerprint' is missing"),
    "unknown dtype": (("dtype",), "bfloat06", "dtype 'bfloat06' or source 'gguf' is unknown"),
    "unknown source": (("source", "kind"), "ggug", "source 'ggug' is unknown"),
    "model type": (("model_type",), None, "'model_type' is None"),
    "no rows": (("vocab_rows",), 0, "'vocab_rows' is 0, not from 1 to"),
    "boolean as rows": (("vocab_rows",), True, "'vocab_rows' is True"),
    "huge rows": (("vocab_rows",), 1 << 63, "'vocab_rows' is 9223372036854775808"),
    "hidden": (("hidden",), 4.0, r"'hidden' is 4\.0"),
    "tied": (("tied",), 1, "'tied' is 1, not true or false"),
    "quantized": (("quantization",), 4, "'quantization' is 4, not an object"),
    "packed how": (("quantization",), {"head": 4}, "'quantization.head' is 4, not an object"),
    "bits": (("quantization",), {"head": PACKED | {"bits": 7}}, "7 bits in groups of 32 with scales in"),
    "groups": (("quantization",), {"head": PACKED | {"group_size": 8}}, "4 bits in groups of 8"),
    "scales": (("quantization",), {"head": PACKED | {"dtype": "uint8"}}, "scales in 'uint8'"),
    "mode": (
        ("quantization",),
        {"head": PACKED | {"mode": "mxfp4"}},
        "the quantization 'mxfp4' is unknown",
    ),
    "packed table missing": (("quantization",), {"x": PACKED}, "'x' is not packed, but"),
    "packed floats": (("quantization",), {"head": PACKED}, "'head' is not packed, but quantization lists it"),
    "digest": (("tokenizer_digest",), 7, "'tokenizer_digest' is 7"),
    "tables": (("tables",), [], r"'tables' is \[\], not an object"),
    "a table": (("tables", "head"), 5, "'tables.head' is 5, not an object"),
    "checksum": (("tables", "head", "checksum"), ..., "'tables.head.checksum' is missing"),
    "row count is not V": (("tables", "head", "rows"), 9, "table 'head' has 9 rows, the vocabulary 10"),
    "columns": (("tables", "head", "columns"), 5, "table 'head' has 5 columns and should have 4"),
    "wide bias": (("tables", "head_bias", "columns"), 4, "'head_bias' has 4 columns and should have 1"),
    "table missing": (
        ("tables", "head_bias"),
        ...,
        r"tables are \['embedding', 'head'\], a model like this has",
    ),
    "extra table": (("tied",), True, r"a model like this has \['embedding', 'head_bias'\]"),
    "size as in version 1": (("files", "config.json"), 2, "'files.config.json' is 2, not an object"),
    "negative size": (("files", "config.json", "bytes"), -1, "'files.config.json.bytes' is -1"),
    "file without digest": (("files", "config.json", "sha256"), ..., "'files.config.json.sha256' is missing"),
    "outside": (("files", "../x"), FILE, "'../x' leads outside"),
    "absolute": (("files", "/etc/passwd"), FILE, "'/etc/passwd' leads outside"),
    "more rows than bytes": (("vocab_rows",), 10**9, "has 10 rows, the vocabulary 1000000000"),
}


def test_columns_of_a_quantized_table() -> None:
    values = json.loads(MANIFEST.to_json()) | {"hidden": 64, "quantization": {"head": PACKED}}
    values["tables"]["embedding"]["columns"] = 64
    values["tables"]["head"] |= {"dtype": "uint32", "columns": 8 + 2}
    manifest = Manifest.from_json(json.dumps(values), path=Path("vt.json"))
    assert manifest.quantization == {"head": Quantization(4, 32, "bfloat16")}
    assert manifest.table_bytes_of(1) == 64 * 2 + 10 * 4 + 4
    assert Manifest.from_json(manifest.to_json(), path=Path("vt.json")) == manifest
    for columns, hidden, sentence in (
        (9, 64, "9 columns and should have 10"),
        (10, 40, "a row of 40 values"),
    ):
        values["tables"]["head"]["columns"], values["hidden"] = columns, hidden
        values["tables"]["embedding"]["columns"] = hidden
        with pytest.raises(ModelError, match=sentence):
            Manifest.from_json(json.dumps(values), path=Path("vt.json"))


@pytest.mark.parametrize(("keys", "value", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_field_is_named(keys: tuple[str, ...], value: Any, sentence: str) -> None:
    values = json.loads(MANIFEST.to_json())
    part = values
    for key in keys[:-1]:
        part = part[key]
    if value is ...:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    with pytest.raises(ModelError, match=sentence) as caught:
        Manifest.from_json(json.dumps(values), path=Path("there/vt.json"))
    assert str(caught.value).startswith(str(Path("there/vt.json")))


def test_open_converted_model(converted: Path) -> None:
    directory = ModelDirectory.open(str(converted))
    manifest = directory.manifest
    assert (manifest.format_version, manifest.vocab_rows, manifest.hidden) == (
        FORMAT_VERSION,
        tiny.VOCAB,
        tiny.HIDDEN,
    )
    assert (manifest.tied, manifest.head_bias, manifest.dtype) == (False, True, "bfloat16")
    assert directory.config["vocab_size"] == tiny.VOCAB
    assert directory.generation_config == {"eos_token_id": tiny.VOCAB - 1}
    assert directory.weight_paths == (converted / "model.safetensors",)
    assert directory.tokenizer_path.is_file()
    with directory.open_store() as store:
        assert set(store.tables) == {"embedding", "head", "head_bias"}
    directory.verify()


def test_model_type_must_match_the_manifest(model: Path) -> None:
    set_config(model, model_type="mistral")
    with pytest.raises(ConfigError, match=r"model_type 'mistral', vt\.json says 'llama'"):
        ModelDirectory.open(model)


def test_generation_config_may_be_missing(model: Path) -> None:
    (model / "generation_config.json").unlink()
    edit(model / "vt.json", lambda values: values["files"].pop("generation_config.json"))
    assert ModelDirectory.open(model).generation_config == {}


def test_is_model_directory(model: Path, tmp_path: Path) -> None:
    assert is_model_directory(model)
    assert not is_model_directory(tmp_path)
    assert not is_model_directory(tmp_path / "none")
    assert not is_model_directory(model / "vt.json")


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        ModelDirectory.open(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is not a directory"):
        ModelDirectory.open(tmp_path / "file")
    with pytest.raises(ModelError, match=r"Make one with the convert command"):
        ModelDirectory.open(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_manifest_is_refused(model: Path, content: bytes) -> None:
    (model / "vt.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"vt.json(: not a manifest| is UTF-16)"):
        ModelDirectory.open(model)


def test_huge_manifest_is_not_read(model: Path) -> None:
    os.truncate(model / "vt.json", 1 << 40)
    with pytest.raises(ModelError, match="not a manifest; 1099511627776 bytes are more than"):
        ModelDirectory.open(model)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.lmdb/data.mdb", "tokenizer.json"])
def test_truncated_file_is_refused(model: Path, name: str) -> None:
    size = (model / name).stat().st_size
    os.truncate(model / name, size - 1)
    with pytest.raises(ModelError, match=f"{name} has {size - 1} bytes and should have {size}. Convert"):
        ModelDirectory.open(model)


def test_missing_file_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is incomplete: model.safetensors is missing"):
        ModelDirectory.open(model)


@pytest.mark.parametrize("nested", [False, True])
def test_vocab_size_must_match_the_tables(model: Path, nested: bool) -> None:
    other = {"text_config": {"vocab_size": 41}} if nested else {"vocab_size": 41}
    set_config(model, **other)
    with pytest.raises(ModelError, match=r"config\.json says vocab_size 41, the tables have 40 rows"):
        ModelDirectory.open(model)


def set_config(model: Path, **changes: Any) -> None:
    edit(model / "config.json", lambda values: values.update(changes))
    update_manifest(model)


@pytest.mark.parametrize("settings", ["x", ["bits", "group_size"], {"bits": 4}])
def test_incomplete_quantization_is_refused(model: Path, settings: object) -> None:
    set_config(model, quantization=settings)
    with pytest.raises(ModelError, match="does not give bits and group_size"):
        ModelDirectory.open(model)


def test_per_layer_table_must_match_config(model: Path, tmp_path: Path) -> None:
    source = tiny.write_model(tmp_path / "in", tiny.with_per_layer(), **tiny.PER_LAYER)
    out = convert(source, tmp_path / "out", progress=False)
    directory = ModelDirectory.open(out)
    table = directory.manifest.tables["per_layer"]
    assert (table.rows, table.columns, table.dtype) == (tiny.PER_LAYER_ROWS, 16, "bfloat16")
    with directory.open_store() as store:
        rows = store.tables["per_layer"].read(np.arange(tiny.PER_LAYER_ROWS))
    assert rows.tolist() == tiny.with_per_layer()["model.embed_tokens_per_layer.weight"].tolist()
    sentence = "vt.json and config.json describe different per-layer tables"
    for name, value in (("hidden_size_per_layer_input", 0), ("vocab_size_per_layer_input", 29)):
        set_config(out, **(tiny.PER_LAYER | {name: value}))
        with pytest.raises(ModelError, match=sentence):
            ModelDirectory.open(out)
    set_config(model, **(tiny.PER_LAYER | {"model_type": "llama"}))
    with pytest.raises(ModelError, match=sentence):
        ModelDirectory.open(model)


def test_packed_per_layer_table_must_match_config(tmp_path: Path) -> None:
    tensors = tiny.with_per_layer()
    tensors["model.embed_tokens_per_layer.weight"] = tiny.bfloat16(tiny.random(6, tiny.PER_LAYER_ROWS, 32))
    config = tiny.PER_LAYER | {"hidden_size_per_layer_input": 32}
    source = tiny.write_model(tmp_path / "in", tensors, **config)
    out = convert(source, tmp_path / "out", quantize=4, group_size=32, progress=False)
    manifest = ModelDirectory.open(out).manifest
    assert manifest.quantization == {"per_layer": Quantization(4, 32, "bfloat16")}
    assert manifest.tables["per_layer"].columns == 4 + 1
    set_config(out, **(config | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match="different per-layer tables"):
        ModelDirectory.open(out)


def test_verify_finds_a_changed_row(model: Path) -> None:
    file = model / "vocab.lmdb" / "data.mdb"
    content = bytearray(file.read_bytes())
    row = tiny.llama()["model.embed_tokens.weight"][7].tobytes()
    content[content.index(row)] ^= 1
    file.write_bytes(content)
    directory = ModelDirectory.open(model)
    directory.open_store().close()
    with pytest.raises(StoreError, match="'embedding' has changed since it was written"):
        directory.verify_tables()
    with pytest.raises(ModelError, match=r"data\.mdb has changed since the conversion"):
        directory.verify()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda tables: tables["head"].update(dtype="float16"),
            "is 40 x 24 bfloat16, vt.json says 40 x 24 float16",
        ),
        (lambda tables: tables["head"].update(checksum="sha256:0"), "is the store of another model"),
    ],
)
def test_store_of_another_model_is_refused(model: Path, change: Callable[[Any], Any], sentence: str) -> None:
    edit(model / "vt.json", lambda values: change(values["tables"]))
    with pytest.raises(StoreError, match=sentence):
        ModelDirectory.open(model).open_store()


def test_missing_table_is_refused(model: Path, tmp_path: Path) -> None:
    tied = tiny.write_model(tmp_path / "tied")
    other = convert(tied, tmp_path / "other", progress=False)
    data = (other / "vocab.lmdb" / "data.mdb").read_bytes()
    (model / "vocab.lmdb" / "data.mdb").write_bytes(data)
    update_manifest(model)
    with pytest.raises(StoreError, match="has no table 'head'"):
        ModelDirectory.open(model).open_store()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "chat_template.jinja"])
def test_verify_finds_a_changed_bit_in_any_file(model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[-3] ^= 1
    (model / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} has changed since the conversion"):
        ModelDirectory.open(model).verify()


def test_opening_refuses_another_tokenizer_of_the_same_size(model: Path) -> None:
    file = model / "tokenizer.json"
    content = bytearray(file.read_bytes())
    content[content.index(b"a")] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json has changed since the conversion"):
        ModelDirectory.open(model)


def test_added_files_are_ignored_or_refused(model: Path) -> None:
    (model / "README.md").write_text("notes")
    (model / "model-extra.safetensors").write_bytes(b"stray")
    assert ModelDirectory.open(model).weight_paths == (model / "model.safetensors",)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    with pytest.raises(
        ModelError, match=r"additional_chat_templates/tools\.jinja was added after the conversion"
    ):
        ModelDirectory.open(model)
    (model / "additional_chat_templates" / "tools.jinja").unlink()
    (model / "added_tokens.json").write_text("{}")
    with pytest.raises(ModelError, match=r"added_tokens\.json was added after the conversion"):
        ModelDirectory.open(model)


def test_impossible_counts_are_refused(model: Path) -> None:
    for name in ("num_hidden_layers", "num_attention_heads", "num_experts"):
        set_config(model, **{name: 10**9})
        with pytest.raises(ConfigError, match=rf"config\.json: {name} is 1000000000, more than any model"):
            ModelDirectory.open(model)
        set_config(model, **{name: 2})
    ModelDirectory.open(model)


def test_tables_larger_than_the_store_are_refused() -> None:
    rows = 10**9
    tables = {name: replace(table, rows=rows) for name, table in MANIFEST.tables.items()}
    text = replace(MANIFEST, vocab_rows=rows, tables=tables).to_json()
    with pytest.raises(ModelError, match=r"tables of 20000000000 bytes do not fit into vocab"):
        Manifest.from_json(text, path=Path("vt.json"))
