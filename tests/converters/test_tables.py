from __future__ import annotations

from typing import Any

import pytest

from converters.config import written_config
from converters.source import TensorInfo
from converters.tables import find_tables, is_tied
from vt_core.errors import ModelError
from vt_core.files.architectures import UNKNOWN


def info(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, "bfloat16", shape or (10, 4))


EMBEDDING, HEAD, BIAS = info("model.embed_tokens.weight"), info("lm_head.weight"), info("lm_head.bias", 10)
BODY = info("model.norm.weight", 4)


@pytest.mark.parametrize("name", [f"{name}.weight" for name in UNKNOWN.embedding])
@pytest.mark.parametrize("head", [f"{name}.weight" for name in UNKNOWN.head])
def test_every_known_pair_of_names(name: str, head: str) -> None:
    tables = find_tables({"tie_word_embeddings": False}, [BODY, info(name), info(head)])
    assert (tables.embedding.name, tables.head and tables.head.name, tables.tied) == (name, head, False)
    assert tables.names == {name, head}


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "llama", "tie_word_embeddings": True}, True),
        ({"model_type": "gemma3_text", "tie_word_embeddings": False}, False),
        ({"model_type": "gemma3_text"}, True),
        ({"model_type": "gpt2"}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "qwen2"}, False),
        ({"model_type": "gemma3_text", "tie_word_embeddings": None}, True),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, True),
        ({"model_type": "llava", "text_config": {"tie_word_embeddings": True}}, True),
        (
            {
                "model_type": "llava",
                "tie_word_embeddings": False,
                "text_config": {"tie_word_embeddings": True},
            },
            False,
        ),
        ({}, False),
    ],
)
def test_tied_or_not(config: dict[str, Any], tied: bool) -> None:
    assert is_tied(config) is tied


def test_tied_model_that_stores_its_head_too() -> None:
    tables = find_tables({"tie_word_embeddings": True}, [EMBEDDING, HEAD, BODY])
    assert tables.tied and tables.dropped == (HEAD,)
    assert tables.names == {EMBEDDING.name, HEAD.name}


@pytest.mark.parametrize("tied", [True, False])
def test_head_bias(tied: bool) -> None:
    tables = find_tables({"tie_word_embeddings": tied}, [EMBEDDING, HEAD, BIAS])
    assert tables.head_bias == BIAS
    assert BIAS.name in tables.names


def test_tied_model_that_stores_only_its_head() -> None:
    tables = find_tables({"tie_word_embeddings": True}, [HEAD, BODY])
    assert tables.tied and tables.embedding == HEAD and tables.names == {HEAD.name}


def test_head_bias_of_a_tied_model_without_a_stored_head() -> None:
    assert find_tables({"tie_word_embeddings": True}, [EMBEDDING, BIAS]).head_bias == BIAS


REFUSED: dict[str, tuple[dict[str, Any], list[TensorInfo], str]] = {
    "no embedding": ({"model_type": "t5"}, [BODY, HEAD], r"\(t5\) has no embedding table"),
    "two embeddings": (
        {},
        [EMBEDDING, info("transformer.wte.weight")],
        "embedding: model.embed_tokens.weight and transf",
    ),
    "two heads": (
        {},
        [EMBEDDING, HEAD, info("embed_out.weight")],
        "head: lm_head.weight and embed_out.weight",
    ),
    "no head": (
        {"model_type": "llama"},
        [EMBEDDING],
        r'no head \(lm_head.weight\).*add "tie_word_embeddings": true',
    ),
    "untied without head": ({"tie_word_embeddings": False}, [EMBEDDING], "no head"),
    "other shape": (
        {"tie_word_embeddings": False},
        [EMBEDDING, info("lm_head.weight", 9, 4)],
        r"\[9, 4\].*\[10, 4\]",
    ),
    "not vocab_size": (
        {"vocab_size": 11, "tie_word_embeddings": True},
        [EMBEDDING],
        "has 10 rows.*vocab_size 11",
    ),
    "nested vocab_size": ({"text_config": {"vocab_size": 11}}, [EMBEDDING], "has 10 rows.*vocab_size 11"),
    "no matrix": ({}, [info("wte.weight", 10)], r"shape \[10\], which is not a table"),
    "empty": ({}, [info("wte.weight", 0, 4)], r"shape \[0, 4\], which is not a table"),
    "bias of another length": (
        {"tie_word_embeddings": False},
        [EMBEDDING, HEAD, info("lm_head.bias", 9)],
        r"bias has the shape \[9\].*one value for each of the 10 rows",
    ),
}


