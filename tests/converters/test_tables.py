from __future__ import annotations

from typing import Any

import pytest

from converters.config import written_config
from converters.source import TensorInfo
from converters.tables import EMBEDDING_NAMES, HEAD_NAMES, TIED_BY_DEFAULT, find_tables, is_tied
from vt_core.errors import ModelError


def info(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, "bfloat16", shape or (10, 4))


EMBEDDING, HEAD, BIAS = info("model.embed_tokens.weight"), info("lm_head.weight"), info("lm_head.bias", 10)
BODY = info("model.norm.weight", 4)


@pytest.mark.parametrize("name", EMBEDDING_NAMES)
@pytest.mark.parametrize("head", HEAD_NAMES)
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


@pytest.mark.parametrize(
    "model_type",
    [
        *(
            "gemma",
            "gemma2",
            "gemma3_text",
            "gpt2",
            "cohere2",
            "falcon",
            "mamba",
            "opt",
            "smollm3",
            "starcoder2",
        ),
        *("llama", "qwen2", "qwen3", "mistral", "phi3", "granite", "olmo2", "gpt_neox"),
    ],
)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    assert auto.CONFIG_MAPPING[model_type]().tie_word_embeddings is (model_type in TIED_BY_DEFAULT)


def test_tied_model_that_stores_its_head_too() -> None:
    tables = find_tables({"tie_word_embeddings": True}, [EMBEDDING, HEAD, BODY])
    assert tables.tied and tables.dropped == (HEAD,)
    assert tables.names == {EMBEDDING.name, HEAD.name}


@pytest.mark.parametrize("tied", [True, False])
def test_head_bias(tied: bool) -> None:
    tables = find_tables({"tie_word_embeddings": tied}, [EMBEDDING, HEAD, BIAS])
    assert tables.head_bias == BIAS
    assert BIAS.name in tables.names


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
    "no matrix": ({}, [info("wte.weight", 10)], r"shape \[10\], which is no table"),
    "empty": ({}, [info("wte.weight", 0, 4)], r"shape \[0, 4\], which is no table"),
    "bias of another length": (
        {"tie_word_embeddings": False},
        [EMBEDDING, HEAD, info("lm_head.bias", 9)],
        r"bias has the shape \[9\]; it needs one value for each of the 10 rows",
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


@pytest.mark.parametrize("family", ["Gemma3n", "Gemma4"])
def test_models_with_a_table_for_their_layers_are_refused_by_name(family: str) -> None:
    """Their bodies look ids up by themselves, and would be given places in the table of a prompt."""
    torch = pytest.importorskip("torch")
    import transformers

    if not hasattr(transformers, f"{family}TextConfig"):
        pytest.skip(f"this transformers has no {family}")
    config = getattr(transformers, f"{family}TextConfig")(
        vocab_size=50,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=4,
        num_hidden_layers=5,
        num_kv_shared_layers=0,
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    tensors = [info(name, *tensor.shape) for name, tensor in model.state_dict().items()]
    with pytest.raises(ModelError, match=rf"{config.model_type}.*model.embed_tokens_per_layer.weight"):
        find_tables(config.to_dict(), tensors)
