"""Research: could a smaller copy of the head certify most choices, so that a check reads less?

    python -m benchmarks.sketch --model gemma-vt

Each row gets a short form with a bound on its error, so that every logit is known up to a margin. A row whose
largest possible logit is below another's smallest cannot be chosen. Only the others, the survivors, would be
read from the table itself. Two forms are tried on hidden states of answers, the axes of the second on others:

- ``int8``: 8 bits a column and one scale; the margin is the norm of the error times that of the hidden state.
- ``rotated``: columns turned to the principal axes of hidden states, the first 128 in 8 bits, the others in
  4 bits with a scale for 32 columns; the margin is a sum of such products over groups of 32 columns.

Both margins include the rounding of a product in bfloat16.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from vt_core import Model, load
from vt_core.files.dtypes import to_float32

PROMPTS = Path(__file__).with_name("prompts.jsonl")
#: Columns of a group, and columns with 8 bits, in the form ``rotated``.
GROUP, WIDE = 32, 128
#: Rows at a time.
CHUNK = 16_384
#: Share of a logit by which a product in bfloat16 may be off: it is rounded, and so is its scale.
ROUNDING = 2.0**-7


@click.command()
@click.option("--model", help="As for generate. Default: SmolLM2-135M.")
@click.option("--prompts", default=12, show_default=True)
@click.option("--max-tokens", default=24, show_default=True)
def main(model: str | None, prompts: int, max_tokens: int) -> None:
    """Print how many rows survive, and how long products take."""
    with load(model, backend="torch", device="cpu") as loaded:
        states = answer_states(loaded, prompts, max_tokens)
        half = len(states) // 2
        table = loaded.decoder._rows.head_table
        plain, axes = np.eye(states.shape[1], dtype=np.float32), principal_axes(states[:half])
        for form, basis, group in ((int8, plain, states.shape[1]), (rotated, axes, GROUP)):
            counts, lost, share = survivors(table, states[half:], basis, group, form)
            click.echo(
                f"{form.__name__}: {share:.0%} of the bytes; survivors of {table.spec.rows} rows: median "
                f"{np.median(counts):.0f}, 90 % {np.quantile(counts, 0.9):.0f}, most {counts.max()}; "
                f"{lost} of {len(counts)} choices lost"
            )
        for count in (1, 4, 8, 16):
            click.echo(timing(loaded, states[half : half + count]))


def answer_states(model: Model, prompts: int, max_tokens: int) -> np.ndarray:
    """Hidden states ``[n, d]`` at the positions of answers."""
    found = []
    for line in PROMPTS.read_text().splitlines()[:prompts]:
        ids = model.encode(json.loads(line)["input"])
        answer = model.generate(list(ids), max_tokens=max_tokens, approximate=True).token_ids
        text = np.concatenate([ids, np.array(answer, np.int64)])
        found += [states.float().numpy() for states in model.decoder.states(text, len(ids) - 1)]
    return np.concatenate(found)


def principal_axes(states: np.ndarray) -> np.ndarray:
    """Orthogonal ``[d, d]``, the axis of the largest second moment first."""
    axes: np.ndarray = np.linalg.eigh(states.T.astype(np.float64) @ states)[1]
    return axes[:, ::-1].astype(np.float32)


def quantized(values: np.ndarray, levels: int) -> np.ndarray:
    """``values [..., g]`` rounded to whole numbers, at most ``levels``, times a scale in float16."""
    scale = np.abs(values).max(axis=-1, keepdims=True) / levels
    scale = np.maximum(scale, 1e-7).astype(np.float16).astype(np.float32)
    return np.clip(np.round(values / scale), -levels, levels) * scale


def int8(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """What the short form of ``rows [n, d]`` stands for, and bytes of a row."""
    return quantized(rows, 127), rows.shape[1] + 4  # scale, norm of the error


def rotated(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The same, for rows that are turned already."""
    rest = rows[:, WIDE:].reshape(len(rows), -1, GROUP)
    form = np.concatenate([quantized(rows[:, :WIDE], 127), quantized(rest, 7).reshape(len(rows), -1)], axis=1)
    return form, WIDE + 2 + rest[0].size / 2 + 2 * rest.shape[1] + rows.shape[1] / GROUP


def chunks(table: Any) -> Iterator[tuple[int, np.ndarray]]:
    """First id and rows ``[n, d]`` of each part of the table."""
    for tile in table.tiles(CHUNK * table.spec.stride):
        yield tile.start, to_float32(np.ascontiguousarray(tile.rows), table.spec.dtype)


def survivors(
    table: Any, states: np.ndarray, basis: np.ndarray, group: int, form: Any
) -> tuple[np.ndarray, int, float]:
    """Survivors of each position, how many true choices are not among them, and share of the bytes."""
    turned_states = states @ basis
    norms = np.linalg.norm(turned_states.reshape(len(states), -1, group), axis=2)
    best = np.full((2, len(states)), -np.inf)  # largest lower bound, and largest logit
    uppers, choices, share = [], np.zeros(len(states), np.int64), 0.0
    for start, rows in chunks(table):
        turned = rows @ basis
        short, size = form(turned)
        share = size / (table.spec.row_bytes)
        errors = np.linalg.norm((turned - short).reshape(len(rows), -1, group), axis=2)
        logits, exact = short @ turned_states.T, rows @ states.T
        margins = errors @ norms.T + ROUNDING * np.abs(logits)
        uppers.append(logits + margins)
        larger = exact.max(axis=0) > best[1]
        choices = np.where(larger, start + exact.argmax(axis=0), choices)
        best = np.maximum(best, [(logits - margins).max(axis=0), exact.max(axis=0)])
    alive = np.concatenate(uppers) >= best[0]
    return alive.sum(axis=0), int((~alive[choices, np.arange(len(states))]).sum()), share


def timing(model: Model, states: np.ndarray) -> str:
    """Processor time of a scan as it is, and of the product with 8-bit rows in memory."""
    decoder = model.decoder
    hidden = torch.from_numpy(states).to(getattr(torch, decoder.dtype))
    head, spec = decoder._full_head(hidden), decoder._rows.head_table.spec
    numbers = torch.randint(-127, 128, (spec.rows, spec.columns), dtype=torch.int8)
    scales, short = torch.ones(spec.rows, dtype=torch.bfloat16), hidden.bfloat16()

    def scan() -> None:
        for tile in head.tiles(hidden):
            _ = tile.largest

    def sketch() -> None:
        for start in range(0, spec.rows, CHUNK):
            part = slice(start, start + CHUNK)
            torch._weight_int8pack_mm(short, numbers[part], scales[part]).amax(dim=1)

    times: dict[str, list[float]] = {"scan": [], "sketch": []}
    with torch.inference_mode():
        for _ in range(4):
            for name, run in (("scan", scan), ("sketch", sketch)):
                started = time.process_time()
                run()
                times[name].append(time.process_time() - started)
    now, then = (1e3 * min(each) for each in times.values())
    return f"{len(states)} positions: a scan takes {now:.0f} ms, the product with 8-bit rows {then:.0f} ms"


if __name__ == "__main__":
    main()
