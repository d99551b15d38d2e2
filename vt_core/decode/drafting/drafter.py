"""Drafts from the n-gram table of the task and from the request's own text, longest match first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from vt_core.decode.drafting.acceptance import MAX_RUN, Acceptance, Kind, both_kind, context_kind, corpus_kind
from vt_core.vocab.ngrams import BEGIN, END, Found, NgramTable, context_hashes

#: Most drafted tokens of a read.
MAX_DRAFT = 16
#: Longest context in the request's own text.
CONTEXT = 4
#: Tokens at the end of a prompt whose n-grams are kept, to bound memory: 150 bytes for each n-gram.
MAX_PROMPT = 16_384
#: A draft ends where it is right as a whole with a lower probability than this.
_FLOOR = 0.02

_ID_BITS = 32
_ID = (1 << _ID_BITS) - 1


class Drafted(NamedTuple):
    """Proposed next tokens."""

    ids: list[int]  #: full ids
    rates: list[float]  #: probability of each id, if those before it are right


class Drafter:
    """Proposes the next tokens of one request."""

    def __init__(
        self,
        acceptance: Acceptance,
        tables: Sequence[NgramTable] = (),
        *,
        rows: int,
        eos_ids: Collection[int] = (),
    ) -> None:
        """
        Args:
            acceptance: what earlier requests learned; this one adds to it.
            tables: n-gram tables of the tasks; none drafts from the request's text alone.
            rows: V. Ids from there on are never drafted.
            eos_ids: full ids that end the text; a draft ends with the first of them. For the end of an
                output in the tables stands the one that ended the last request, else any.
        """
        self._acceptance = acceptance
        self._tables = tables
        self._rows = rows
        self._eos_ids = eos_ids
        self._end = acceptance.end_id if acceptance.end_id in eos_ids else next(iter(eos_ids), None)
        self._longest = max([CONTEXT, *(table.longest for table in tables)])
        self._tail: list[int] = []  #: the last tokens of the text, as many as a context may have
        self._written = 0  #: tokens of the output
        #: What followed each context of the text last, and how many times in a row: `run << 32 | id`.
        self._followed: dict[int, int] = {}

    @property
    def recent(self) -> float:
        """Share of the latest tokens that a draft would have begun with."""
        return self._acceptance.recent

    def begin(self, prompt: Iterable[int]) -> None:
        """Read the prompt, full ids. The output begins after it."""
        for id in [*prompt][-MAX_PROMPT:]:
            self._push(context_hashes(self._tail, CONTEXT), id)
        self._written = 0

    def extend(self, ids: Iterable[int]) -> None:
        """Note that the output goes on with `ids`, and learn how good proposals for them would have been."""
        for id in ids:
            hashes = context_hashes(self._tail, self._longest)
            token, kind = self._guess(self._tail, hashes, self._written) or (None, None)
            self._acceptance.learn(kind, token == id)
            if id in self._eos_ids:
                self._acceptance.end_id = id
            self._push(hashes[:CONTEXT], id)
            self._written += 1

    def draft(self, most: int = MAX_DRAFT, pending: Sequence[int] = ()) -> Drafted:
        """Propose at most `most` ids that follow the text and `pending`, maybe none. Changes nothing.

        Args:
            pending: full ids at the end of the output that :meth:`extend` was not told of yet.
        """
        tail = [*self._tail, *pending]
        drafted = Drafted([], [])
        chance = 1.0
        while len(drafted.ids) < most and not (drafted.ids and drafted.ids[-1] in self._eos_ids):
            written = self._written + len(pending) + len(drafted.ids)
            guess = self._guess(tail, context_hashes(tail, self._longest), written)
            if guess is None:
                break
            id, kind = guess
            rate = self._acceptance.rate(kind)
            chance *= rate
            if chance < _FLOOR:
                break
            drafted.ids.append(id)
            drafted.rates.append(rate)
            tail.append(id)
        return drafted

    def _push(self, hashes: list[int], id: int) -> None:
        """Append `id` to the text; `hashes` are those of the contexts before it."""
        followed = self._followed
        for hash in hashes:
            entry = followed.get(hash, 0)
            again = entry & _ID == id and entry >> _ID_BITS < MAX_RUN
            followed[hash] = entry + (1 << _ID_BITS) if again and entry else 1 << _ID_BITS | id
        self._tail.append(id)
        del self._tail[: -self._longest]

    def _guess(self, tail: list[int], hashes: list[int], written: int) -> tuple[int, Kind] | None:
        """The likeliest next token and its class, or None.

        Args:
            tail: the end of the text.
            hashes: of the contexts at its end.
            written: how many tokens of the text are output.
        """
        found = self._from_corpus(tail, hashes, written)
        context = self._from_context(hashes)
        if found is None:
            return context
        if context is not None and context[0] == found.token:
            return found.token, both_kind(found.order, found.share)
        corpus = found.token, corpus_kind(found.order, found.share)
        if context is None:
            return corpus
        return max(corpus, context, key=lambda guess: self._acceptance.rate(guess[1]))

    def _from_corpus(self, tail: list[int], hashes: list[int], written: int) -> Found | None:
        if written < self._longest:
            # Contexts of the tables begin in the output, whatever the prompt ends with.
            hashes = context_hashes([BEGIN, *tail[len(tail) - written :]], self._longest)
        found: Found | None = None
        for table in self._tables:
            other = table.find(hashes)
            if other and (found is None or (other.order, other.times) > (found.order, found.times)):
                found = other
        if found is not None and found.token == END:
            return None if self._end is None else found._replace(token=self._end)
        return found if found is not None and found.token < self._rows else None

    def _from_context(self, hashes: list[int]) -> tuple[int, Kind] | None:
        for order in range(min(len(hashes), CONTEXT), 0, -1):
            if entry := self._followed.get(hashes[order - 1]):
                return entry & _ID, context_kind(order, entry >> _ID_BITS)
        return None
