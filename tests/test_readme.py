"""What README shows works: its commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.tiny import ARCHITECTURES, KINDS, QUANTIZED
from vt_core.cli import build

README = Path(__file__).parents[1] / "README.md"


def test_every_command_of_the_readme_parses():
    lines = [line.split("  #")[0].strip() for line in README.read_text().splitlines()]
    commands = [shlex.split(line) for line in lines if re.match(r"vt-(torch|mlx) ", line)]
    assert len(commands) >= 6
    for name, command, *arguments in commands:
        group = build(name.removeprefix("vt-"))
        group.commands[command].make_context(command, arguments, obj="torch")


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_table_of_architectures_is_the_tests_list():
    listed = re.findall(r"^\| `([\w-]+)` \| (\w+) \|$", README.read_text(), re.MULTILINE)
    tested = {
        kind: config.removesuffix("Config")
        for kind, (config, _) in {**KINDS, **ARCHITECTURES}.items()
        if kind not in QUANTIZED
    }
    assert listed == sorted(tested.items()), "\n".join(
        f"| `{kind}` | {name} |" for kind, name in sorted(tested.items())
    )