@pytest.mark.parametrize(("config", "tensors", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refused_with_what_is_missing(
    config: dict[str, Any], tensors: list[TensorInfo], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        find_tables(config, tensors)


LLAMA_ROPE = {"rope_theta": 100000.0, "rope_type": "default"}
SCALED_ROPE = {
    "rope_theta": 5e5,
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({"rope_parameters": LLAMA_ROPE}, {"rope_theta": 100000.0}),
        ({"rope_parameters": LLAMA_ROPE, "rope_theta": 3.0}, {"rope_theta": 3.0}),
        ({"rope_parameters": SCALED_ROPE}, {"rope_theta": 5e5, "rope_scaling": SCALED_ROPE}),
        ({"rope_parameters": {**LLAMA_ROPE, "partial_rotary_factor": 0.5}}, {"partial_rotary_factor": 0.5}),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            },
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            },
        ),
        ({"rope_theta": 7.0}, {"rope_theta": 7.0}),
    ],
    ids=["theta", "older key wins", "scaling", "partial", "gemma3", "older form only"],
)
def test_rotary_parameters_stand_where_both_frameworks_look(
    config: dict[str, Any], added: dict[str, Any]
) -> None:
    written = written_config(config, tied=True, dtype=None)
    assert {key: written[key] for key in added} == added
    assert written.get("rope_parameters") == config.get("rope_parameters")
    assert "rope_scaling" in added or "rope_scaling" not in written


def test_written_config_says_tying_and_dtype_and_leaves_the_source_alone() -> None:
    source = {"torch_dtype": "float32", "text_config": {"dtype": "float32"}, "nested": {"a": 1}}
    written = written_config(source, tied=False, dtype="bfloat16")
    assert written["tie_word_embeddings"] is False and written["text_config"]["tie_word_embeddings"] is False
    assert written["torch_dtype"] == "bfloat16" and written["text_config"]["dtype"] == "bfloat16"
    assert source == {"torch_dtype": "float32", "text_config": {"dtype": "float32"}, "nested": {"a": 1}}
    assert written_config({}, tied=True, dtype="float16")["dtype"] == "float16"
    assert "dtype" not in written_config({}, tied=True, dtype=None)


def test_written_config_leaves_an_empty_quantization_out() -> None:
    """transformers would ask what method it is of."""
    for empty in ({}, None):
        assert "quantization_config" not in written_config(
            {"quantization_config": empty}, tied=True, dtype=None
        )


LAYERS = {"num_hidden_layers": 3, "hidden_size_per_layer_input": 2, "vocab_size_per_layer_input": 10}
PER_LAYER = info("model.embed_tokens_per_layer.weight", 10, 6)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model."])
def test_the_table_of_the_layers_is_one_more(prefix: str) -> None:
    names = f"{prefix}embed_tokens.weight", f"{prefix}embed_tokens_per_layer.weight"
    for config in (LAYERS, {"text_config": LAYERS}):
        tables = find_tables(config | {"model_type": "gemma4"}, [BODY, info(names[0]), info(names[1], 10, 6)])
        assert tables.per_layer == info(names[1], 10, 6) and tables.tied
        assert tables.names == set(names)


def test_gemma_3n_may_have_fewer_rows_for_its_layers_and_only_that() -> None:
    config, tensors = LAYERS | {"vocab_size_per_layer_input": 7}, [EMBEDDING, info(PER_LAYER.name, 7, 6)]
    for model_type in ("gemma3n", "gemma3n_text"):
        table = find_tables(config | {"model_type": model_type}, tensors).per_layer
        assert table is not None and table.shape == (7, 6)
    with pytest.raises(ModelError, match=r"has 7 rows for 10 tokens. Only of Gemma 3n"):
        find_tables(config | {"model_type": "gemma4_text"}, tensors)


WRONG_LAYERS: dict[str, tuple[dict[str, Any], list[TensorInfo], str]] = {
    "columns": ({}, [info(PER_LAYER.name, 10, 4)], r"the shape \[10, 4\].*should have \[10, 6\]"),
    "rows": ({"vocab_size_per_layer_input": 11}, [PER_LAYER], r"should have \[11, 6\]"),
    "rows as everywhere": ({"vocab_size_per_layer_input": None}, [PER_LAYER], r"should have \[262144, 6\]"),
    "nothing said": ({"hidden_size_per_layer_input": 0}, [PER_LAYER], "should have none"),
    "missing": ({}, [], r"gives the layers.*no tensor is named …embed_tokens_per_layer.weight"),
    "quantized": (
        {},
        [info("model.embed_tokens_per_layer.qweight", 10, 6)],
        "embed_tokens_per_layer.qweight is a quantized table",
    ),
    "two": ({}, [PER_LAYER, info("embed_tokens_per_layer.weight", 10, 6)], "more than one candidate"),
}


@pytest.mark.parametrize(("change", "tensors", "message"), WRONG_LAYERS.values(), ids=WRONG_LAYERS)
def test_a_wrong_table_of_the_layers(change: dict[str, Any], tensors: list[TensorInfo], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_tables(LAYERS | {"model_type": "gemma4"} | change, [EMBEDDING, *tensors])
