"""Results for tests, with figures that are easy to compute by hand."""

from __future__ import annotations

from typing import Any

#: Heads of the default variants.
SPECS = {"stock": None, "full": "full", "prealloc-approximate": "prealloc", "prealloc": "prealloc"}


def row(name: str, n: int, **changes: Any) -> dict[str, Any]:
    """A variant that takes 0.1 s to the first of eleven tokens, and 0.05 s for each other token."""
    exact = name in ("prealloc", "full")
    made: dict[str, Any] = {
        "variant": name,
        "n": n,
        "head": SPECS[name],
        "exact": exact,
        "store": "lmdb",
        "device": "cpu",
        "dtype": "float32",
        "load_s": 1.5,
        "memory": {
            "idle_bytes": 200_000_000,
            "loading_peak_bytes": 900_000_000,
            "peak_bytes": 1_000_000_000,
            "anonymous_bytes": 600_000_000,
            "allocator_bytes": None,
        },
        "vocabulary": {"static_rows": 50_000, "resident_bytes": 400_000_000, "host_bytes": 0},
        "prompt_tokens": [30] * n,
        "generated_tokens": [11] * n,
        "characters": [42] * n,
        "same_tokens": [-1] * n,
        "limit": None,
        "ttft_s": [0.1] * n,
        "decode_s": [0.5] * n,
        "e2e_s": [0.6] * n,
        "command": "vt-torch bench --out x",
        "version": "0.1.0",
        "machine": "a processor",
    }
    if SPECS[name] == "prealloc":
        made["vocabulary"] = {"static_rows": 4_000, "resident_bytes": 32_000_000, "host_bytes": 0}
        made |= {"dynamic_rows": [900] * n, "learned_rows": [100] * n}
        made |= {"memory": made["memory"] | {"peak_bytes": 600_000_000}, "decode_s": [0.25] * n}
        made |= {"rescued": [0] * n, "rolled_back": [0] * n, "verifications": [0] * n, "verify_s": [0.0] * n}
    if name == "prealloc":
        made |= {"rescued": [1] * n, "rolled_back": [3] * n, "verifications": [2] * n, "verify_s": [0.06] * n}
    return made | changes


def drafting_row(name: str = "draft", n: int = 20, head: str = "prealloc") -> dict[str, Any]:
    """A variant that reads five times after the first token: once without a draft, four times with two.

    Of these, one, one, one and two were right. A read takes 0.02 s, one with a draft 0.025 s.
    """
    made = row(head, n) | {"variant": name, "decode_s": [0.125] * n, "draft_s": [0.006] * n}
    made |= {"reads": [5] * n, "drafted": [8] * n, "accepted": [5] * n}
    return made | {"draft_lengths": [[0, [n], 0.02 * n], [2, [0, 3 * n, n], 0.1 * n]]}


def results(*rows: dict[str, Any], minimum: int = 20, weights: str = "real") -> dict[str, Any]:
    rows = rows or tuple(row(name, 20) for name in SPECS)
    return {
        "schema": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "command": "vt-torch bench --out x",
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "system": "Linux 6",
            "load": 0.1,
        },
        "versions": {"vt": "0.1.0", "torch": "2"},
        "model": {
            "name": "some-model",
            "source": "somewhere",
            "type": "llama",
            "weights": weights,
            "vocab_rows": 50_000,
            "hidden": 1000,
            "tied": True,
            "stored_dtype": "bfloat16",
            "quantized": False,
            "table_bytes": 100_000_000,
            "body_bytes": 200_000_000,
        },
        "settings": {
            "backend": "torch",
            "prompts": "some.jsonl",
            "too_long": 0,
            "max_tokens": 64,
            "warm_up_tokens": 8,
            "seed": 0,
            "minimum": minimum,
            "together": 4,
            "rounds": 1,
        },
        "rows": list(rows),
    }
