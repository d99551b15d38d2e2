"""GGUF files of newer families: the ids are those of the same weights as a Hugging Face directory."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from converters import convert
from converters.gguf_config import build_config
from converters.gguf_file import GGUFFile
from converters.gguf_metadata import Hyperparameters
from converters.gguf_tensors import layout_of, plan_tensors, read_chunks
from tests.conftest import backend_params
from tests.converters.gguf_from_huggingface import KINDS, write_gguf
from vt_core import load
from vt_core.errors import ModelError

PROMPT = list(range(300, 340))


@pytest.fixture(scope="module")
def directories(tmp_path_factory, tiny):
    """``directories(kind)``: a plain directory and a GGUF file, both converted, and the GGUF file."""
    made = {}

    def make(kind):
        if kind not in made:
            source, directory = tiny(kind)
            root = tmp_path_factory.mktemp(kind)
            file = write_gguf(source, root / "model.gguf", kind)
            made[kind] = directory, convert(file, root / "vt", progress=False), file
        return made[kind]

    return make


def ids(path, backend: str) -> list[int]:
    model = load(path, backend=backend, device="cpu", dtype="float32")
    return list(model.generate(PROMPT, max_tokens=12, logit_bias={0: -1e3, 2: -1e3}).token_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", backend_params())
def test_ids_are_those_of_the_hugging_face_directory(directories, backend, kind):
    plain, from_gguf, _ = directories(kind)
    text = ids(plain, backend)
    assert len(set(text)) > 3
    assert ids(from_gguf, backend) == text


def test_gemma3n_keeps_its_sparsity(directories):
    _, from_gguf, _ = directories("gemma3n")
    config = json.loads((from_gguf / "config.json").read_text())
    assert config["text_config"]["activation_sparsity_pattern"] == [0.6, 0.0, 0.3, 0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_metadata_are_refused_with_a_sentence(directories, kind):
    file = GGUFFile(directories(kind)[2])
    keys = [key for key in file.metadata if key.startswith(file.metadata["general.architecture"])]
    whole = dict(file.metadata)
    for key in keys:
        for value in (None, 0, 7, -1, 1.5, float("nan"), "text", np.array([1, 2]), np.array([np.nan] * 9)):
            file.metadata = {name: old for name, old in whole.items() if name != key}
            if value is not None:
                file.metadata[key] = value
            try:
                hyper = Hyperparameters(file)
                plan_tensors(file, layout_of(file), hyper)
                build_config(file, 9, True, "float32")
            except ModelError as error:
                assert str(file.path) in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_shape_are_refused_with_a_sentence(directories, kind):
    file = GGUFFile(directories(kind)[2])
    for name, tensor in list(file.tensors.items()):
        for shape in ((3,), (5, 3), (2, 5, 3)):
            file.tensors[name] = replace(tensor, shape=shape)
            try:
                plans = plan_tensors(file, layout_of(file), Hyperparameters(file))
                for plan in plans.values():
                    if tensor.name in {rows.tensor.name for rows in plan.rows}:
                        assert sum(map(np.size, read_chunks(file, plan, "float32"))) == np.prod(plan.shape)
            except ModelError as error:
                assert str(file.path) in str(error)
            file.tensors[name] = tensor


def refusal(file: GGUFFile, **changes) -> str:
    """Why a file with other metadata is refused."""
    architecture = file.metadata["general.architecture"]
    file.metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    with pytest.raises(ModelError) as caught:
        build_config(file, 9, True, "float32")
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gemma4", {"feed_forward_length": np.array([96, 192, 96, 192, 192])}, "other widths than those of"),
        ("gemma4", {"attention__head_count_kv": np.array([2, 1, 2, 2, 1])}, "other heads than those of"),
        ("gemma4", {"expert_count": 4}, "'gemma4' with experts are not supported"),
        ("gemma4", {"rope__dimension_count_swa": 4}, "a part of the dimensions of its local layers"),
        ("gemma4", {"attention__sliding_window_pattern": 3}, "not a list with a value for each layer"),
        ("granite4-hybrid", {"attention__head_count_kv": 2}, "not both kinds of layers"),
        ("granite4-hybrid", {"ssm__inner_size": 100}, "100 inner dimensions do not fit 48"),
        ("granite", {"attention__scale": "big"}, "granite.attention.scale is 'big', not a finite number"),
        ("qwen3_5", {"ssm__group_count": 3}, "4 heads of values fit neither 32 dimensions nor 3 heads"),
        ("qwen3_5", {"rope__dimension_sections": 3}, "is not a list of three sizes"),
        ("qwen3_5", {"nextn_predict_layers": 3}, "all of its 3 layers guess further tokens"),
    ],
)
def test_models_that_config_json_cannot_describe_are_refused(directories, kind, changes, words):
    assert words in refusal(GGUFFile(directories(kind)[2]), **changes)


def test_layers_that_guess_further_tokens_are_left_out(directories):
    file = GGUFFile(directories("qwen3_5")[2])
    names = set(plan_tensors(file, layout_of(file), Hyperparameters(file)))
    file.metadata |= {"qwen35.block_count": 4, "qwen35.nextn_predict_layers": 1}
    file.tensors["blk.3.nextn.eh_proj.weight"] = file.tensors["blk.0.ffn_up.weight"]
    assert set(plan_tensors(file, layout_of(file), Hyperparameters(file))) == names
    assert build_config(file, 9, True, "float32")["text_config"]["num_hidden_layers"] == 3
