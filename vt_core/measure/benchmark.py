"""``bench``: run every prompt with every variant in turn, each variant in a process of its own."""

from __future__ import annotations

import datetime
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vt_core.files import dtypes
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.job import Job
from vt_core.measure.machine import machine, machine_text, physical_memory, versions
from vt_core.measure.memory_limit import LimitSearch
from vt_core.measure.output import BENCH_SCHEMA
from vt_core.measure.prompts import Prompts
from vt_core.measure.variants import FULL, Variant
from vt_core.measure.worker import Worker
from vt_core.vocab.tokenizer import Tokenizer

WARM_UP_TOKENS = 8
#: Number of times that each variant is loaded, with a part of the prompts, where the variants do not fit into
#: memory together.
ROUNDS = 4
#: Memory of a process beyond the bytes of the model, mostly of the frameworks.
_PROCESS_BYTES = 700_000_000
#: Lists of the results with one entry per prompt. Those that a variant does not report are left out.
SECONDS = ("ttft_s", "decode_s", "e2e_s", "verify_s", "draft_s")
COUNTS = (
    *("verifications", "rescued", "rolled_back", "dynamic_rows", "learned_rows"),
    *("reads", "drafted", "accepted"),
)


@dataclass(frozen=True)
class Benchmark:
    """What is measured, and how."""

    backend: str
    directory: ModelDirectory
    #: Plain Hugging Face copy for the stock framework.
    stock: Path | None
    variants: Sequence[Variant]
    #: Files of task vocabularies, by variant.
    tasks: Mapping[str, Sequence[str]]
    prompts: Prompts
    max_tokens: int
    seed: int
    #: Number of prompts below which the report warns.
    minimum: int
    command: str
    #: Name of the geometry, where the weights are random.
    geometry: str | None = None
    device: str | None = None
    dtype: str | None = None
    #: Quantization of vt's variants; the stock framework takes the weights as they are stored.
    quantize: str | None = None
    compile: bool = False
    #: N-gram table of the variants that draft, besides those of the tasks.
    draft_file: Path | None = None
    #: Number of processes in memory at a time; None takes as many as are likely to fit.
    together: int | None = None
    limit_search: LimitSearch = field(default_factory=LimitSearch)
    #: Names of the variants whose smallest memory is searched.
    limited: Collection[str] = ()

    @property
    def steps(self) -> int:
        """Number of calls of ``watch`` in :func:`run`."""
        return len(self.variants) * len(self.prompts.ids) + len(self.limited) * (1 + self.limit_search.runs)


def run(bench: Benchmark, watch: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Measure.

    Args:
        bench: what is measured.
        watch: called with what was done, once per step.

    Returns:
        The results, as results.json holds them.

    Raises:
        BackendError: a variant fails.
    """
    about_machine = machine()
    measured = {variant.name: Measurement() for variant in bench.variants}
    groups = list(_groups(bench))
    rounds = 1 if len(groups) == 1 else min(ROUNDS, len(bench.prompts.ids))
    shuffle = random.Random(bench.seed).shuffle
    for start in range(rounds):
        for group in groups:
            prompts = range(start, len(bench.prompts.ids), rounds)
            _run_group(bench, group, prompts, measured, shuffle, watch)
    found_versions = versions(bench.backend)
    provenance = {
        "command": bench.command,
        "version": " ".join(filter(None, (found_versions["vt"], found_versions.get("commit")))),
        "machine": machine_text(about_machine),
    }
    reference = measured[FULL].ids if FULL in measured else None
    decode = Tokenizer(bench.directory.path).decode
    rows = [
        _row(variant, measured[variant.name], reference, bench)
        | {"characters": [len(decode(ids)) for ids in measured[variant.name].ids]}
        | provenance
        for variant in bench.variants
    ]
    for variant, row in zip(bench.variants, rows, strict=True):
        if variant.name in bench.limited:
            row["limit"] = bench.limit_search.run(job(bench, variant), bench.prompts, watch)
    return {
        "schema": BENCH_SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": bench.command,
        "machine": about_machine,
        "versions": found_versions,
        "model": _model(bench),
        "settings": _settings(bench, min(map(len, groups)), rounds),
        "rows": rows,
    }


@dataclass
class Measurement:
    """What was measured of one variant so far."""

    #: By index of the prompt.
    requests: dict[int, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)

    @property
    def ids(self) -> list[list[int]]:
        """Generated ids, by prompt."""
        return [self.requests[index]["token_ids"] for index in sorted(self.requests)]

    def add_memory(self, found: Mapping[str, int | None]) -> None:
        """Keep the larger of each figure."""
        for name, size in found.items():
            known = self.memory.get(name)
            self.memory[name] = size if known is None or size is None else max(known, size)


def job(bench: Benchmark, variant: Variant) -> Job:
    """The job of a variant's process."""
    return Job.of(
        variant,
        backend=bench.backend,
        model=str(bench.directory.path),
        stock=None if bench.stock is None else str(bench.stock),
        task=list(bench.tasks[variant.name]),
        device=bench.device,
        dtype=bench.dtype,
        quantize=bench.quantize,
        compile=bench.compile,
        draft_file=None if bench.draft_file is None or variant.draft == "none" else str(bench.draft_file),
    )


def _run_group(
    bench: Benchmark,
    group: Sequence[Variant],
    prompts: range,
    measured: Mapping[str, Measurement],
    shuffle: Callable[[list[Variant]], None],
    watch: Callable[[str], object],
) -> None:
    """Load some variants, warm them up, and run some prompts with them."""
    with ExitStack() as stack:
        workers = {}
        for variant in group:
            worker = stack.enter_context(Worker(job(bench, variant)))
            worker.warm_up(bench.prompts.warm_up, max_tokens=WARM_UP_TOKENS)
            workers[variant.name] = worker
            measured[variant.name].about = worker.about
        for index in prompts:
            # Another order each time, so that no variant always follows the same other one.
            order = list(group)
            shuffle(order)
            for variant in order:
                found = workers[variant.name].generate(bench.prompts.ids[index], max_tokens=bench.max_tokens)
                measured[variant.name].requests[index] = found
                watch(variant.name)
        for name, worker in workers.items():
            measured[name].add_memory(worker.memory())


def _groups(bench: Benchmark) -> Iterator[Sequence[Variant]]:
    """Split the variants into groups that fit into memory together."""
    together = bench.together
    if together is None:
        # Twice the model, because weights may be held in a wider type than they are stored in.
        need = _PROCESS_BYTES + 2 * bench.directory.manifest.total_bytes
        together = max(1, int(0.75 * physical_memory() / need))
    for start in range(0, len(bench.variants), together):
        yield bench.variants[start : start + together]


def _row(
    variant: Variant, measured: Measurement, reference: list[list[int]] | None, bench: Benchmark
) -> dict[str, Any]:
    requests = [measured.requests[index] for index in sorted(measured.requests)]
    ids = measured.ids
    row: dict[str, Any] = {
        "variant": variant.name,
        "n": len(requests),
        "head": variant.head,
        "exact": variant.exact and variant.head is not None,
        "store": variant.store,
        **measured.about,
        "load_s": round(measured.about["load_s"], 3),
        "memory": measured.memory,
        "vocabulary": _vocabulary(variant, measured.about["dtype"], requests, bench),
        "prompt_tokens": [len(bench.prompts.ids[index]) for index in sorted(measured.requests)],
        "generated_tokens": [len(each) for each in ids],
        "same_tokens": None if reference is None else list(map(_common, ids, reference)),
        "limit": None,
    }
    for name in SECONDS:
        if name in requests[0]:
            row[name] = [round(each[name], 6) for each in requests]
    for name in COUNTS:
        if name in requests[0]:
            row[name] = [each[name] for each in requests]
    if "draft_lengths" in requests[0]:
        row["draft_lengths"] = _draft_lengths(requests)
    return row


def _draft_lengths(requests: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[int], float]]:
    """Sums of :attr:`vt_core.Stats.draft_lengths` over the requests."""
    counts: dict[int, list[int]] = {}
    seconds: dict[int, float] = defaultdict(float)
    for length, accepted, spent in (found for each in requests for found in each["draft_lengths"]):
        counts[length] = [
            sum(pair) for pair in zip(counts.get(length, [0] * (length + 1)), accepted, strict=True)
        ]
        seconds[length] += spent
    return [(length, counts[length], round(seconds[length], 6)) for length in sorted(counts)]


