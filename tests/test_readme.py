"""The README and the documents show what works: commands, options, links and targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.families import FAMILIES
from tests.tiny import ARCHITECTURES, KINDS, QUANTIZED
from vt_core.cli import build

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_command_shown_parses():
    lines = [line.split("  #")[0].strip() for page in PAGES for line in page.read_text().splitlines()]
    commands = [
        shlex.split(line.removeprefix("$ ")) for line in lines if re.match(r"(\$ )?vt-(torch|mlx) ", line)
    ]
    assert len(commands) >= 12
    for name, command, *arguments in commands:
        group = build(name.removeprefix("vt-"))
        group.commands[command].make_context(command, arguments, obj="torch")


def test_every_command_of_the_package_is_shown():
    shown = " ".join(page.read_text() for page in PAGES)
    for command in build("torch").commands:
        assert re.search(rf"vt-(torch|mlx) {command}\b", shown), command


def test_targets_shown_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for page in PAGES for target in re.findall(r"`make (\w+)`", page.read_text())}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, link


def test_table_of_architectures_lists_the_tested_ones():
    text = (ROOT / "docs" / "models.md").read_text()
    listed = re.findall(r"^\| `[\w-]+` \| .* \|$", text, re.MULTILINE)
    tested = [
        f"| `{kind}` | {config.removesuffix('Config')} | {_runs_on(kind)} |"
        for kind, (config, _) in sorted({**KINDS, **ARCHITECTURES}.items())
        if kind not in QUANTIZED
    ]
    assert listed == tested, "\n".join(tested)


def _runs_on(kind: str) -> str:
    family = FAMILIES.get(kind)
    if family is None or not family.why_not:
        return "PyTorch, MLX"
    return f"PyTorch ({family.why_not})"
