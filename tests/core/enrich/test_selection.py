"""The incremental choice of n-grams equals the published loop, which counts everything anew each time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vt_core.enrich import selection
from vt_core.enrich.selection import SEPARATOR, NGram, select_ngrams

#: Bytes of the tokens of the tests: " in" and " the" collide with " therapy" and " then".
TOKENS = [b" in", b" the", b" therapy", b"a", b"ab", b" then", b"b", None]


def flat(texts):
    ids = [id for text in texts for id in (*text, SEPARATOR)]
    return np.array(ids, np.int32)


def choose(texts, rows, accepts=lambda parts: True, known=None, tokens=TOKENS, **options):
    arguments = {"first_id": len(tokens), "token_bytes": tokens, "known": known or {}, "accepts": accepts}
    return select_ngrams(flat(texts), rows, **arguments, **options)


def naive(texts, rows, n_max, max_collision):
    """The published loop."""
    texts = [list(text) for text in texts]
    parts = {id: (id,) for id in range(len(TOKENS))}
    value = dict(enumerate(TOKENS))
    used, chosen = set(), []
    while len(chosen) < rows:
        counts = Counter(
            tuple(text[at : at + n])
            for text in texts
            for n in range(2, n_max + 1)
            for at in range(len(text) - n + 1)
        )
        left = [
            gram
            for gram, count in counts.items()
            if count > 1 and gram not in used and all(value[id] is not None for id in gram)
        ]
        if not left:
            break
        best = min(left, key=lambda gram: (-counts[gram] * (len(gram) - 1), -counts[gram], gram))
        used.add(best)
        head, last = list(best[:-1]), value[best[-1]]
        size, following = 0, []
        for text in texts:
            for at in range(len(text) - len(head) + 1):
                if text[at : at + len(head)] == head:
                    size += 1
                    following += text[at + len(head) : at + len(head) + 1]
        first = [value[parts[id][0]] or b"" for id in following]
        collision = sum(f.startswith(last) and len(f) > len(last) for f in first) / size
        if collision > max_collision:
            continue
        new = len(TOKENS) + len(chosen)
        parts[new] = tuple(part for id in best for part in parts[id])
        value[new] = b"".join(value[id] for id in best)
        chosen.append(NGram(new, parts[new], counts[best], collision))
        for text in texts:
            at = 0
            while at < len(text):
                if tuple(text[at : at + len(best)]) == best:
                    text[at : at + len(best)] = [new]
                at += 1
    return tuple(chosen), sum(map(len, texts))


TEXTS = st.lists(st.lists(st.integers(0, len(TOKENS) - 1), max_size=14), max_size=8)


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.integers(1, 12), st.integers(2, 4), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 9))
def test_choice_equals_the_naive_loop(texts, rows, n_max, max_collision, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_KEPT_PER_ROW", 0)
        patch.setattr(selection, "_KEPT", kept)  # so that counts are dropped and counted again
        found = choose(texts, rows, n_max=n_max, max_collision=max_collision)
    chosen, tokens = naive(texts, rows, n_max, max_collision)
    assert found.ngrams == chosen
    assert (found.curve[-1].rows, found.curve[-1].tokens) == (len(chosen), tokens)


def test_the_ngram_that_saves_most_tokens_is_first():
    # (3, 6) occurs three times and saves 3 tokens; (0, 1, 4) occurs twice and saves 4.
    texts = [[0, 1, 4], [0, 1, 4], [3, 6], [3, 6], [3, 6]]
    first, second = choose(texts, 9, n_max=3).ngrams
    assert (first.parts, first.frequency) == ((0, 1, 4), 2)
    assert (second.parts, second.frequency) == ((3, 6), 3)


def test_ngrams_contain_merged_tokens():
    texts = [[0, 1, 4, 3, 6], [0, 1, 4, 3, 6]]
    assert [ngram.parts for ngram in choose(texts, 9, n_max=3).ngrams] == [(0, 1, 4), (0, 1, 4, 3, 6)]


def test_a_collision_is_the_share_of_longer_tokens_after_the_head():
    texts = [[0, 1], [0, 1], [0, 2], [0, 5], [0, 3]]  # " in" before " the", " the", " therapy", " then", "a"
    assert choose(texts, 1, n_max=2).ngrams == (NGram(8, (0, 1), 2, 0.4),)
    rejected = choose(texts, 1, n_max=2, max_collision=0.39)
    assert (rejected.ngrams, rejected.collided) == ((), 1)


def test_ngrams_that_the_tokenizer_refuses_are_left_out():
    texts = [[3, 6, 3, 6, 0, 1, 0, 1]]
    found = choose(texts, 5, accepts=lambda parts: parts != (3, 6), n_max=2)
    assert (3, 6) not in {ngram.parts for ngram in found.ngrams} and found.refused == 1
    assert (0, 1) in {ngram.parts for ngram in found.ngrams}


def test_merged_tokens_of_the_corpus_keep_their_parts():
    tokens = [*TOKENS[:-1], b" in the"]
    found = choose([[7, 3], [7, 3]], 1, known={7: (0, 1)}, tokens=tokens)
    assert found.ngrams == (NGram(8, (0, 1, 3), 2, 0.0),)


def test_curve_has_tokens_and_entropy_at_the_sizes_asked_for():
    texts = [[3, 6] * 4]
    found = choose(texts, 9, n_max=2, sizes=[1, 2, 9])
    assert [(point.rows, point.tokens) for point in found.curve[:2]] == [(0, 8), (1, 4)]
    assert found.curve[0].entropy == pytest.approx(1.0) and found.curve[1].entropy == 0.0


def test_a_corpus_without_repeated_ngrams_gives_none():
    found = choose([[0, 1, 2, 3], []], 3)
    assert found.ngrams == () and [point.tokens for point in found.curve] == [4]
    assert choose([], 3).curve[0].tokens == 0


def test_entropy_is_that_of_order_two():
    counts = np.array([1, 1, 2])
    assert selection.renyi2(counts) == pytest.approx(-math.log2((1 + 1 + 4) / 16))
