"""The HTML report is complete and self-contained; a real browser shows it, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.core.measure.made_up import drafting_row, results, row
from vt_core.measure.bench_report import bench_report
from vt_core.measure.output import write_bench
from vt_core.measure.plots import draw
from vt_core.measure.report import html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "source"}


def page(made) -> str:
    return html(bench_report(made))


class Reader(HTMLParser):
    """Collects cells, sources and text; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "srcset", "href") if name in values]
        if tag == "img":
            self.alternatives.append(values["alt"])
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("report")
    assert write_bench(results(), out) == ""
    return out


def test_page_has_every_cell_and_loads_nothing(written):
    text = (written / "report.html").read_text()
    reader = read(text)
    expected = [
        cell
        for table in bench_report(results()).tables
        for line in (table.columns, *table.rows)
        for cell in line
    ]
    assert reader.cells == expected
    assert len(reader.sources) == 8 and all(
        each.startswith("data:image/png;base64,") for each in reader.sources
    )
    assert "http" not in text and "script" not in reader.tags and "@import" not in text
    assert len(set(reader.alternatives)) == 4


def test_pictures_are_reproducible_png_files(written):
    pictures = draw(results())
    assert [picture.name for picture in pictures] == ["memory", "latency", "speed", "misses"]
    for picture in pictures:
        assert picture.light.startswith(b"\x89PNG") and picture.light != picture.dark
        assert (written / f"{picture.name}.png").read_bytes() == picture.light


def test_pictures_carry_their_caveats():
    pytest.importorskip("matplotlib")
    few = results(row("stock", 3), row("full", 3), weights="random")
    pictures = draw(few)
    assert [picture.name for picture in pictures] == ["memory", "latency"]
    assert {picture.text.partition(" (")[2] for picture in pictures} == {"random weights, few prompts)"}


def test_only_measured_pictures_are_drawn():
    pytest.importorskip("matplotlib")
    sizes = [row("prealloc", 20, variant=f"prealloc@{rows}", static_rows=rows) for rows in (1024, 4096)]
    assert [picture.name for picture in draw(results(*sizes))] == ["speed", "misses"]
    names = [picture.name for picture in draw(results(row("prealloc", 3), drafting_row()))]
    assert names[2:] == ["speed", "acceptance", "draft-speed", "misses"]
    lengths = [drafting_row(f"draft@{length}") for length in (1, 2, 4)]
    names = [picture.name for picture in draw(results(row("prealloc", 3), *lengths))]
    assert names[2:] == ["speed", "acceptance", "draft-speed", "misses"]
    idle = drafting_row() | {"drafted": [0] * 20, "draft_lengths": [[0, [20], 0.4]]}
    assert "acceptance" not in [picture.name for picture in draw(results(row("prealloc", 3), idle))]


def test_names_are_escaped():
    made = results()
    made["model"] = made["model"] | {"name": "<script>alert(1)</script>"}
    text = page(made)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_cards_and_warnings_are_shown():
    assert 'class="card"' in page(results()) and "2.00 ×" in page(results())
    assert 'class="card"' not in page(results(row("stock", 20), row("full", 20)))
    assert 'class="warning"' not in page(results())
    assert 'class="warning"' in page(results(row("stock", 3), row("prealloc", 3)))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_browser_shows_page_without_errors(written, tmp_path):
    shot = tmp_path / "shot.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,3000"]
    target = (written / "report.html").as_uri()
    done = subprocess.run(
        [BROWSER, *options, "--dump-dom", target], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    reader = read(done.stdout)
    assert reader.cells == read((written / "report.html").read_text()).cells
    for claim in bench_report(results()).claims:
        assert claim.split("`")[1] in done.stdout
    subprocess.run([BROWSER, *options, f"--screenshot={shot}", target], capture_output=True, timeout=120)
    assert shot.stat().st_size > 50_000  # an empty page of this size has about 10,000 bytes
