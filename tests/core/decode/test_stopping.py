"""Stop strings in streamed text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.decode.stopping import StopMatcher
from vt_core.errors import OptionError

letters = st.text("ab", max_size=12)


@given(letters, st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.integers(0, 12)))
def test_shown_text_ends_before_the_first_stop_string_for_any_pieces(text, stops, cuts):
    bounds = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    matcher = StopMatcher(stops)
    shown = ""
    for start, end in pairwise(bounds):
        shown += matcher.push(text[start:end])
        if matcher.stopped:
            break
    else:
        shown += matcher.finish()
    first_end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    if first_end is None:
        assert not matcher.stopped and shown == text
    else:
        assert matcher.stopped
        assert text.startswith(shown) and not any(stop in shown for stop in stops)


def test_text_that_cannot_start_a_stop_string_is_shown_at_once():
    matcher = StopMatcher(["\n\nQ:"])
    assert matcher.push("one\n") == "one"
    assert matcher.push("two") == "\ntwo"
    assert matcher.push("\n\nQ") == ""
    assert matcher.push(": three") == ""
    assert matcher.stopped


def test_empty_stop_string_is_refused():
    with pytest.raises(OptionError, match="stop string is empty"):
        StopMatcher(["x", ""])
