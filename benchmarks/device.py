"""Everything that needs a GPU, in one run of at most eight minutes: CUDA, or Metal with ``--backend mlx``.

    python -m benchmarks.device --model qwen-vt --model gemma-vt
    python -m benchmarks.device --backend mlx --model qwen-vt
    python -m benchmarks.device --device cpu --quick

It runs the tests that need the device, compares the logits that verification computes with those of the whole
head, and measures the stock framework, the full head, approximate, exact, drafted and compiled decoding:
whether the ids are those of the full head, TTFT, TPOT, and peak memory. A part that fails does not stop the
others. OUT is written after each part, so a run that is killed keeps what it has.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import click

from benchmarks.device_checks import describe_device, rounding
from converters.cache import open_model
from converters.export import stock_copy
from vt_core.decode.backend import BACKENDS, default_backend
from vt_core.errors import BackendError, VtError
from vt_core.files.dtypes import FLOATS
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.job import Job
from vt_core.measure.machine import command_text, machine, versions
from vt_core.measure.prompts import Prompts, read_prompts
from vt_core.measure.variants import FULL, STOCK, Variant, parse_variants
from vt_core.measure.worker import Worker
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.tokenizer import Tokenizer

SCHEMA = 1
ROOT = Path(__file__).parents[1]
PROMPTS = Path(__file__).with_name("prompts.jsonl")
VARIANTS = "full,stock,prealloc-approximate,prealloc,draft"
#: The exact variant with ``compile``, which PyTorch has.
COMPILED = "compiled"
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "seed": 1}
#: Prompts that are also answered with :data:`SAMPLING`.
SAMPLED = 4

Found = TypeVar("Found")


@dataclass
class Report:
    """Results so far."""

    out: Path
    #: Time of :func:`time.monotonic` when the run must end.
    until: float
    results: dict[str, Any]
    failed: list[str] = field(default_factory=list)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def part(self, name: str, run: Callable[[], Found]) -> Found | None:
        """Run one part and note how it ended. Returns None where it failed or there was no time for it."""
        started, found, error = time.monotonic(), None, None
        click.echo(f"{name} …", err=True)
        if not self.seconds_left:
            error = "there was no time left for it"
        else:
            try:
                found = run()
            except TimeoutError:
                error = "it was stopped because the time was up"
            except Exception as caught:  # whatever fails, the other parts run
                error = f"{type(caught).__name__}: {caught}"
        seconds = round(time.monotonic() - started, 1)
        self.results["parts"].append({"part": name, "seconds": seconds, "error": error})
        if error is not None:
            self.failed.append(name)
            click.echo(f"{name} failed: {error}", err=True)
        self.write()
        return found

    def write(self) -> None:
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")


@dataclass(frozen=True)
class Plan:
    """What is measured of each model."""

    backend: str
    device: str | None
    dtype: str | None
    prompts: int
    max_tokens: int

    @property
    def options(self) -> dict[str, Any]:
        return {"backend": self.backend, "device": self.device, "dtype": self.dtype}


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), default=default_backend, show_default="best")
@click.option("--model", "models", multiple=True, help="As for generate; repeatable. Default: SmolLM2-135M.")
@click.option("--device", help="Default: the best that the backend has.")
@click.option("--dtype", type=click.Choice(FLOATS), help="Default: the model's.")
@click.option("--quick", is_flag=True, help="Few prompts and tokens, to see whether everything works.")
@click.option("--no-tests", is_flag=True, help="Leave the tests out.")
@click.option("--minutes", type=float, default=8.0, show_default=True, help="Most time that the run takes.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("device-results.json"), show_default=True
)
def main(
    backend: str,
    models: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    quick: bool,
    no_tests: bool,
    minutes: float,
    out: Path,
) -> None:
    """Measure vt on a GPU, and write OUT."""
    plan = Plan(backend, device, dtype, *((2, 12) if quick else (12, 64)))
    results = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command_text("python -m benchmarks.device", sys.argv[1:]),
        "machine": machine(),
        "versions": versions(backend),
        "device": None,
        "settings": {"prompts": plan.prompts, "max_tokens": plan.max_tokens, "sampling": SAMPLING},
        "parts": [],
        "tests": None,
        "models": [],
    }
    report = Report(out, time.monotonic() + 60 * minutes, results)
    results["device"] = report.part("device", lambda: apart(report, describe_device, backend, device))
    if not no_tests:
        results["tests"] = report.part("tests", lambda: run_tests(report, backend, device))
    for name in models or (None,):
        measure_model(report, plan, name)
    report.write()
    click.echo(summary(results))
    click.echo(f"{out}" + (f"; failed: {', '.join(report.failed)}" if report.failed else ""))
    sys.exit(1 if report.failed else 0)


def apart(report: Report, function: Callable[..., Found], *arguments: Any) -> Found:
    """The result of a function that runs in a process of its own, so that this one holds no device memory.

    Raises:
        BackendError: the function raised an error, or the process ended.
        TimeoutError: the time is up.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, *arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(report.seconds_left):
            raise TimeoutError
        found, error = receiver.recv()
    except EOFError:
        process.join()
        raise BackendError(f"its process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise BackendError(error)
    return found


def _answer(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))


