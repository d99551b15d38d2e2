from __future__ import annotations

import math

import pytest

from vt_core.files.architectures import (
    ARCHITECTURES,
    EMBEDDING_MODULES,
    HEAD_MODULES,
    UNKNOWN,
    Architecture,
    architecture,
    architecture_of,
    logit_transform,
)


def test_model_types_tie_their_tables_by_default_as_in_transformers():
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    modeling = pytest.importorskip("transformers.models.auto.modeling_auto")
    known = auto.CONFIG_MAPPING_NAMES.keys() & modeling.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    rows = known & ARCHITECTURES.keys()
    assert len(rows) > 40
    for model_type in sorted(rows | {"llama", "olmo", "qwen2_moe", "stablelm"}):
        assert auto.CONFIG_MAPPING[model_type]().tie_word_embeddings is architecture(model_type).tied, (
            model_type
        )


def test_unknown_model_types_are_treated_like_llama_with_tables_of_any_known_name():
    assert architecture("made-up") is UNKNOWN and not UNKNOWN.tied
    llama = Architecture()
    assert UNKNOWN.embedding[: len(llama.embedding)] == llama.embedding
    assert {"model.tok_embeddings", "transformer.wte"} <= {*UNKNOWN.embedding}
    assert {"embed_tokens", "wte", "embed_in"} <= {*EMBEDDING_MODULES}
    assert {"lm_head", "embed_out", "output"} <= {*HEAD_MODULES}


def test_language_model_inside_a_model_counts_where_the_whole_is_unknown():
    assert architecture_of({"model_type": "llava", "text_config": {"model_type": "gpt2"}}).tied
    assert architecture_of({"model_type": "gpt2", "text_config": {"model_type": "llama"}}).tied
    assert architecture_of({"model_type": ["gpt2"], "text_config": "gpt2"}) is UNKNOWN


@pytest.mark.parametrize(
    ("model_type", "values", "in_mlx", "expected"),
    [
        ("cohere", {"logit_scale": 0.5}, False, 1.0),
        ("granite", {"logits_scaling": 4.0}, False, 0.5),
        ("gemma2", {"final_logit_softcapping": 3.0}, False, 3 * math.tanh(2 / 3)),
        ("recurrent_gemma", {"logits_soft_cap": 3.0}, True, 3 * math.tanh(2 / 3)),
        ("made-up", {"logit_scale": 2.0, "logits_scaling": 8.0}, True, 0.5),
        ("falcon_h1", {"lm_head_multiplier": 3.0}, False, 6.0),
        ("falcon_h1", {"lm_head_multiplier": 3.0}, True, 2.0),
        (
            "falcon_h1",
            {"lm_head_multiplier": 3.0, "embedding_multiplier": 6.0, "tie_word_embeddings": True},
            True,
            1.0,
        ),
        ("llama", {}, False, 2.0),
    ],
)
def test_logit_transform(model_type, values, in_mlx, expected):
    transform = logit_transform(architecture(model_type), values.get, in_mlx=in_mlx)
    assert transform.apply(2.0, math.tanh) == pytest.approx(expected)
    assert transform.changes_nothing == (expected == 2.0)
