"""Static pruning, the papers' baseline: tokenizer, embedding and head cut to the tokens of a corpus.

The model needs no second copy. The pruned tokenizer keeps the full ids of the tokens that are left, so the
same store serves its prompts, and a static head of exactly those ids is the head of the pruned model.
(VocabTailor's baseline VP.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import TokenizerError
from vt_core.types import Ids
from vt_core.vocab.token_bytes import TokenTable, read_tokenizer_json


class Pruning:
    """What a pruned tokenizer keeps.

    Attributes:
        ids: sorted int64 ``[n]``: the tokens of the corpus, the pieces that merges make them from, all single
            bytes, and special and added tokens. Texts of the corpus are tokenized as before, and any other
            text can still be tokenized.
    """

    def __init__(self, tokenizer_json: str | Path, vocab_rows: int, corpus: Iterable[int]) -> None:
        """Prune a tokenizer.

        Args:
            tokenizer_json: the full tokenizer.
            vocab_rows: rows of the model's table; ids beyond it are dropped.
            corpus: ids that occur in the corpus.

        Raises:
            TokenizerError: the tokenizer is not BPE with merges.
        """
        self._data = read_tokenizer_json(tokenizer_json)
        table = TokenTable.from_json(self._data, str(tokenizer_json))
        model = self._data["model"]
        if model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
            raise TokenizerError(
                f"{tokenizer_json}: static pruning needs a BPE tokenizer with merges, this one is "
                f"{model.get('type')!r}; leave out the variant 'pruned'."
            )
        self._vocab: Mapping[str, int] = model["vocab"]
        self._merges = [_pair(merge) for merge in model["merges"]]
        kept = {id for id, value in enumerate(table.bytes) if value is not None and len(value) == 1}
        kept.update(table.special_ids(vocab_rows).tolist())
        if (unknown := model.get("unk_token")) in self._vocab:
            kept.add(self._vocab[unknown])
        needed = {int(id) for id in corpus} - kept
        self.ids: Ids = np.array(sorted(kept | needed | self._pieces(table, needed)), np.int64)
        self.ids = self.ids[self.ids < vocab_rows]

    def _pieces(self, table: TokenTable, ids: Iterable[int]) -> set[int]:
        """Ids of all intermediate pieces between single characters and the tokens.

        With these pieces the pruned tokenizer finds a token wherever the full one does: merges never cross
        the edge of a token, so they are the same inside any text.
        """
        ranks = {pair: rank for rank, pair in reversed(list(enumerate(self._merges)))}
        found: set[int] = set()
        for id in ids:
            parts = list(table.tokens[id] or "")
            made = list(parts)
            while len(parts) > 1:
                usable = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
                if not usable:
                    break
                _, at = min(usable)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
                made.append(parts[at])
            found.update(self._vocab[part] for part in made if part in self._vocab)
        return found

    def tokenizer_json(self) -> bytes:
        """Content of the pruned tokenizer.json. Tokens keep their ids."""
        kept = set(self.ids.tolist())
        vocab = {token: id for token, id in self._vocab.items() if id in kept}
        added = [entry for entry in self._data.get("added_tokens") or [] if entry["id"] in kept]
        # The library renumbers added tokens that are not in the model's own vocabulary.
        vocab.update((entry["content"], entry["id"]) for entry in added)
        merges = [
            [first, second]
            for first, second in self._merges
            if first in vocab and second in vocab and first + second in vocab
        ]
        model: dict[str, Any] = {**self._data["model"], "vocab": vocab, "merges": merges}
        return json.dumps({**self._data, "added_tokens": added, "model": model}, ensure_ascii=False).encode()


def _pair(merge: Any) -> tuple[str, str]:
    """Parse a merge of either form, ``"a b"`` or ``["a", "b"]``."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second
