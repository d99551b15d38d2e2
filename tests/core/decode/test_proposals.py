"""Tokens that are proposed under a grammar."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.core.decode.constraints.engines import encode, engine
from vt_core.decode.constraints import grammar_option
from vt_core.decode.drafting import Drafted
from vt_core.decode.proposals import Proposals


class Copying:
    """A drafter that proposes one text, and notes after what."""

    def __init__(self, text):
        self.ids = encode(text)

    def draft(self, most, pending):
        self.after = list(pending)
        return Drafted(self.ids[:most], [0.5] * len(self.ids[:most]))


def proposed(regex, drafter, forced=True, most=16, draft_tokens=None):
    constraint = engine().start(grammar_option(regex=regex))
    request = SimpleNamespace(
        drafter=drafter,
        guide=SimpleNamespace(constraint=constraint),
        drafts_forced=forced,
        draft_tokens=draft_tokens,
    )
    return Proposals(request, None, None)._proposed([7], most)


def test_the_drafter_goes_on_after_forced_tokens():
    drafter = Copying("bb")
    found = proposed("name[a-c]+", drafter)
    assert found == Drafted([*encode("name"), *encode("bb")], [1.0] * len(encode("name")) + [0.5, 0.5])
    assert drafter.after == [7, *encode("name")]


@pytest.mark.parametrize(("text", "kept"), [("bxb", "b"), ("x", ""), ("", "")])
def test_a_guess_is_cut_where_the_grammar_forbids_it(text, kept):
    found = proposed("name[a-c]+", Copying(text))
    assert found.ids == [*encode("name"), *encode(kept)]
    assert len(found.rates) == len(found.ids)


def test_a_guess_takes_the_place_that_forced_tokens_leave():
    assert proposed("xyz[a-c]+", Copying("abab"), most=5).ids == encode("xyzab")
    assert proposed("xyz[a-c]+", Copying("abab"), most=2).ids == encode("xy")
    assert proposed("xyz[a-c]+", Copying("abab"), draft_tokens=1).ids == encode("xyza")
    assert proposed("xyz[a-c]+", Copying("x"), forced=False).ids == encode("x")
    assert proposed("xyz[a-c]+", None).ids == encode("xyz")
