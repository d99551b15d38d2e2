"""Options and their help, for all commands. Independent of the backend."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec

import click
import pytest
from click.shell_completion import ShellComplete

from tests.commands import error_of, run_cli
from vt_core.cli import build
from vt_core.files.dtypes import FLOATS
from vt_core.files.integers import MODES
from vt_core.files.tables import STORES
from vt_core.profile.row_format import PRESETS
from vt_core.vocab.heads import HEADS

#: ``convert`` stores weights, the other commands run them; ``serve`` and ``eval`` take several models.
DIFFERENT = {("convert", "quantize"), ("convert", "dtype"), ("serve", "model"), ("eval", "draft-file")}
GROUP = build("torch")
#: A backend that is installed.
BACKEND = "torch" if find_spec("torch") else "mlx"


def options() -> dict[str, dict[str, click.Option]]:
    """Options by name and command."""
    found: dict[str, dict[str, click.Option]] = defaultdict(dict)
    for command in GROUP.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                found[option.opts[0].lstrip("-")][command.name] = option
    return found


@pytest.mark.parametrize("name", sorted(name for name, commands in options().items() if len(commands) > 1))
def test_an_option_is_the_same_in_every_command(name):
    commands = {
        command: option
        for command, option in options()[name].items()
        if (command, name) not in DIFFERENT and name != "out"
    }
    kinds = {
        (type(option.type), option.multiple, option.is_flag, option.metavar) for option in commands.values()
    }
    assert len(kinds) <= 1, (name, kinds)
    types = [option.type for option in commands.values() if isinstance(option.type, click.Choice)]
    assert all(kind.choices == types[0].choices for kind in types)


@pytest.mark.parametrize(
    ("name", "choices"),
    [("head", HEADS), ("store", STORES), ("quantize", MODES), ("dtype", FLOATS), ("preset", PRESETS)],
)
def test_choices_are_those_of_the_code(name, choices):
    for command, option in options()[name].items():
        if (command, name) != ("convert", "quantize"):
            assert tuple(option.type.choices) == tuple(choices)


@pytest.mark.parametrize("command", ["generate", "bench", "eval"])
def test_a_damaged_task_is_refused_before_the_model_is_resolved(command, tmp_path, monkeypatch):
    task, data = tmp_path / "task.vt.json", tmp_path / "data.jsonl"
    task.write_text("[1, 2")
    data.write_text('{"input": "a", "output": "b"}\n')
    monkeypatch.setattr("converters.cache.resolve", lambda *_, **__: pytest.fail("resolved"))
    more = {
        "generate": ["hi"],
        "bench": ["--data", data, "--out", tmp_path / "out"],
        "eval": ["--data", data, "--preset", "qa", "--out", tmp_path / "out"],
    }
    done = run_cli(BACKEND, command, "--model", "owner/model", "--task", task, *more[command])
    assert "task.vt.json" in error_of(done)
    assert not (tmp_path / "out").exists()


def test_every_option_has_a_help_text():
    for name, commands in options().items():
        for command, option in commands.items():
            assert option.help, f"{command} --{name}"


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("command", GROUP.commands)
def test_help_has_examples_for_the_command_in_use(backend, command):
    done = run_cli(backend, command, "--help")
    assert done.exit_code == 0
    other = {"torch": "mlx", "mlx": "torch"}[backend]
    examples = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    assert any(line.startswith(f"vt-{backend} {command} ") for line in examples)
    assert command == "convert" or f"vt-{other}" not in done.stdout


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "gen", ["generate"]),
        (["generate"], "--max", ["--max-tokens"]),
        (["generate", "--head"], "pre", ["prealloc"]),
        (["eval", "--preset"], "", list(PRESETS)),
    ],
)
def test_shells_complete_commands_options_and_choices(words, incomplete, expected):
    complete = ShellComplete(GROUP, {}, "vt-torch", "_VT_TORCH_COMPLETE")
    assert [item.value for item in complete.get_completions(words, incomplete)] == expected


@pytest.mark.parametrize("words", [["generate", "--model"], ["bench", "--data"], ["inspect"], ["convert"]])
def test_shells_complete_file_names(words):
    complete = ShellComplete(GROUP, {}, "vt-torch", "_VT_TORCH_COMPLETE")
    assert [item.type for item in complete.get_completions(words, "")] == ["file"]
