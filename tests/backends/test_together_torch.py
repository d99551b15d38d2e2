"""Tokens of several slots read in one pass give the hidden states of the same reads one by one."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import DynamicCache  # noqa: E402

from converters.cache import resolve  # noqa: E402
from tests.families import FAMILIES  # noqa: E402
from tests.tiny import ARCHITECTURES, KINDS  # noqa: E402
from vt_core.files.model_dir import ModelDirectory  # noqa: E402
from vt_torch.growing import new_cache  # noqa: E402
from vt_torch.loading import load_decoder  # noqa: E402
from vt_torch.together import Together  # noqa: E402

RUN = [
    kind for kind in (*KINDS, *ARCHITECTURES) if kind not in FAMILIES or "torch" in FAMILIES[kind].backends
]
#: Before, at and after the windows of 16.
LENGTHS = (3, 15, 16, 40)
IDS = 500


@dataclass
class Slot:
    cache: DynamicCache
    ids: list[int] = field(default_factory=list)


class Body:
    """A tiny model whose table holds its first ids, and the hidden states of its reads."""

    def __init__(self, directory, dtype="float32", quantize=None):
        decoder = load_decoder(
            ModelDirectory.open(resolve(directory, quantize=quantize, progress=False)),
            head="prealloc",
            store="lmdb",
            device="cpu",
            dtype=dtype,
            tile_bytes=None,
        )
        decoder.head.set_static(range(IDS))
        self.decoder, self.model = decoder, decoder._model
        self.inputs = decoder._rows.inputs(np.arange(IDS))
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep)
        self.together = Together(self.model)

    def _keep(self, _module, arguments):
        self.states = arguments[0][0].clone()

    def slot(self, ids=()) -> Slot:
        slot = Slot(new_cache(self.model.config))
        if len(ids):
            self.read(slot, ids)
            slot.cache.activate_past_recording()
            slot.cache.crop(0)
        return slot

    def read(self, slot, ids):
        """Hidden states ``[n, hidden]`` of a read alone."""
        index = self._look_up(ids)
        with torch.inference_mode():
            self.model(input_ids=index, past_key_values=slot.cache, use_cache=True)
        slot.ids.extend(ids)
        return self.states

    def read_together(self, slots, texts):
        """Hidden states of one packed read, for each slot."""
        counts = [len(ids) for ids in texts]
        index = self._look_up([token for ids in texts for token in ids])
        with torch.inference_mode():
            self.together.run(
                [slot.cache for slot in slots], [len(slot.ids) for slot in slots], index, counts
            )
        for slot, ids in zip(slots, texts, strict=True):
            slot.ids.extend(ids)
        return self.states.split(counts)

    def passes_probe(self):
        """Whether two slots may be read together, tried out anew."""
        self.decoder._runs_alike = None
        return self.may_run_together()

    def may_run_together(self):
        with torch.inference_mode():
            return self.decoder._fits_together([])

    def crop(self, slot, count):
        slot.cache.crop(-count)
        if count:
            del slot.ids[-count:]

    def _look_up(self, ids):
        index = torch.tensor([ids])
        self.model.get_input_embeddings().table = self.inputs.embedding
        if self.inputs.per_layer is not None:
            self.model.base_model.embed_tokens_per_layer.rows = self.inputs.per_layer[index]
        return index


@pytest.fixture(scope="module")
def body(tiny):
    return cache(lambda kind, *options: Body(tiny(kind)[1], *options))


def _text(rng, count):
    return rng.integers(3, IDS, count).tolist()


def _distance(states, expected):
    return float((states - expected).norm() / expected.norm())


def _must_run_alone(body):
    """Recurrent layers run over a whole sequence; longrope rotates by the longest text of a call."""
    layers = body.slot().cache.layers
    return any(hasattr(layer, "conv_states") for layer in layers) or body.model.config.model_type == "phi3"


@pytest.mark.parametrize("kind", RUN)
def test_reads_together_equal_reads_alone(body, kind):
    body, rng = body(kind), np.random.default_rng(0)
    if _must_run_alone(body):
        assert not body.together.divides([body.slot().cache])
        return
    slots = [body.slot(_text(rng, length)) for length in LENGTHS]
    assert body.together.divides([slot.cache for slot in slots])
    assert body.passes_probe()
    alone = deepcopy(slots)
    for counts in ((1, 1, 1, 1), (2, 1, 5, 3), (1, 7, 1, 1)):
        texts = [_text(rng, count) for count in counts]
        states = body.read_together(slots, texts)
        for slot, ids, given in zip(alone, texts, states, strict=True):
            assert _distance(given, body.read(slot, ids)) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma3n", "gpt2", "gpt_oss"])
def test_other_slots_never_change_a_slot(body, kind):
    """Random reads, together and alone, and rewinds leave each slot as a new slot with its text."""
    body, rng = body(kind), np.random.default_rng(1)
    slots = [body.slot(_text(rng, length)) for length in LENGTHS]
    for _ in range(12):
        chosen = [slots[at] for at in rng.permutation(len(slots))[: rng.integers(1, 5)]]
        read = [_text(rng, rng.integers(1, 5)) for _ in chosen]
        if len(chosen) > 1:
            body.read_together(chosen, read)
        else:
            body.read(chosen[0], read[0])
        for slot, ids in zip(chosen, read, strict=True):
            body.crop(slot, rng.integers(0, len(ids) + 1))
    last = [[int(rng.integers(3, IDS))] for _ in slots]
    states = body.read_together(slots, last)
    for slot, given in zip(slots, states, strict=True):
        assert slot.cache.get_seq_length() == len(slot.ids)
        assert _distance(given, body.read(body.slot(), slot.ids)[-1:]) < 1e-5


def test_new_slots_may_be_read_together(body):
    body, rng = body("gemma3"), np.random.default_rng(2)
    slots, texts = [body.slot(), body.slot(_text(rng, 20))], [_text(rng, 25), _text(rng, 1)]
    alone = deepcopy(slots)
    states = body.read_together(slots, texts)
    for slot, ids, given in zip(alone, texts, states, strict=True):
        assert _distance(given, body.read(slot, ids)) < 1e-5


def test_reads_alone_stay_the_same_after_reads_together(body):
    body, rng = body("gemma3"), np.random.default_rng(3)
    text = _text(rng, 20)
    slot, others = body.slot(text), [body.slot(text[:5]), body.slot(text)]
    before = body.read(slot, [7, 8]), body.read(slot, [9])
    names = [config._attn_implementation for config in body.together._configs]
    body.read_together(others, [[1], [2, 3]])
    with pytest.raises(IndexError):
        body.read_together(others, [[1], [IDS]])
    assert [config._attn_implementation for config in body.together._configs] == names == ["sdpa"]
    slot = body.slot(text)
    assert torch.equal(body.read(slot, [7, 8]), before[0])
    assert torch.equal(body.read(slot, [9]), before[1])


def _ignore_positions(body, monkeypatch):
    """The model counts positions itself."""
    forward = body.model.base_model.rotary_emb.forward

    def wrong(states, position_ids):
        return forward(states, position_ids=torch.arange(states.shape[1])[None])

    monkeypatch.setattr(body.model.base_model.rotary_emb, "forward", wrong)


def _attend_by_itself(body, monkeypatch):
    """A layer that computes its attention without transformers' registry."""
    layer = body.model.base_model.layers[1].self_attn

    def forward(hidden_states, position_embeddings=None, past_key_values=None, **_):
        states = hidden_states.view(1, -1, 4, 12).transpose(1, 2)
        keys, values = past_key_values.update(states[:, :2], states[:, :2], layer.layer_idx)
        output = torch.nn.functional.scaled_dot_product_attention(states, keys, values, enable_gqa=True)
        return output.transpose(1, 2).reshape(1, -1, 48), None

    monkeypatch.setattr(layer, "forward", forward)


