"""The files of a benchmark or an evaluation: results, reports, pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vt_core.errors import DataError, OptionError, OutputError
from vt_core.files.json_files import read_object
from vt_core.measure.bench_report import bench_report
from vt_core.measure.eval_report import eval_report
from vt_core.measure.models_report import models_report
from vt_core.measure.plots import draw
from vt_core.measure.report import Report, html, markdown

RESULTS, REPORT, PAGE = "results.json", "report.md", "report.html"
#: Format of results.json of each command: the fields ``schema`` and ``format``.
BENCH_SCHEMA, EVAL_FORMAT = 1, "vt-eval/1"


def check_folder(out: Path) -> None:
    """Raise OptionError where a folder cannot be made or written to; makes nothing."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OptionError(f"{out}: {nearest} is not a folder that can be written to.")


@contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Keep other benchmarks and evaluations from writing into a folder, which need not exist yet.

    Raises:
        OutputError: another process is writing there, or nothing can be written.
    """
    from filelock import FileLock, Timeout

    place = out.resolve()
    made = [path for path in place.parents if not path.exists()]
    lock = FileLock(place.parent / f".{place.name}.vt-lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"{out}: another run of bench or eval is writing there; wait for it, or give another --out."
        ) from None
    except OSError as error:
        raise OutputError(f"{out}: the folder cannot be locked ({error.strerror}).") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while held, so that lock files do not pile up
        lock.release()
        for path in made:
            with suppress(OSError):  # not empty, once results are written
                path.rmdir()


def write_bench(results: Mapping[str, Any], out: Path) -> str:
    """Write the results of a benchmark, its reports and its pictures.

    Returns:
        Why there are no pictures, or an empty string.

    Raises:
        OutputError: the files cannot be written.
    """
    report = bench_report(results)
    pictures, missing = [], ""
    try:
        pictures = draw(results)
    except OptionError as error:  # matplotlib is missing; hours of measuring must not be lost for it
        missing = str(error)
    files = {
        RESULTS: dump(results).encode(),
        REPORT: markdown(report).encode(),
        PAGE: html(report, pictures, missing).encode(),
    }
    write_files(out, files | {f"{picture.name}.png": picture.light for picture in pictures})
    return missing


def write_eval(results: Mapping[str, Any], out: Path, more: Mapping[str, bytes]) -> None:
    """Write the results of an evaluation, its report, and further files.

    Raises:
        OutputError: the files cannot be written.
    """
    _write(results, eval_report([results]), out, more)


def write_models(results: Mapping[str, Any], out: Path) -> None:
    """Write the results of a comparison of models, and its report.

    Raises:
        OutputError: the files cannot be written.
    """
    _write(results, models_report(results), out, {})


def _write(results: Mapping[str, Any], report: Report, out: Path, more: Mapping[str, bytes]) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_files(out, {RESULTS: text.encode(), REPORT: markdown(report).encode(), **more})


def write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, all of them or none, and make the folder where it is missing.

    Raises:
        OutputError: the files cannot be written. A folder that was made for them is gone again.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".vt-", dir=out) as staging:
            for name, content in files.items():
                with (Path(staging) / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for name in files:
                os.replace(Path(staging) / name, out / name)
    except OSError as error:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise OutputError(f"{out}: the results cannot be written ({error.strerror}).") from error


def dump(results: Mapping[str, Any]) -> str:
    """Format results of a benchmark as JSON, one line per field of a variant, for readable diffs."""
    rows = ",\n".join(
        "  {\n"
        + ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
        + "\n  }"
        for row in results["rows"]
    )
    head = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in results.items()
        if key != "rows"
    ]
    return "{\n" + ",\n".join(head) + ',\n "rows": [\n' + rows + "\n ]\n}\n"


def load_bench(path: Path) -> dict[str, Any]:
    """Read results of ``bench``; raises DataError."""
    return _load(path, "schema", BENCH_SCHEMA, "bench")


def load_eval(path: Path) -> dict[str, Any]:
    """Read results of ``eval``; raises DataError."""
    return _load(path, "format", EVAL_FORMAT, "eval")


def _load(path: Path, field: str, value: object, command: str) -> dict[str, Any]:
    results = read_object(path, f"results file of {command}", DataError)
    if results.get(field) != value:
        raise DataError(
            f"{path}: not results of {command} that this vt reads: {field} is {results.get(field)!r}, not "
            f"{value!r}. Run the command again."
        )
    return results
