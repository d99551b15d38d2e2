from __future__ import annotations

import json
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from vt_core.errors import ModelError
from vt_core.files.adapters import read_adapter

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((4, 2), np.float16)
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
MLX = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 5.0}}


def write(path, config, tensors, name="adapter_model.safetensors"):
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, path / name)
    return path


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        (
            {"r": 16, "rank_pattern": {"k_proj": 7, "q_proj": 2}, "alpha_pattern": {"0.self_attn.q_proj": 3}},
            1.5,
        ),
        ({"alpha_pattern": {"proj": 3}}, 4.0),  # a pattern names whole parts of a path
        ({"alpha_pattern": {r"layers\.[0-9]+\.self_attn\.(q|k)_proj": 3}}, 1.5),
        ({"alpha_pattern": {"^self_attn.q_proj": 3}}, 4.0),
        ({"alpha_pattern": {"(a+)+b": 1, ".*q_proj": 3}}, 1.5),
        ({"rank_pattern": None, "alpha_pattern": {}}, 4.0),
    ],
)
def test_peft_format(tmp_path, more, scale):
    (layer,) = read_adapter(write(tmp_path, PEFT | more, TENSORS))
    assert (layer.module, layer.scale) == ("model.layers.0.self_attn.q_proj", pytest.approx(scale))
    np.testing.assert_array_equal(layer.a, A)
    np.testing.assert_array_equal(layer.b, B.astype(np.float32))


def test_mlx_lm_format(tmp_path):
    tensors = {
        "model.layers.0.mlp.up_proj.lora_a": A.T.copy(),
        "model.layers.0.mlp.up_proj.lora_b": B.T.copy(),
    }
    (layer,) = read_adapter(write(tmp_path, MLX, tensors, "adapters.safetensors"))
    assert (layer.module, layer.scale) == ("model.layers.0.mlp.up_proj", 5.0)
    np.testing.assert_array_equal(layer.a, A)
    np.testing.assert_array_equal(layer.b, B.astype(np.float32))


TABLE = {
    "base_model.model.model.embed_tokens.lora_embedding_A": A,
    "base_model.model.model.embed_tokens.lora_embedding_B": B,
}
HEAD = {"base_model.model.lm_head.lora_A.weight": A, "base_model.model.lm_head.lora_B.weight": B}
REFUSED = {
    "kind": (PEFT | {"peft_type": "IA3"}, TENSORS, "peft_type is 'IA3'"),
    "dora": (PEFT | {"use_dora": True}, TENSORS, "use_dora is True"),
    "bias": (PEFT | {"bias": "all"}, TENSORS, "bias is 'all'"),
    "saved head": (PEFT | {"modules_to_save": ["lm_head"]}, TENSORS, r"modules_to_save is \['lm_head'\]"),
    "pissa": (PEFT | {"init_lora_weights": "pissa_niter_4"}, TENSORS, "changes the model's own weights"),
    "embedding": (PEFT, TABLE, "changes the vocabulary table model.embed_tokens"),
    "head": (PEFT, HEAD, "changes the vocabulary table lm_head"),
    "rank": (PEFT | {"r": 3}, TENSORS, "says rank 3 for .*q_proj, its tensors have 2"),
    "alpha": (PEFT | {"lora_alpha": "much"}, TENSORS, "lora_alpha is 'much'"),
    "huge alpha": (PEFT | {"lora_alpha": 10**400}, TENSORS, "lora_alpha is .* and should be a number"),
    "pattern list": (PEFT | {"rank_pattern": ["q"]}, TENSORS, r"rank_pattern is \['q'\] and should map"),
    "pattern value": (PEFT | {"rank_pattern": {"q": "2"}}, TENSORS, "rank_pattern is .* and should map"),
    "bad pattern": (PEFT | {"rank_pattern": {"(": 2}}, TENSORS, "rank_pattern: '\\(' cannot be matched"),
    "long pattern": (PEFT | {"rank_pattern": {"a|" * 1000: 2}}, TENSORS, "longer than 1000 characters"),
    "list as kind": (PEFT | {"peft_type": ["LORA"]}, TENSORS, r"peft_type is \['LORA'\]"),
    "rank zero": (
        PEFT | {"r": 0},
        {name: tensor[:0] if tensor is A else tensor[:, :0].copy() for name, tensor in TENSORS.items()},
        "not part of a plain LoRA",
    ),
    "half": (PEFT, {f"{LAYER}.lora_A.weight": A}, "one of the two tensors of .* is missing"),
    "ranks": (PEFT, TENSORS | {f"{LAYER}.lora_B.weight": B[:, :1].copy()}, "have the ranks 2 and 1"),
    "magnitude": (PEFT, TENSORS | {f"{LAYER}.lora_magnitude_vector": A[0]}, "not part of a plain LoRA"),
    "integers": (PEFT, {f"{LAYER}.lora_A.weight": A.astype(np.int32)}, "vt reads float adapters"),
    "empty": (PEFT, {}, "has no tensors of an adapter"),
    "nothing": (PEFT, None, "has neither adapter_model.safetensors nor adapters.safetensors"),
}


@pytest.mark.parametrize(("config", "tensors", "message"), REFUSED.values(), ids=REFUSED)
def test_other_adapters_are_refused(tmp_path, config, tensors, message):
    with pytest.raises(ModelError, match=message):
        read_adapter(write(tmp_path, config, tensors))


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_kinds_of_mlx_lm_are_refused(tmp_path, kind):
    tensors = {"model.layers.0.mlp.up_proj.lora_a": A.T.copy()}
    with pytest.raises(ModelError, match=f"fine_tune_type is '{kind}'"):
        read_adapter(write(tmp_path, MLX | {"fine_tune_type": kind}, tensors, "adapters.safetensors"))
    with pytest.raises(ModelError, match=r"lora_parameters.scale is None"):
        read_adapter(write(tmp_path, {"fine_tune_type": "lora"}, tensors, "adapters.safetensors"))
    with pytest.raises(ModelError, match=r"lora_parameters.scale is None"):
        read_adapter(write(tmp_path, MLX | {"lora_parameters": [5.0]}, tensors, "adapters.safetensors"))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no adapter_config.json"):
        read_adapter(tmp_path / "nowhere")
    write(tmp_path, PEFT, None)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="a pickled adapter only"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json"):
        read_adapter(tmp_path)


def test_a_pattern_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vt_core.files.adapters._PATTERN_SECONDS", 0.2)
    config = PEFT | {"rank_pattern": {r"(\w|.)*(\w|.)*(\w|.)*[0-9]": 2}}
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"rank_pattern: .* cannot be matched \(it takes too long\)"):
        read_adapter(write(tmp_path, config, TENSORS))
    assert time.monotonic() - start < 20  # seconds; without a limit, years


def test_a_git_lfs_pointer_is_named(tmp_path):
    write(tmp_path, PEFT, None)
    (tmp_path / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer, not the file itself: run git lfs pull"):
        read_adapter(tmp_path)