def _mix_tokens(body, monkeypatch):
    """A layer that depends on other tokens of the read."""
    mlp = body.model.base_model.layers[0].mlp
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda states: forward(states) + states.cumsum(dim=1))


def _compute_nothing(body, monkeypatch):
    norm = body.model.base_model.norm
    monkeypatch.setattr(norm, "forward", lambda states: states * float("nan"))


@pytest.mark.parametrize("change", [_ignore_positions, _attend_by_itself, _mix_tokens, _compute_nothing])
def test_probe_refuses(body, monkeypatch, change):
    body = body("llama")
    assert body.passes_probe()
    change(body, monkeypatch)
    assert not body.passes_probe()


def test_probe_runs_once(body, monkeypatch):
    body = body("llama")
    assert body.passes_probe()
    _mix_tokens(body, monkeypatch)
    assert body.may_run_together()


def test_a_full_device_ends_the_probe_and_the_next_read_tries_again(body, monkeypatch):
    body = body("llama")

    def full(*_):
        raise torch.OutOfMemoryError("the device is full")

    with monkeypatch.context() as patch:
        patch.setattr(body.together, "run", full)
        patch.setattr(body.decoder, "_together", body.together)
        with pytest.raises(torch.OutOfMemoryError):
            body.passes_probe()
    assert body.may_run_together()


@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", None), ("float16", None), ("float32", "int8")])
def test_other_types_pass_the_probe(body, dtype, quantize):
    assert body("gemma3", dtype, quantize).passes_probe()
