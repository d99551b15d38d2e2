"""The constraint of an answer: masks, steps forward and back, and the tokens of a tokenizer."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.decode.constraints import engines
from tests.core.decode.constraints.engines import END, ROWS, TURN, UNUSED, engine, text_of, walk
from tests.core.decode.constraints.test_schema import SCHEMAS
from vt_core.decode.constraints import Engine, grammar_option
from vt_core.errors import ConstraintError
from vt_core.vocab.token_bytes import Kind

LARK = """
start: greeting (" and " greeting)*
greeting: "hi" | "good " TIME
TIME: /morning|evening/
"""


@settings(max_examples=40)
@given(st.sampled_from([*SCHEMAS, "regex", "lark"]), st.integers(0, 2**32))
def test_steps_forward_and_back_equal_a_fresh_start(name, seed):
    given_ = {"regex": {"regex": "(ab|a*c)+[0-9]{0,3}"}, "lark": {"grammar": LARK}}
    grammar = grammar_option(**given_.get(name, {"json_schema": SCHEMAS.get(name)}))
    rng = np.random.default_rng(seed)
    constraint, tokens = engine().start(grammar), []
    for _ in range(25):
        allowed = np.flatnonzero(constraint.allowed)
        if len(allowed) == 0 or (tokens and rng.random() < 0.35):
            count = int(rng.integers(1, len(tokens) + 1))
            constraint.rewind(count)
            del tokens[-count:]
        else:
            token = int(rng.choice(allowed))
            constraint.advance(token)
            tokens.append(token)
        fresh = engine().start(grammar)
        for token in tokens:
            assert fresh.accepts(token)
            fresh.advance(token)
        assert np.array_equal(fresh.allowed, constraint.allowed)
        assert fresh.finished == constraint.finished


def test_padding_unused_and_special_tokens_are_never_allowed():
    constraint = engine().start(grammar_option(regex="(?s:.)*"))
    assert constraint.allowed.shape == (ROWS,)
    assert np.flatnonzero(~constraint.allowed[engines.FIRST_SPECIAL :]).tolist() == [1, 3, 4]
    assert constraint.accepts(END) and constraint.accepts(TURN) and not constraint.accepts(UNUSED)


def test_an_eos_that_is_not_marked_special_is_not_text():
    own = Engine(engines.table(turn=Kind.ADDED), ROWS, {END, TURN}, engines.encode)
    constraint = own.start(grammar_option(regex="<turn>x"))
    assert not constraint.accepts(TURN)
    assert constraint.accepts(ord("<"))


def test_masks_stay_as_they_were():
    constraint = engine().start(grammar_option(regex="ab"))
    first = constraint.allowed
    constraint.advance(ord("a"))
    assert np.flatnonzero(first).tolist() == [ord("a")]
    assert np.flatnonzero(constraint.allowed).tolist() == [ord("b")]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = True


def test_forced_tokens_are_those_of_the_tokenizer():
    constraint = engine().start(grammar_option(json_schema=SCHEMAS["flat"]))
    forced = constraint.forced()
    assert text_of(forced) == '{"name": "'[: len(text_of(forced))] and len(forced) >= 2
    for token in forced:
        assert constraint.only == token
        constraint.advance(token)


def test_nothing_follows_the_end():
    constraint = engine().start(grammar_option(regex="a?"))
    assert constraint.accepts(END) and not constraint.finished
    constraint.advance(END)
    assert not constraint.allowed.any() and constraint.finished
    assert constraint.forced() == [] and constraint.prefix([ord("a")]) == []
    constraint.rewind(1)
    constraint.advance(ord("a"))
    assert constraint.finished and constraint.only is None
    assert np.flatnonzero(constraint.allowed).tolist() == [END, TURN]


def test_prefix_ends_before_the_first_token_that_cannot_follow():
    constraint = engine().start(grammar_option(regex="abcd"))
    assert constraint.prefix([ord("a"), ord("b"), ord("x"), ord("c")]) == [ord("a"), ord("b")]
    assert constraint.prefix([ord("a"), END]) == [ord("a")]
    assert np.flatnonzero(constraint.allowed).tolist() == [engines.encode("abc")[0]]


def test_answers_match_a_regular_expression_and_a_grammar():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        expression = "(ab|a*c)+[0-9]{0,3}é"
        assert re.fullmatch(expression, text_of(walk(engine().start(grammar_option(regex=expression)), rng)))
        text = text_of(walk(engine().start(grammar_option(grammar=LARK)), rng))
        assert re.fullmatch("(hi|good (morning|evening))( and (hi|good (morning|evening)))*", text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"regex": "("}, "regex cannot be enforced .*unclosed group"),
        ({"regex": "a(?=b)"}, "regex cannot be enforced .*look-around"),
        ({"regex": r"[^\s\S]"}, "regex allows no text at all"),
        ({"grammar": "start: foo"}, "grammar cannot be enforced .*unknown name"),
        ({"grammar": ""}, "grammar cannot be enforced"),
        ({"grammar": 'start: %json {"uniqueItems": true}'}, "grammar: %json uses uniqueItems"),
        (
            {"grammar": 'start: %json {"x-guidance": {"lenient": true}, "type": "null"}'},
            "must not say lenient",
        ),
        ({"regex": "a" * (1 << 21)}, "more than the limit"),
    ],
)
def test_what_cannot_be_followed_is_refused(options, sentence):
    with pytest.raises(ConstraintError, match=sentence):
        grammar_option(**options)


def test_json_in_a_grammar_is_followed():
    grammar = grammar_option(
        grammar='start: "x" %json {"x-guidance": {"whitespace_flexible": false}, "enum": [12]}'
    )
    assert engines.accepts(grammar, "x12") and not engines.accepts(grammar, "x1")


def test_a_tokenizer_that_cannot_write_the_text_is_an_error():
    table = engines.table()
    table.bytes[ord("z")] = None
    constraint = Engine(table, ROWS, {END}, engines.encode).start(grammar_option(regex="a|bz"))
    constraint.advance(ord("b"))
    with pytest.raises(ConstraintError, match="no token of the model's tokenizer continues"):
        _ = constraint.allowed


def test_tokens_that_put_a_space_in_front_still_spell_forced_text():
    def encode(text):
        return engines.encode(" " + text)  # as SentencePiece does

    own = Engine(engines.table(), ROWS, {END}, encode)
    forced = own.start(grammar_option(regex='name": true')).forced()
    assert text_of(forced) == 'name": true' and forced == engines.encode('name": true')


def test_literals_are_the_tokens_of_names_and_values():
    ids = engine().literals(grammar_option(json_schema={"properties": {"name": {"const": "abc"}}}))
    texts = {table for table in (engines.table().bytes[token] for token in ids if token < 269)}
    assert {b"name", b"na", b"abc", b'{"', b'": ', b'", "', b'"}', b"n"} <= texts
    assert b"12" not in texts and b"z" not in texts
    assert set(engine().literals(grammar_option(regex="abc"))) == {END, TURN}


def test_constraints_of_one_grammar_are_independent_and_move_between_threads():
    grammar = grammar_option(json_schema=SCHEMAS["flat"])

    def answer(seed):
        return walk(engine().start(grammar), np.random.default_rng(seed))

    alone = [answer(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answer, range(6))) == alone
    constraint = engine().start(grammar)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(constraint.advance, constraint.only).result()
    assert constraint.allowed.any()