def run_tests(report: Report, backend: str, device: str | None) -> dict[str, Any]:
    """Run the tests marked ``cuda`` or ``metal``; with ``--device cpu``, the same tests on the CPU.

    Raises:
        BackendError: tests failed, or none ran.
    """
    chosen = (
        ["-k", f"{backend}-cpu"] if device == "cpu" else ["-m", "cuda" if backend == "torch" else "metal"]
    )
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        command = [sys.executable, "-m", "pytest", "-q", "tests/backends/test_accelerators.py", *chosen]
        try:
            done = subprocess.run(
                [*command, f"--junitxml={file.name}"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=report.seconds_left,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        if not Path(file.name).stat().st_size:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise BackendError(f"pytest did not run: {' '.join(last)}")
        suite = ElementTree.parse(file.name).getroot()[0]
    count, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failures = {
        case.attrib["name"]: (problem.attrib.get("message") or "").splitlines()[:1]
        for case in suite.iter("testcase")
        for problem in [*case.iter("failure"), *case.iter("error")]
    }
    # Kept here as well: an exception leaves no result.
    report.results["tests"] = found = {"ran": count - skipped, "skipped": skipped, "failed": failures}
    if failures:
        raise BackendError(f"{len(failures)} of {count - skipped} tests failed: {', '.join(failures)}")
    if count == skipped:
        raise BackendError("no test ran")
    return found


def measure_model(report: Report, plan: Plan, name: str | None) -> None:
    """All parts of one model."""
    title = "SmolLM2-135M" if name is None else Path(name).name
    prepared = report.part(f"{title}: prepare", lambda: prepare(plan, name))
    if prepared is None:
        return
    directory, stock, prompts = prepared
    manifest = directory.manifest
    model: dict[str, Any] = {
        "name": title,
        "type": manifest.model_type,
        "vocab_rows": manifest.vocab_rows,
        "table_bytes": manifest.table_bytes,
        "body_bytes": manifest.body_bytes,
        "stored_dtype": manifest.dtype,
        "rounding": None,
        "variants": [],
    }
    report.results["models"].append(model)
    model["rounding"] = report.part(
        f"{title}: rounding",
        lambda: apart(report, rounding, str(directory.path), list(prompts.warm_up), plan.options),
    )
    reference = None
    for variant in variants(plan.backend):
        measured = report.part(
            f"{title}: {variant.name}",
            lambda variant=variant: measure(report, plan, variant, directory, stock, prompts),
        )
        if measured is None:
            continue
        row, ids = measured
        if variant.name == FULL:
            reference = ids
        elif reference is not None:
            row["same_ids"] = compare(ids, reference)
        model["variants"].append(row)


def variants(backend: str) -> list[Variant]:
    """What is measured, the full head first."""
    found = parse_variants(VARIANTS)
    if backend == "torch":
        found += [replace(variant, name=COMPILED) for variant in found if variant.name == "prealloc"]
    return found


def prepare(plan: Plan, name: str | None) -> tuple[ModelDirectory, Path, Prompts]:
    """The model directory, its plain copy for the stock framework, and the prompts."""
    directory = open_model(name)
    tokenizer = Tokenizer(directory.path)
    prompts = read_prompts([PROMPTS], RowFormat(), tokenizer, limit=plan.prompts, max_tokens=None)
    return directory, stock_copy(directory), prompts


def measure(
    report: Report, plan: Plan, variant: Variant, directory: ModelDirectory, stock: Path, prompts: Prompts
) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """Time and memory of a variant, alone on the device; and the ids that it wrote, greedy and sampled."""
    job = Job.of(
        variant,
        model=str(directory.path),
        stock=str(stock),
        compile=variant.name == COMPILED,
        **plan.options,
    )
    with Worker(job, until=report.until) as worker:
        worker.warm_up(prompts.warm_up, max_tokens=min(16, plan.max_tokens))
        found = [worker.generate(ids, max_tokens=plan.max_tokens) for ids in prompts.ids]
        memory = worker.memory()
        sampled = []
        if variant.name != STOCK:  # the stock framework draws other numbers
            some = prompts.ids[:SAMPLED]
            sampled = [worker.generate(ids, max_tokens=plan.max_tokens, **SAMPLING) for ids in some]
        about = worker.about
    ids = {
        "greedy": [each["token_ids"] for each in found],
        "sampled": [each["token_ids"] for each in sampled],
    }
    steps = [each["decode_s"] / (len(each["token_ids"]) - 1) for each in found if len(each["token_ids"]) > 1]
    row = {
        "variant": variant.name,
        **about,
        "memory": memory,
        "prompt_tokens": sum(map(len, prompts.ids)),
        "generated_tokens": sum(map(len, ids["greedy"])),
        "ttft_s": round(statistics.median(each["ttft_s"] for each in found), 6),
        "tpot_s": round(statistics.median(steps), 6) if steps else None,
        "same_ids": None,
    }
    counted = ("verifications", "settled", "rescued", "rolled_back", "drafted", "accepted")
    row |= {name: sum(each[name] for each in found) for name in counted if name in found[0]}
    return row, ids


def compare(ids: dict[str, list[list[int]]], reference: dict[str, list[list[int]]]) -> dict[str, Any]:
    """How many texts have exactly the ids of the full head, and where others differ first."""
    found: dict[str, Any] = {}
    for kind, texts in ids.items():
        differences = []
        for prompt, (text, expected) in enumerate(zip(texts, reference[kind], strict=False)):
            if text != expected:
                pairs = zip(text, expected, strict=False)
                at = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
                differences.append({"prompt": prompt, "position": at})
        found[kind] = {"texts": len(texts), "same": len(texts) - len(differences), "different": differences}
    return found


def summary(results: dict[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for model in results["models"]:
        lines.append(f"{model['name']}: ms to the first token, ms per token, MB, ids of the full head")
        for row in model["variants"]:
            memory = row["memory"]["allocator_bytes"] or row["memory"]["peak_bytes"]
            same = [
                f"{kind} {each['same']} of {each['texts']}"
                for kind, each in (row["same_ids"] or {}).items()
                if each["texts"]
            ]
            step = "–" if row["tpot_s"] is None else f"{1e3 * row['tpot_s']:.2f}"
            times = f"{1e3 * row['ttft_s']:9.1f} {step:>9} {memory / 1e6:9.1f}"
            lines.append(f"  {row['variant']:22} {times}  {', '.join(same)}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except VtError as error:
        sys.exit(str(error))
