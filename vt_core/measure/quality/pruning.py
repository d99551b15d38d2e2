"""Static pruning, the papers' baseline: a tokenizer that knows only what a corpus was written with.

Tokenizer, embedding and head are cut to the tokens of a corpus (VocabTailor's baseline VP). The model's files
need no second copy for it: the pruned tokenizer keeps the full ids of the tokens that are left, so its
prompts are read from the same store, and a head that holds exactly those ids and gains none is the pruned
model's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import TokenizerError
from vt_core.vocab.active import Ids
from vt_core.vocab.token_bytes import TokenTable, read_tokenizer_json


class Pruning:
    """What is left of a tokenizer for a corpus.

    `ids`, sorted int64 [n], are the corpus' tokens, the pieces that merges make these from, all single bytes,
    and special and added tokens. So texts of the corpus are tokenized as before, and any other text can be.
    """

    def __init__(self, tokenizer_json: str | Path, vocab_rows: int, corpus: Iterable[int]) -> None:
        """`corpus`: every id of its inputs and outputs. Raises TokenizerError where there are no merges."""
        self._data = read_tokenizer_json(tokenizer_json)
        table = TokenTable.from_json(self._data, str(tokenizer_json))
        model = self._data["model"]
        if model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
            raise TokenizerError(
                f"{tokenizer_json}: static pruning needs a BPE tokenizer with merges, this one is "
                f"{model.get('type')!r}; leave the variant 'pruned' out."
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
        """Ids of everything on the way from single characters to the tokens.

        A token whose way is known is found again wherever the whole tokenizer found it: its merges cross no
        border, so they are the same inside any text.
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
        """The pruned `tokenizer.json`. Tokens have the ids that they have in the whole one."""
        kept = set(self.ids.tolist())
        vocab = {token: id for token, id in self._vocab.items() if id in kept}
        added = [entry for entry in self._data.get("added_tokens") or [] if entry["id"] in kept]
        # Added tokens outside the model's own would be numbered anew, behind the last one that is left.
        vocab.update((entry["content"], entry["id"]) for entry in added)
        merges = [
            [first, second]
            for first, second in self._merges
            if first in vocab and second in vocab and first + second in vocab
        ]
        model: dict[str, Any] = {**self._data["model"], "vocab": vocab, "merges": merges}
        return json.dumps({**self._data, "added_tokens": added, "model": model}, ensure_ascii=False).encode()


def _pair(merge: Any) -> tuple[str, str]:
    """A merge of either form, `"a b"` or `["a", "b"]`."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second
