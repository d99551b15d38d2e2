"""The parts of :mod:`benchmarks.device` that run in a process of their own: what the device is, and how far
logits of verification are from those of the whole head on it.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np

from vt_core import load
from vt_core.measure.variants import FULL

#: Positions whose logits are compared, and how many of them are multiplied at once.
POSITIONS, AT_ONCE = 16, (1, 4, 16)


def describe_device(backend: str, device: str | None) -> dict[str, Any]:
    """Name, memory and driver of the device. Runs a small product, so a device that does not work fails."""
    if backend == "mlx":
        import mlx.core as mx

        from vt_mlx.device import on_device, pick_device

        chosen = pick_device(device)
        with on_device(chosen):
            mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
        found = dict(mx.device_info()) if hasattr(mx, "device_info") else {}
        return {"name": str(chosen), "system": platform.mac_ver()[0] or platform.release(), **found}
    import torch

    from vt_torch.device import pick_device as pick

    chosen = pick(device)
    torch.ones(8, 8, device=chosen).matmul(torch.ones(8, 8, device=chosen)).sum().item()
    if chosen.type != "cuda":
        return {"name": str(chosen), "system": platform.mac_ver()[0] or platform.release()}
    properties = torch.cuda.get_device_properties(chosen)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _nvidia_driver(),
    }


def _nvidia_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # a Jetson has no nvidia-smi
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.splitlines()[0].strip()
    return None


def rounding(path: str, prompt: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """Compare logits of verification with those of the whole head for the same hidden states.

    Args:
        path: the model directory.
        prompt: full ids of a text.
        options: backend, device and dtype, as for :func:`vt_core.load`.

    Returns:
        For each number of positions multiplied at once, ``logits`` compared, how many were ``equal``, how
        many were ``beyond`` the error that :class:`vt_core.decode.rounding.Rounding` allows, and the largest
        difference as a share of that error. ``again``: the same for rows that are multiplied again to settle
        near ties, which must be equal.
    """
    exact, full = (load(path, head=head, **options).decoder for head in ("prealloc", FULL))
    ids = np.resize(np.array(prompt), max(POSITIONS, len(prompt)))
    states = next(exact.states(ids, len(ids) - POSITIONS))
    with full._context():
        change = full._transform or (lambda logits: logits)
        parts = [change(full.head.logits(states[at : at + 1])) for at in range(POSITIONS)]
        whole = np.concatenate([full._to_host(part) for part in parts])
    found: dict[str, Any] = {"dtype": exact.dtype, "rows": whole.shape[1], "tiles": {}}
    head = exact._full_head(states)
    for count in AT_ONCE:
        found["tiles"][count] = _compare_tiles(exact, head, states, whole, count)
    rows = np.argsort(-whole[0])[:8].astype(np.int64)
    again = exact.row_logits(states[:1], rows)
    found["again"] = {"logits": len(rows), "equal": int((again == whole[0, rows]).sum())}
    return found


def _compare_tiles(exact: Any, head: Any, states: Any, whole: np.ndarray, count: int) -> dict[str, Any]:
    equal = beyond = 0
    largest = 0.0
    with exact._context():
        for tile in head.tiles(states[:count]):
            rows = np.arange(min(tile.count, whole.shape[1] - tile.start))
            for position in range(count if len(rows) else 0):
                expected = whole[position, tile.start + rows]
                difference = np.abs(tile.take(position, rows) - expected)
                share = difference / head.rounding.error(
                    np.full_like(expected, np.abs(whole[position]).max())
                )
                equal, beyond = equal + int((difference == 0).sum()), beyond + int((share > 1).sum())
                largest = max(largest, float(share.max()))
    logits = count * whole.shape[1]
    return {"logits": logits, "equal": equal, "beyond": beyond, "largest_share": round(largest, 4)}
