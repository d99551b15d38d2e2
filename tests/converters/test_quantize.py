"""Quantizing while converting: the weights are those that mlx-lm makes of the same floats."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from converters import convert
from converters.export import export
from tests.converters import tiny as plain
from tests.converters.gguf_tiny import weights
from tests.tiny import ARCHITECTURES, KINDS, QUANTIZED, write_model
from vt_core.cli import build
from vt_core.cli.convert import convert as command
from vt_core.errors import ModelError, OptionError
from vt_core.files import packing
from vt_core.files.architectures import ARCHITECTURES as ARCHITECTURE_ROWS
from vt_core.files.architectures import architecture
from vt_core.files.dtypes import from_float32, to_float32
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.quantization import Quantization

SIZES = {"hidden_size": 64, "intermediate_size": 128}
_LAYERS = SIZES | {"hidden_size_per_layer_input": 32}
#: What particular kinds need besides, for their rows to have groups.
PARTICULAR = {
    "gemma3n": _LAYERS,
    "gemma4": _LAYERS,
    "helium": SIZES | {"head_dim": 16},
    "gemma4-multimodal": {"text_config": ARCHITECTURES["gemma4-multimodal"][1]["text_config"] | _LAYERS},
}
#: The layers of these have other names or shapes in mlx-lm, or are not all matrices.
OTHERS = {
    *("gemma3-multimodal", "gpt_neox", "gpt2", "falcon_h1", "mamba", "qwen3_moe", "gpt_oss", *QUANTIZED),
    *("apertus", "bitnet", "granite4", "granite4-hybrid", "jamba", "lfm2", "lfm3", "mamba2", "ministral3"),
    *("nemotron_h", "qwen3_5", "falcon_h1-tied", "granite4-experts", "jamba-experts"),
}
#: Bits by turns.
CASES = {
    kind: (4, 5, 6, 8)[number % 4]
    for number, kind in enumerate(kind for kind in (*KINDS, *ARCHITECTURES) if kind not in OTHERS)
}


@pytest.mark.parametrize(("kind", "bits"), CASES.items())
def test_every_matrix_is_packed_as_mlx_lm_packs_it(kind, bits, tmp_path):
    pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    source = write_model(tmp_path / "in", kind, "bfloat16", **PARTICULAR.get(kind, SIZES))
    directory = ModelDirectory.open(convert(source, tmp_path / "out", quantize=bits, group_size=32))
    if "per_layer" in directory.manifest.tables:
        assert directory.manifest.quantization["per_layer"].bits == bits
    assert architecture(directory.manifest.model_type).same_weights_in_mlx
    export(directory, tmp_path / "back")
    with mx.stream(mx.cpu):
        theirs, config = quantize_model(*load_model(source, lazy=True), 32, bits)
        expected = dict(tree_flatten(theirs.parameters()))
        found = dict(tree_flatten(load_model(tmp_path / "back", lazy=True)[0].parameters()))
        assert found.keys() == expected.keys() and sum(name.endswith(".scales") for name in found) > 10
        assert all(mx.array_equal(found[name], value).item() for name, value in expected.items())
    assert directory.config["quantization"] == config["quantization"]


def test_every_model_type_that_is_offered_is_tried(tmp_path):
    import transformers

    configs = {**KINDS, **ARCHITECTURES}
    tried = {getattr(transformers, configs[kind][0]).model_type for kind in CASES}
    offered = {name for name, row in ARCHITECTURE_ROWS.items() if row.same_weights_in_mlx}
    assert tried - {"gemma3n_text"} | {"gemma3n"} == offered


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_can_be_quantized(dtype, tmp_path):
    source = plain.write_gguf_model(tmp_path / "m.gguf", weights("llama"))
    how = Quantization(6, 32, dtype)
    packed, floats = (
        ModelDirectory.open(convert(source, tmp_path / str(bits), dtype=dtype, quantize=bits, group_size=32))
        for bits in (6, None)
    )
    assert packed.manifest.quantization == {"embedding": how}
    rows = np.arange(packed.manifest.vocab_rows)
    with packed.open_store() as store, floats.open_store() as other:
        values = to_float32(other.tables["embedding"].read(rows), dtype)
        words, *others = packing.quantize(values, 6, 32)
        expected = packing.join_rows(words, *(from_float32(part, dtype) for part in others))
        np.testing.assert_array_equal(store.tables["embedding"].read(rows), expected)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"quantize": 3}, OptionError, "3 bits are not offered; choose one of 4, 5, 6, 8"),
        ({"quantize": 4, "group_size": 16}, OptionError, "Groups of 16 are not offered"),
        (
            {"quantize": 4, "group_size": 128},
            ModelError,
            "no matrix whose rows can be cut into groups of 128",
        ),
    ],
)
def test_unpackable_models_are_refused(options, error, sentence, tmp_path):
    source = plain.write_model(tmp_path / "in")
    with pytest.raises(error, match=sentence):
        convert(source, tmp_path / "out", **options)


def test_other_models_and_quantized_ones_are_refused(tmp_path):
    other = plain.write_model(tmp_path / "other", model_type="gpt_neox")
    with pytest.raises(ModelError, match=r"is a gpt_neox model; vt quantizes cohere, .*mlx_lm.convert"):
        convert(other, tmp_path / "out", quantize=4)
    experts = plain.write_model(tmp_path / "experts", model_type="gemma4_text", enable_moe_block=True)
    with pytest.raises(ModelError, match="has experts, which vt would leave as they are"):
        convert(experts, tmp_path / "out", quantize=4)
    again = plain.write_model(tmp_path / "again", quantization={"bits": 4, "group_size": 32})
    with pytest.raises(ModelError, match="is quantized already"):
        convert(again, tmp_path / "out", quantize=4)


def test_command(tmp_path):
    source = write_model(tmp_path / "in", "llama", "bfloat16", **SIZES)
    run = CliRunner().invoke
    assert run(command, [str(source), str(tmp_path / "out"), "--group-size", "32"]).exit_code == 2
    result = run(command, [str(source), str(tmp_path / "out"), "--quantize", "4", "--group-size", "32"])
    assert result.exit_code == 0, result.output
    described = run(build("torch"), ["inspect", str(tmp_path / "out")])
    assert "4 bits in groups of 32; the embedding in 4 bits in groups of 32" in described.stdout
    said = json.loads(run(build("torch"), ["inspect", str(tmp_path / "out"), "--json"]).stdout)
    table = {"bits": 4, "group_size": 32}
    assert said["quantization"] == table | {"mode": "affine", "tables": {"embedding": table}}
