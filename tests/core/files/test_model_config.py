from __future__ import annotations

from typing import Any

import pytest

from vt_core.files.model_config import context


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 512, "n_ctx": 9}, 512),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"text_config": None, "max_position_embeddings": "long"}, None),
        ({"max_position_embeddings": True}, None),
        ({}, None),
    ],
)
def test_context_has_several_names(config: dict[str, Any], tokens: int | None) -> None:
    assert context(config) == tokens


ORIGINAL = "original_max_position_embeddings"


@pytest.mark.parametrize(
    ("scaling", "tokens"),
    [
        ({"type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2}, 256),
        ({"rope_type": "yarn", "factor": 4.0, ORIGINAL: 128}, 512),
        ({"rope_type": "llama3", "factor": 4.0, ORIGINAL: 128}, 512),
        # Already scaled: 4 x 32 tokens.
        ({"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32}, 128),
        ({"rope_type": "longrope", "factor": 2.5, ORIGINAL: 128}, 320),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, 128),
        ({"rope_type": "default", "rope_theta": 10000.0}, 128),
        ({"rope_type": "linear", "factor": 0.5}, 128),
        (
            {
                "full_attention": {"rope_type": "yarn", "factor": 3},
                "sliding_attention": {"rope_type": "default"},
            },
            384,
        ),
        # Odd values are the framework's to refuse.
        ({"rope_type": "linear", "factor": "4"}, 128),
        ({"rope_type": "linear", "factor": float("inf")}, 128),
        ({"rope_type": "linear", "factor": float("nan")}, 128),
        ({"rope_type": "linear", "factor": 1e308}, 128),
        ({"rope_type": ["linear"], "factor": True}, 128),
        ("linear", 128),
        (None, 128),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("nested", [False, True])
def test_scaled_positions_enlarge_the_context(scaling: Any, tokens: int, field: str, nested: bool) -> None:
    config = {"max_position_embeddings": 128, field: scaling}
    assert context({"text_config": config} if nested else config) == tokens


def test_original_length_may_stand_beside_the_scaling() -> None:
    scaling = {"rope_type": "longrope", "factor": 4.0}
    config = {"max_position_embeddings": 128, ORIGINAL: 64, "rope_scaling": scaling}
    assert context(config) == 256


def test_context_of_gemma_3_is_scaled_already() -> None:
    config = {"model_type": "gemma3_text", "max_position_embeddings": 131072}
    assert context(config | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}) == 131072
