"""What happens in a slot depends on nothing but the tokens that it holds.

Texts are read in any pieces, taken back, settled, cut and copied, with several slots in turn. Afterwards each
slot gives the logits of a text that was read alone, token by token.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import backend_params
from tests.fake import FakeDecoder, fake_table
from tests.families import FAMILIES
from vt_core import load
from vt_core.decode.types import Read
from vt_core.vocab.heads import PreallocHead

#: One kind for each kind of cache.
CACHES = {
    "llama": "full attention",
    "gemma3": "sliding windows",
    "gemma3n": "shared keys, sliding windows",
    "llama-dynamic": "rotation by the length of the text",
    "llama-longrope": "rotation that changes at one length",
    "lfm2": "short convolutions",
    "lfm3": "short convolutions, sliding windows",
    "qwen3_5": "gated deltas",
    "mamba": "a state that is continued with single tokens",
    "mamba2": "a state that is continued with several tokens",
    "falcon_h1": "attention and state in one layer",
    "jamba": "Mamba and attention",
    "nemotron_h": "layers without caches",
    "granite4-hybrid": "Mamba 2 and attention",
    "gpt_oss": "sliding windows with sinks",
}
#: Backends of the kinds that are not in :data:`FAMILIES` and that only some can read.
BACKENDS = {"gpt_oss": ("torch",), "llama-dynamic": ("torch",), "llama-longrope": ("torch",)}
#: Kinds that read a prompt otherwise than its tokens one by one: transformers rotates all of it alike, and
#: limits the time steps of Nemotron-H only where it reads several tokens at once.
PROMPTS = ("llama-dynamic", "llama-longrope", "nemotron_h")
#: Tokens of the tiny models, and of the fake one.
ACTIVE = range(3, 150)
SLOTS = 3

tokens = st.integers(ACTIVE.start, ACTIVE.stop - 1)
slots = st.integers(0, SLOTS - 1)
#: What may happen to a slot: an action, the slot, and numbers whose meaning depends on the action.
actions = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), slots, st.lists(tokens, min_size=1, max_size=20)),
        st.tuples(st.just("read"), slots, st.lists(tokens, min_size=1, max_size=6)),
        st.tuples(st.just("read"), slots, st.lists(tokens, min_size=1, max_size=6)),
        st.tuples(st.just("rewind"), slots, st.integers(0, 9)),
        st.tuples(st.just("rewind"), slots, st.integers(0, 9)),
        st.tuples(st.just("settle"), slots, st.none()),
        st.tuples(st.just("together"), slots, st.lists(tokens, min_size=SLOTS, max_size=2 * SLOTS)),
        st.tuples(st.just("cut"), slots, st.tuples(st.integers(0, 30), tokens)),
        st.tuples(st.just("copy"), slots, st.integers(1, SLOTS - 1)),
        st.tuples(st.just("close"), slots, st.none()),
    ),
    min_size=4,
    max_size=25,
)


class Machine:
    """Slots of a decoder, and what each should hold."""

    def __init__(self, decoder, whole_prompts: bool) -> None:
        """``whole_prompts``: compare with a text whose prompts are read at once."""
        self.decoder = decoder
        self.whole_prompts = whole_prompts
        self.prompts = [[] for _ in range(SLOTS)]  #: first and last place of each prompt
        self.slots = [decoder.open() for _ in range(SLOTS)]
        self.texts = [[] for _ in range(SLOTS)]
        self.settled = [0] * SLOTS  #: tokens that cannot be taken back

    def apply(self, action, at, value) -> None:
        getattr(self, action)(at, value)
        for slot, text in zip(self.slots, self.texts, strict=True):
            assert slot.ids == text

    def prefill(self, at, ids) -> None:
        self.decoder.prefill(self.slots[at], np.array(ids))
        self.prompts[at].append((len(self.texts[at]), len(self.texts[at]) + len(ids)))
        self.texts[at] += ids
        self.settled[at] = len(self.texts[at])

    def read(self, at, ids) -> None:
        if not self.texts[at]:
            self.prefill(at, ids)
            return
        (steps,) = self.decoder.read([Read(self.slots[at], ids)])
        assert len(self.decoder.logits(steps)) == len(ids)
        self.texts[at] += ids

    def together(self, at, ids) -> None:
        reads = []
        for index in (index for index in range(SLOTS) if self.texts[index]):
            part = ids[index::SLOTS]
            reads.append(Read(self.slots[index], part))
            self.texts[index] += part
        if reads:
            self.decoder.read(reads)

    def rewind(self, at, count) -> None:
        count = min(count, len(self.texts[at]) - self.settled[at])
        if count and self.slots[at].can_rewind:
            self.decoder.rewind(self.slots[at], count)
            del self.texts[at][-count:]

    def settle(self, at, _) -> None:
        if self.texts[at]:
            self.decoder.settle(self.slots[at])
            self.settled[at] = len(self.texts[at])

    def cut(self, at, value) -> None:
        length, token = value
        kept = self.decoder.cut(self.slots[at], min(length, len(self.texts[at])))
        assert kept in (0, min(length, len(self.texts[at])))
        del self.texts[at][kept:]
        self.prompts[at] = [(first, min(end, kept)) for first, end in self.prompts[at] if first < kept]
        self.prefill(at, [token])  # a cut slot is for another prompt

    def copy(self, at, distance) -> None:
        other = (at + distance) % SLOTS
        self.close(other, None)
        if self.texts[at]:
            self.slots[other] = self.decoder.copy(self.slots[at])
            self.texts[other] = list(self.texts[at])
            self.prompts[other] = list(self.prompts[at])
            self.settled[other] = len(self.texts[at])  # promised for what is read from now on

    def close(self, at, _) -> None:
        self.decoder.close(self.slots[at])
        self.slots[at] = self.decoder.open()
        self.texts[at], self.prompts[at], self.settled[at] = [], [], 0

    def logits(self, at) -> np.ndarray:
        """What follows the text of a slot and one more token."""
        (steps,) = self.decoder.read([Read(self.slots[at], [ACTIVE[at]])])
        return self.decoder.logits(steps)[-1]

    def pieces(self, at) -> list[list[int]]:
        """The text of a slot as it is read alone."""
        text = self.texts[at]
        prompts = dict(self.prompts[at]) if self.whole_prompts else {}
        pieces, place = [], 0
        while place < len(text):
            end = prompts.get(place, place + 1)
            pieces.append(text[place:end])
            place = end
        return pieces

    def check(self, **tolerance) -> None:
        for at in (at for at in range(SLOTS) if self.texts[at]):
            alone = self.decoder.open()
            for piece in self.pieces(at):
                if len(piece) > 1 or not alone.text:
                    self.decoder.prefill(alone, np.array(piece))
                else:
                    self.decoder.read([Read(alone, piece)])
            (steps,) = self.decoder.read([Read(alone, [ACTIVE[at]])])
            expected = self.decoder.logits(steps)[-1]
            self.decoder.close(alone)
            np.testing.assert_allclose(self.logits(at), expected, **tolerance)


def run(decoder, script, whole_prompts=False, **tolerance) -> None:
    machine = Machine(decoder, whole_prompts)
    try:
        for action in script:
            machine.apply(*action)
        machine.check(**tolerance)
    finally:
        for slot in machine.slots:
            decoder.close(slot)


@given(script=actions)
def test_slots_of_the_fake(script):
    decoder = FakeDecoder(fake_table(), PreallocHead)
    decoder.head.set_static(ACTIVE)
    run(decoder, script, rtol=0, atol=0)


@pytest.fixture(scope="module")
def decoders(tiny):
    loaded = {}

    def make(backend, kind):
        if (backend, kind) not in loaded:
            model = load(tiny(kind)[1], backend=backend, device="cpu", dtype="float32")
            model.decoder.head.set_static(ACTIVE)
            loaded[backend, kind] = model
        return loaded[backend, kind].decoder

    return make


@pytest.mark.parametrize("backend", backend_params())
@pytest.mark.parametrize("kind", CACHES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=actions)
def test_slots(backend, kind, decoders, script):
    if backend not in (FAMILIES[kind].backends if kind in FAMILIES else BACKENDS.get(kind, (backend,))):
        pytest.skip("mlx-lm has no class for it, or reads another layout")
    whole_prompts = backend == "torch" and kind in PROMPTS
    run(decoders(backend, kind), script, whole_prompts, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["qwen3_5", "mamba", "falcon_h1", "lfm2", "granite4-hybrid"])
def test_states_are_saved_once_a_block(kind, decoders, monkeypatch):
    caches = pytest.importorskip("vt_torch.caches")
    decoder = decoders("torch", kind)
    taken = []
    original = caches.Snapshot.take
    monkeypatch.setattr(caches.Snapshot, "take", lambda *args: taken.append(original(*args)))
    slot = decoder.open()
    decoder.prefill(slot, np.array([5, 6, 7, 8]))
    assert slot.can_rewind and slot.rereads == (kind != "lfm2")
    blocks = 3
    for _ in range(blocks):
        for token in range(10, 16):
            decoder.step(slot, token)
        decoder.rewind(slot, 2)
        decoder.rewind(slot, 0)
        decoder.read([Read(slot, [20, 21, 22])])
        decoder.rewind(slot, 5)
        decoder.settle(slot)
        decoder.settle(slot)
    assert len(taken) == blocks * slot.rereads
    # Nothing is saved for tokens that are final at once.
    slot.takes_back_steps = False
    for token in range(10, 16):
        decoder.step(slot, token)
        decoder.settle(slot)
    assert len(taken) == blocks * slot.rereads
    decoder.read([Read(slot, [20, 21])])
    decoder.rewind(slot, 1)
    assert len(taken) == (blocks + 1) * slot.rereads
    decoder.close(slot)


@pytest.mark.parametrize("kind", ["gemma3", "lfm3", "qwen3_5", "falcon_h1"])
def test_memory_grows_with_full_attention_only(kind, decoders):
    pytest.importorskip("torch")
    decoder = decoders("torch", kind)
    config = decoder._model.config
    slot = decoder.open()
    decoder.prefill(slot, np.arange(5, 45))
    held = []
    for _ in range(40):
        for token in range(10, 18):
            decoder.step(slot, token)
        decoder.rewind(slot, 3)
        decoder.settle(slot)
        decoder.step(slot, 9)
        held.append((len(slot.text), decoder.slot_bytes(slot)))
    full = (layer for layer in slot.cache.layers if getattr(layer, "is_sliding", None) is False)
    layers = len([layer for layer in full if layer.keys is not None])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = layers * 2 * config.num_key_value_heads * head * 4
    (first, before), (last, after) = held[0], held[-1]
    room = 64  # tokens for which a layer may make room at once
    assert abs(after - before - (last - first) * a_token) <= room * a_token
    decoder.close(slot)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("mamba", False), ("jamba", False), ("nemotron_h", False), ("qwen3_5", True), ("mamba2", True)],
)
def test_which_models_continue_with_several_tokens(kind, expected, decoders):
    pytest.importorskip("torch")
    assert decoders("torch", kind)._continues == expected
