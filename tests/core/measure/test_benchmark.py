"""Order of the measurements and content of the results, with fake workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vt_core.files.model_dir import ModelDirectory
from vt_core.measure import benchmark
from vt_core.measure.benchmark import Benchmark, _draft_lengths, job, model_name, run
from vt_core.measure.job import Job
from vt_core.measure.prompts import Prompts
from vt_core.measure.variants import parse_variants

pytestmark = pytest.mark.slow

PROMPTS = Prompts(tuple((1, 2, index) for index in range(5)), (9,), "made up")


class FakeWorker:
    """Logs its calls; writes the last id of its prompt and three more, one of them wrong if approximate."""

    log: list[tuple[str, object]]
    loads = 0

    def __init__(self, job):
        self.job = job
        self.about = {"device": "cpu", "dtype": "float32", "load_s": 1.0}
        type(self).loads += 1
        self._size = 1000 + type(self).loads
        self.log.append((job.name, "load"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.log.append((self.job.name, "close"))

    def warm_up(self, prompt, max_tokens):
        assert tuple(prompt) == PROMPTS.warm_up
        self.log.append((self.job.name, "warm-up"))

    def generate(self, prompt, max_tokens):
        self.log.append((self.job.name, prompt[-1]))
        found = {"token_ids": [prompt[-1], 5, 6 if self.job.exact else 7, 8]}
        found |= {"ttft_s": 0.1, "decode_s": 0.3, "e2e_s": 0.4}
        if self.job.head is None:
            return found
        counts = {"static_rows": 7, "learned_rows": 0, "dynamic_rows": 3, "vocab_bytes_resident": 40}
        return found | counts | {"verifications": 1, "rescued": 0, "rolled_back": 0, "verify_s": 0.05}

    def memory(self):
        sizes = dict.fromkeys(("idle_bytes", "loading_peak_bytes", "peak_bytes"), self._size)
        return sizes | {"anonymous_bytes": None, "allocator_bytes": None}


@pytest.fixture
def bench(tiny):
    """``bench(backend, variants, task)``: a benchmark of a tiny model."""

    def make(backend, names, task=(), **changes):
        variants = parse_variants(names)
        return Benchmark(
            backend=backend,
            directory=ModelDirectory.open(tiny("llama")[1]),
            stock=None,
            variants=variants,
            tasks={variant.name: task for variant in variants},
            prompts=PROMPTS,
            max_tokens=4,
            minimum=2,
            command="x",
            **{"seed": 0, **changes},
        )

    return make


@pytest.fixture
def measure(bench, monkeypatch):
    """``measure(together)``: the results, and the log of the workers."""

    def make(together, **changes):
        FakeWorker.log, FakeWorker.loads = [], 0
        monkeypatch.setattr(benchmark, "Worker", FakeWorker)
        made = bench("torch", "stock,full,prealloc-approximate,prealloc", together=together, **changes)
        told: list[str] = []
        results = run(made, told.append)
        assert len(told) == made.steps == 20
        return results, FakeWorker.log

    return make


def test_variants_take_turns_on_each_prompt_in_shuffled_order(measure):
    results, log = measure(together=4)
    names = [row["variant"] for row in results["rows"]]
    assert [what for _, what in log[:8]] == ["load", "warm-up"] * 4
    turns = [[name for name, what in log if what == index] for index in range(5)]
    assert all(sorted(turn) == sorted(names) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert [what for _, what in log[8:28:4]] == list(range(5))
    assert [row["n"] for row in results["rows"]] == [5] * 4 and results["settings"]["rounds"] == 1
    assert measure(together=4)[1] == log != measure(together=4, seed=1)[1]


def test_variants_that_do_not_fit_together_are_loaded_in_rounds(measure):
    results, log = measure(together=3)
    assert results["settings"]["rounds"] == 4
    assert sum(what == "load" for _, what in log) == 16
    open_now, most = 0, 0
    for _, what in log:
        open_now += {"load": 1, "close": -1}.get(what, 0)
        most = max(most, open_now)
    assert most == 3 and open_now == 0
    for row in results["rows"]:
        asked = [what for name, what in log if name == row["variant"] and isinstance(what, int)]
        assert sorted(asked) == list(range(5)) and row["n"] == 5
    # The largest of its processes.
    assert results["rows"][0]["memory"]["peak_bytes"] == 1013


def test_texts_are_compared_with_those_of_the_full_head(measure):
    rows = {row["variant"]: row for row in measure(together=4)[0]["rows"]}
    assert rows["prealloc"]["same_tokens"] == [-1] * 5
    assert rows["prealloc-approximate"]["same_tokens"] == [2] * 5
    assert "rescued" not in rows["stock"] and rows["prealloc"]["rescued"] == [0] * 5


def test_job_describes_a_variant(bench):
    made = bench("mlx", "prealloc-approximate-ram", ["a.vt.json"], dtype="float16")
    expected = Job(
        name="prealloc-approximate-ram",
        backend="mlx",
        model=str(made.directory.path),
        head="prealloc",
        exact=False,
        store="ram",
        task=["a.vt.json"],
        dtype="float16",
        draft="none",
    )
    assert job(made, made.variants[0]) == expected


def test_job_of_a_variant_that_drafts_has_the_table(bench):
    made = bench("torch", "full,full+draft", draft_file=Path("a.ngrams"))
    plain, drafting = (job(made, variant) for variant in made.variants)
    assert (plain.draft, plain.draft_file) == ("none", None)
    assert (drafting.draft, drafting.draft_file, drafting.head) == ("ngram", "a.ngrams", "full")


def test_reads_of_each_draft_length_are_summed():
    requests = [
        {"draft_lengths": [(0, (3,), 0.5), (2, (1, 0, 2), 0.25)]},
        {"draft_lengths": [(1, (1, 1), 0.125), (2, (0, 1, 1), 0.25)]},
    ]
    assert _draft_lengths(requests) == [(0, [3], 0.5), (1, [1, 1], 0.125), (2, [1, 1, 3], 0.5)]


def test_cached_model_has_the_name_of_its_source(tiny, monkeypatch, tmp_path):
    source, path = tiny("llama")
    directory = ModelDirectory.open(path)
    monkeypatch.setenv("VT_CACHE", str(tmp_path))
    assert model_name(directory) == path.name
    monkeypatch.setenv("VT_CACHE", str(path.parent))
    assert model_name(directory) == source.name
