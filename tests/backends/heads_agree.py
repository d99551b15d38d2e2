"""Run by a test in a process of its own: exact decoding against the full head on tiny models.

    python -m tests.backends.heads_agree MODEL_DIR DTYPE QUANTIZE ...

prints one JSON object: the CPU capability that PyTorch uses, and for each model the positions, the near ties,
and the texts and logits that differ. QUANTIZE is ``-`` for none.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from vt_core import load

PROMPTS = [[5, 17, 300, 42, 42, 980, 7], [9]]
SAMPLINGS = [{}, {"temperature": 0.8, "top_p": 0.95, "seed": 3}, {"temperature": 1.2, "top_k": 9, "seed": 5}]
ROW_COUNTS = (1, 2, 3, 7, 40)


def compare(directory: str, dtype: str, quantize: str | None) -> dict:
    """Counts for one model."""
    options = {"backend": "torch", "device": "cpu", "dtype": dtype, "quantize": quantize}
    full, model = (load(directory, head=head, **options) for head in ("full", "prealloc"))
    model.decoder.head.set_static(range(0, 300, 2))
    found = {"positions": 0, "settled": 0, "differ": 0}
    for sampling in SAMPLINGS:
        for prompt in PROMPTS:
            expected = full.generate(prompt, max_tokens=16, **sampling)
            result = model.generate(prompt, max_tokens=16, **sampling)
            found["positions"] += len(expected.token_ids)
            found["settled"] += result.stats.settled
            found["differ"] += result.token_ids != expected.token_ids
    return found | {"logits": differing_logits(full.decoder, model.decoder, dtype)}


def differing_logits(full, reduced, dtype: str) -> int:
    """How many logits of a few gathered rows differ from those of the whole head, at a few positions."""
    rng = np.random.default_rng(0)
    whole = full.head.pieces[0]
    rows, columns = whole.weight.shape
    count = 0
    for _ in range(3):
        hidden = torch.from_numpy(rng.standard_normal((1, columns))).to(getattr(torch, dtype))
        with torch.inference_mode():
            expected = full.head.logits(hidden)[0].float().numpy()
        for size in ROW_COUNTS:
            ids = np.union1d(rng.permutation(rows)[:size], [rows - 1])
            with torch.inference_mode():
                logits = reduced._full_head(hidden).row_logits(hidden, ids)
            count += int((logits != expected[ids]).sum())
    return count


if __name__ == "__main__":
    arguments = iter(sys.argv[1:])
    cases = [
        compare(directory, dtype, None if quantize == "-" else quantize)
        for directory, dtype, quantize in zip(arguments, arguments, arguments, strict=True)
    ]
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "cases": cases}))