def _common(ids: Sequence[int], reference: Sequence[int]) -> int:
    """Number of leading ids that are equal; -1 where all are."""
    if list(ids) == list(reference):
        return -1
    pairs = zip(ids, reference, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(reference)))


def _vocabulary(
    variant: Variant, dtype: str, requests: Sequence[Mapping[str, Any]], bench: Benchmark
) -> dict[str, int]:
    """Rows and bytes of the vocabulary on the device, and bytes of tables held in host memory."""
    manifest = bench.directory.manifest
    if variant.head is None:
        # Packed tables stay packed; others are held in the float type of the run.
        packed = manifest.quantization is not None
        widened = 1 if packed else dtypes.item_size(dtype) / dtypes.item_size(manifest.dtype)
        return {
            "static_rows": manifest.vocab_rows,
            "resident_bytes": int(manifest.table_bytes * widened),
            "host_bytes": 0,
        }
    return {
        "static_rows": requests[-1]["static_rows"],
        "resident_bytes": max(each["vocab_bytes_resident"] for each in requests),
        "host_bytes": manifest.table_bytes if variant.store == "ram" else 0,
    }


def model_name(directory: ModelDirectory) -> str:
    """Name of a model in reports: that of its directory or, in the user's cache, of its source."""
    from converters.cache import cache_directory

    path = directory.path.resolve()
    if path.is_relative_to(cache_directory().resolve()):
        return Path(directory.manifest.source.name).name
    return path.name


def _model(bench: Benchmark) -> dict[str, Any]:
    manifest = bench.directory.manifest
    return {
        "name": bench.geometry or model_name(bench.directory),
        "source": manifest.source.name,
        "type": manifest.model_type,
        "weights": "real" if bench.geometry is None else "random",
        "vocab_rows": manifest.vocab_rows,
        "hidden": manifest.hidden,
        "tied": manifest.tied,
        "stored_dtype": manifest.dtype,
        "quantized": bench.directory.quantization is not None,
        "table_bytes": manifest.table_bytes,
        "body_bytes": manifest.body_bytes,
    }


def _settings(bench: Benchmark, together: int, rounds: int) -> dict[str, Any]:
    return {
        "backend": bench.backend,
        "quantize": bench.quantize,
        "compile": bench.compile,
        "prompts": bench.prompts.source,
        "too_long": bench.prompts.too_long,
        "max_tokens": bench.max_tokens,
        "warm_up_tokens": WARM_UP_TOKENS,
        "seed": bench.seed,
        "minimum": bench.minimum,
        "together": together,
        "rounds": rounds,
    }
