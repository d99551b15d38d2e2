"""The committed reports and the README's table follow from the committed results."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import guard, readme
from tests.core.measure.made_up import results, row
from vt_core.measure.bench_report import bench_report
from vt_core.measure.figures import Figures
from vt_core.measure.output import dump, load_bench
from vt_core.measure.report import markdown

FILES = readme.files()
README = readme.ROOT / "README.md"


def test_results_are_committed():
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_report_follows_from_results(file):
    made = load_bench(file)
    assert file.with_name("report.md").read_text(encoding="utf-8") == markdown(bench_report(made))
    for each in made["rows"]:
        for name in ("ttft_s", "decode_s", "e2e_s", "generated_tokens", "prompt_tokens"):
            assert len(each[name]) == each["n"] > 0, (each["variant"], name)
        assert each["command"] == made["command"] and re.search(r"(^| )vt-\w+ bench ", each["command"])
        assert each["version"] and each["machine"]
        assert not re.search(r"(^|[\s=])[/~]", each["command"]), "a path of the machine that ran it"
    # A committed claim needs twenty prompts.
    assert made["settings"]["minimum"] >= 20


@pytest.mark.parametrize("directory", readme.evaluated(), ids=lambda directory: directory.name)
def test_quality_report_follows_from_results(directory):
    assert (directory / "report.md").read_text(encoding="utf-8") == readme.summary(directory)
    files = list(directory.glob("*/results.json"))
    assert files
    for file in files:
        made = json.loads(file.read_text())
        assert made["minimum"] >= 20 and made["versions"] and made["machine"]
        assert re.search(r"(^| )vt-\w+ eval ", made["command"])
        assert not re.search(r"(^|[\s=])[/~]", made["command"]), "a path of the machine that ran it"
        assert all(variant["n"] == made["n"] for variant in made["variants"])


def test_readme_table_follows_from_results():
    text = README.read_text(encoding="utf-8")
    assert readme.replaced(text, readme.section()) == text
    assert all((README.parent / path).is_file() for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))


def test_readme_shows_the_model_with_the_largest_share_of_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "FOLDER", readme.FOLDER / "none")
    assert readme.section() == ""
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "FOLDER", tmp_path / "results")
    for name, tables, weights in (("small", 10, "real"), ("large", 20, "real"), ("made-up", 30, "random")):
        made = results(weights=weights)
        made["model"] |= {"table_bytes": tables, "name": name}
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "results.json").write_text(dump(made))
    section = readme.section()
    assert section.endswith("\n\n![Peak memory of large by component](results/large/memory.png)\n")
    assert section.startswith(readme.table([load_bench(file) for file in readme.files()]))


def test_readme_table_leaves_out_results_with_few_prompts():
    assert readme.table([results(row("stock", 19), row("prealloc", 19))]) == ""
    assert readme.table([results(row("stock", 20), row("full", 20))]) == ""
    shown = readme.table([results(), results(row("stock", 3), row("prealloc", 3))])
    assert shown.count("some-model") == 1
    cells = "4,000 of 50,000 | 0.60 × | 2.00 × | 2.00 × | 20 of 20"
    assert shown.splitlines()[-1] == f"| some-model, float32 | transformers | 20 | {cells} |"


def test_readme_table_marks_random_weights():
    line = readme.table([results(weights="random")]).splitlines()[-1]
    assert "some-model (random weights)" in line and line.endswith("| – |")


def test_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="no marks"):
        readme.replaced("# vt\n", "x")


@pytest.mark.parametrize(
    "script", sorted(Path(readme.__file__).parent.glob("*.py")), ids=lambda path: path.stem
)
def test_scripts_can_be_imported(script):
    importlib.import_module(f"benchmarks.{script.stem}")


def found():
    return guard.figures_of(results())


def test_guard_accepts_recorded_and_better_figures():
    recorded = {name: value for name, (_, value) in found().items()}
    assert all(line.ok for line in guard.compare(found(), recorded))
    slower = recorded | {"tokens/s, exact / full": recorded["tokens/s, exact / full"] / 3}
    assert all(line.ok for line in guard.compare(found(), slower))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("static rows", 1.001),
        ("exact texts that are the full head's", 1.05),
        ("misses", 3),
        ("resident bytes, prealloc / full", 1.02),
        ("peak above idle, exact / full", 0.8),
        ("tokens/s, approximate / full", 1.6),
        ("time to the first token, exact / full", 0.6),
    ],
)
def test_guard_reports_figures_outside_the_range(name, factor):
    recorded = {each: value for each, (_, value) in found().items()}
    lines = list(guard.compare(found(), recorded | {name: recorded[name] * factor}))
    assert [line.name for line in lines if not line.ok] == [name]
    assert "OFF" in guard.text(lines)


def test_guard_rejects_figures_that_were_not_recorded():
    assert not any(line.ok for line in guard.compare(found(), {}))


def test_guard_asks_for_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "RECORD", tmp_path / "guard.json")
    done = CliRunner().invoke(guard.main, ["--backend", "torch"])
    assert done.exit_code == 1 and "run it once with --record" in done.stderr


def test_guard_records_and_compares(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "RECORD", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "measure", lambda backend: results())
    assert CliRunner().invoke(guard.main, ["--backend", "torch", "--record"]).exit_code == 0
    assert CliRunner().invoke(guard.main, ["--backend", "torch"]).exit_code == 0
    slow = row("prealloc", 20, decode_s=[5.0] * 20)
    rows = [slow if each["variant"] == "prealloc" else each for each in results()["rows"]]
    monkeypatch.setattr(guard, "measure", lambda backend: results(*rows))
    done = CliRunner().invoke(guard.main, ["--backend", "torch"])
    assert done.exit_code == 1 and "| tokens/s, exact / full |" in done.stdout and "OFF" in done.stdout


def test_guard_has_recorded_every_figure():
    recorded = json.loads(guard.RECORD.read_text())
    assert recorded
    for about in recorded.values():
        assert set(found()) <= set(about["figures"])
        assert about["n"] == guard.LIMIT and about["machine"] and about["versions"]["vt"]
    assert Figures(results()).base.name == "stock"
