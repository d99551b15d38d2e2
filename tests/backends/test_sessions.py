"""Conversations: the text of each turn is that of a fresh request, whatever the caches held."""

from __future__ import annotations

import pytest

from tests.conftest import backend_params
from vt_core import load
from vt_core.errors import OptionError, PromptError, SessionError

#: Full attention; a window of 16 tokens; recurrent layers.
KINDS = ["llama", "gemma3", "mamba"]
TURNS = ["abc def ghi jkl mno", "pqr stu", "vwx yz abc abc abd"]
every_backend = pytest.mark.parametrize("backend", backend_params())
every_kind = pytest.mark.parametrize("kind", KINDS)


def open_model(backend, kind, tiny):
    model = load(tiny(kind)[1], backend=backend, device="cpu", dtype="float32")
    model.set_static(model.decoder.head.vocabulary.ids[::3])
    return model


def fresh(model, messages, **options):
    """The ids of a request of its own with the same messages."""
    return model.generate(messages, **options).token_ids


@every_backend
@every_kind
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}, {"approximate": True}])
def test_turns_are_those_of_fresh_requests(backend, kind, sampling, tiny):
    model = open_model(backend, kind, tiny)
    session = model.session(system="jkl", max_tokens=12, **sampling)
    for number, turn in enumerate(TURNS):
        before = [*session.messages, {"role": "user", "content": turn}]
        model.forget_learned()
        result = session.send(turn)
        model.forget_learned()
        assert result.token_ids == fresh(model, before, max_tokens=12, **sampling)
        assert session.messages == [*before, {"role": "assistant", "content": result.text}]
        assert (result.stats.cached_tokens > 0) or number == 0 or kind != "llama"


@every_backend
@every_kind
def test_an_edited_turn_is_answered_anew(backend, kind, tiny):
    model = open_model(backend, kind, tiny)
    session = model.session(max_tokens=8)
    session.send(TURNS[0])
    session.send(TURNS[1])
    session.edit(2, TURNS[2])
    assert [message["role"] for message in session.messages] == ["user", "assistant", "user"]
    expected = fresh(model, session.messages, max_tokens=8)
    result = session.send()
    assert result.token_ids == expected
    assert result.stats.cached_tokens > 0 or kind != "llama"
    with pytest.raises(PromptError, match="no message 9"):
        session.edit(9, "x")


@every_backend
@every_kind
def test_a_fork_and_its_origin_do_not_change_each_other(backend, kind, tiny):
    model = open_model(backend, kind, tiny)
    session = model.session(max_tokens=8)
    session.send(TURNS[0])
    other = session.fork()
    messages = list(session.messages)
    for one, turn in ((session, TURNS[1]), (other, TURNS[2]), (session, TURNS[2])):
        asked = [*one.messages, {"role": "user", "content": turn}]
        assert one.send(turn).token_ids == fresh(model, asked, max_tokens=8)
    assert other.messages[:2] == session.messages[:2] == messages
    assert other.messages[2]["content"] == TURNS[2]


@every_backend
@every_kind
def test_a_saved_session_goes_on(backend, kind, tiny, tmp_path):
    file = tmp_path / "talk.safetensors"
    model = open_model(backend, kind, tiny)
    session = model.session(max_tokens=8, temperature=0.5, seed=2, logit_bias={5: 0.5})
    session.send(TURNS[0])
    session.save(file)
    expected = session.send(TURNS[1])
    again = open_model(backend, kind, tiny).load_session(file)
    assert again.messages == session.messages[:2]
    result = again.send(TURNS[1])
    assert result.token_ids == expected.token_ids
    assert result.stats.cached_tokens == expected.stats.cached_tokens
    with pytest.raises(SessionError, match="was saved with model"):
        load(tiny("qwen2")[1], backend=backend, device="cpu", dtype="float32").load_session(file)
    with pytest.raises(SessionError, match="was saved with dtype"):
        load(tiny(kind)[1], backend=backend, device="cpu", dtype="bfloat16").load_session(file)


@every_backend
def test_damaged_session_files_are_refused(backend, tiny, tmp_path):
    model = open_model(backend, "llama", tiny)
    session = model.session(max_tokens=4)
    session.send(TURNS[0])
    file = tmp_path / "talk.safetensors"
    session.save(file)
    content = file.read_bytes()
    for cut in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(SessionError, match=r"talk\.safetensors"):
            model.load_session(file)
    with pytest.raises(SessionError, match="is not a file"):
        model.load_session(tmp_path)


@every_backend
@every_kind
def test_a_stream_that_is_closed_early_keeps_the_conversation(backend, kind, tiny):
    model = open_model(backend, kind, tiny)
    session = model.session(max_tokens=20)
    session.send(TURNS[0])
    stream = session.stream(TURNS[1])
    pieces = [next(stream).text for _ in range(3)]
    stream.close()
    assert session.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    asked = [*session.messages, {"role": "user", "content": TURNS[2]}]
    assert session.send(TURNS[2]).token_ids == fresh(model, asked, max_tokens=20)


@every_backend
def test_a_failed_turn_leaves_the_conversation_as_it_was(backend, tiny, monkeypatch):
    model = open_model(backend, "llama", tiny)
    session = model.session(max_tokens=8)
    session.send(TURNS[0])
    messages = list(session.messages)

    def failing(*_):
        raise MemoryError("the device is full")

    with monkeypatch.context() as patched:
        patched.setattr(model.decoder, "verify", failing)
        with pytest.raises(MemoryError):
            session.send(TURNS[1])
    assert session.messages == messages and session.cached_tokens == 0
    asked = [*messages, {"role": "user", "content": TURNS[1]}]
    assert session.send(TURNS[1]).token_ids == fresh(model, asked, max_tokens=8)


def test_wrong_turns_are_refused_before_anything_runs(tiny):
    backend = next(param.values[0] for param in backend_params() if not param.marks[0].args[0])
    model = open_model(backend, "llama", tiny)
    session = model.session(system="jkl")
    with pytest.raises(PromptError, match="the turn is empty"):
        session.send("")
    with pytest.raises(OptionError, match="max_tokens"):
        session.send("abc", max_tokens=0)
    session.reset()
    assert session.messages == [{"role": "system", "content": "jkl"}]
