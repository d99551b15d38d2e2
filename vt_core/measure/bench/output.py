"""The files of a benchmark."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vt_core.errors import DataError, OptionError
from vt_core.files.json_files import read_object, write_atomically
from vt_core.measure.bench.page import page
from vt_core.measure.bench.plots import draw
from vt_core.measure.bench.report import report

RESULTS, REPORT, PAGE = "results.json", "report.md", "report.html"


def check_folder(out: Path) -> None:
    """Raises OptionError where a folder could not be made or written to, before it is made."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OptionError(f"{out}: {there} is no folder that can be written to.")


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write the results and what is made of them into a folder: a report in Markdown and one in HTML, and
    pictures where matplotlib is installed.

    Raises OptionError or OutputError where a file cannot be written.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / RESULTS, dump(results))
    write_atomically(out / REPORT, report(results))
    pictures = draw(results) if importlib.util.find_spec("matplotlib") else []
    for picture in pictures:
        write_atomically(out / f"{picture.name}.png", picture.light)
    write_atomically(out / PAGE, page(results, pictures))


def dump(results: Mapping[str, Any]) -> str:
    """JSON with a line for each variant's field: long lists stay together, and a change shows as one line."""
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


def load(path: Path) -> dict[str, Any]:
    """Results from a file; raises DataError."""
    return read_object(path, "results file of a benchmark", DataError, strict=False)
