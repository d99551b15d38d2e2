"""Measure the profiler: sizes and coverage by task, an ablation, and speed.

    python -m benchmarks.profiler sizes    --data DATA --tokenizer qwen3=PATH:151936 --out DIR
    python -m benchmarks.profiler ablation --data DATA --tokenizer qwen3=PATH:151936 --out DIR
    python -m benchmarks.profiler speed    --data DATA --tokenizer qwen3=PATH:151936 --out DIR

DATA holds the corpora of `TASKS` (JSON lines with `input` and `output`). PATH is a tokenizer.json, and the
number after it the rows of the model's table; `--tokenizer` is repeatable. Each command writes a JSON file
and a Markdown table to DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.profile import Profiler, RowFormat, Stages


@dataclass(frozen=True)
class Task:
    profile: tuple[str, ...]
    held_out: str
    languages: tuple[str, ...]


TASKS = {
    "math": Task(("math/gsm8k_profile",), "math/gsm8k_eval", ("en", "math")),
    "code, fill-in": Task(("code/safim_block_profile",), "code/safim_block_eval", ("en", "code")),
    "code, functions": Task(("code/mbpp_profile",), "code/humaneval_eval", ("en", "code")),
    "en-it": Task(("translation/en-it_wmt09_profile",), "translation/en-it_ntrex_eval", ("it",)),
    "en-zh": Task(
        (
            "translation/en-zh_wmt17-18-20_profile",
            "translation/en-zh_ntrex_profile",
            "translation/en-zh_tatoeba_profile",
        ),
        "translation/en-zh_ntrex_eval",
        ("zh",),
    ),
    "summarization": Task(("summarization/xsum_profile",), "summarization/xsum_eval", ("en",)),
    "qa": Task(("qa/squad_profile",), "qa/squad_eval", ("en",)),
}

#: Corpora with short rows (230 bytes on average), so that a million of them take minutes.
SPEED_FILES = (
    "math/gsm8k_profile",
    "math/mawps_profile",
    "translation/en-it_wmt09_profile",
    "translation/en-zh_wmt17-18-20_profile",
    "translation/en-zh_tatoeba_profile",
)

#: Rows without input: what a static set covers without the tokens of the prompt.
NO_INPUT = RowFormat(inputs=("",))

TOLERANCES = (0.0, 0.01, 0.05, 0.1)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=[*COMMANDS, "speed-child"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", action="append", default=[], metavar="NAME=PATH:ROWS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000, help="speed: rows of the large corpus")
    parser.add_argument("--loop-rows", type=int, default=20_000, help="speed: rows for the simple loop")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.command == "speed-child":
        print(json.dumps(WAYS[arguments.way](arguments.data, Path(arguments.tokenizer[0]))))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = list(by_tokenizer(arguments))
    (arguments.out / f"profiler-{arguments.command}.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = markdown(rows)
    (arguments.out / f"profiler-{arguments.command}.md").write_text(table)
    print(table)


def by_tokenizer(arguments: argparse.Namespace) -> Iterator[Row]:
    for spec in arguments.tokenizer:
        name, _, rest = spec.partition("=")
        path, _, vocab_rows = rest.rpartition(":")
        profiler = Profiler(Path(path), int(vocab_rows), name)
        for row in COMMANDS[arguments.command](profiler, arguments):
            yield {"tokenizer": name, **row}


def files(directory: Path, names: Sequence[str]) -> list[Path]:
    return [directory / f"{name}.jsonl" for name in names]


def markdown(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(key, row.get(key)) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2%}" if "share" in key or "missing" in key or "whole" in key else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def sizes(profiler: Profiler, arguments: argparse.Namespace) -> Iterator[Row]:
    """Number of ids after each stage (table 8 of the paper), and coverage of held-out outputs."""
    for name, task in TASKS.items():
        counts = profiler.count(files(arguments.data, task.profile))
        with_prior = profiler.select(counts, Stages(), task.languages)
        without = profiler.select(counts, Stages(prior=0), task.languages)
        plain, prior = profiler.cover(files(arguments.data, (task.held_out,)), (without.ids, with_prior.ids))
        yield {
            "task": name,
            "examples": counts.examples,
            **with_prior.stages,
            "share of V": len(with_prior.ids) / profiler.rows,
            "copied share": plain.copied / plain.tokens,
            "missing, no prior": 1 - float(plain.token_curve()[-1]),
            "missing": 1 - float(prior.token_curve()[-1]),
            "examples whole": float(prior.example_curve()[-1]),
        }


def ablation(profiler: Profiler, arguments: argparse.Namespace) -> Iterator[Row]:
    """Leave out each part, as in appendix E of the paper, and measure the missing tokens."""
    alone = Profiler(profiler.tokenizer_json, profiler.vocab_rows, row_format=NO_INPUT)
    for name, task in TASKS.items():
        counts = profiler.count(files(arguments.data, task.profile))
        held_out = files(arguments.data, (task.held_out,))
        chosen = profiler.select(counts, Stages(prior=0), task.languages).ids
        unaware = Stages(prior=0, input_aware=False)
        variants = {
            "static and dynamic": chosen,
            "dynamic only": np.empty(0, np.int64),
            "not input-aware": profiler.select(counts, unaware, task.languages).ids,
            "no language filter": profiler.select(counts, Stages(prior=0)).ids,
            "no filter at all": np.flatnonzero(counts.written[: profiler.rows]),
            "with the prior": profiler.select(counts, Stages(), task.languages).ids,
        }
        for tolerance in TOLERANCES:
            stages = Stages(tolerance, prior=0)
            variants[f"tolerance {tolerance}"] = profiler.select(counts, stages, task.languages).ids
        covered = profiler.cover(held_out, list(variants.values()))
        yield from (
            result_row(name, variant, coverage) for variant, coverage in zip(variants, covered, strict=True)
        )
        yield result_row(name, "static only", alone.cover(held_out, [chosen])[0])


def result_row(task: str, variant: str, coverage: Any) -> Row:
    return {
        "task": task,
        "variant": variant,
        "static rows": coverage.limit,
        "missing": 1 - float(coverage.token_curve()[-1]),
        "examples whole": float(coverage.example_curve()[-1]),
    }


def speed(profiler: Profiler, arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows per second and peak memory of each way to count, each in a process of its own."""
    corpus = {}
    for rows in sorted({arguments.loop_rows, arguments.rows // 10, arguments.rows}):
        corpus[rows] = arguments.out / f"speed-{rows}.jsonl"
        make_corpus(files(arguments.data, SPEED_FILES), corpus[rows], rows)
    counted = [
        (way, rows) for rows in (arguments.rows // 10, arguments.rows) for way in WAYS if way != "loop"
    ]
    # The loop runs first and last: the two show how steady the machine was.
    plan = [("loop", arguments.loop_rows), *counted, ("loop", arguments.loop_rows)]
    for way, rows in plan:
        command = [sys.executable, "-m", "benchmarks.profiler", "speed-child", "--way", way]
        command += ["--data", str(corpus[rows])]
        command += ["--tokenizer", str(profiler.tokenizer_json), "--out", str(arguments.out)]
        load = os.getloadavg()[0]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        yield {"way": way, "rows": rows, **result, "load before": load}
    for path in corpus.values():
        path.unlink()


def make_corpus(sources: Sequence[Path], target: Path, rows: int) -> None:
    """Write distinct rows: the words of source rows, rotated, with a few words of another row."""
    originals = [json.loads(line) for path in sources for line in path.open(encoding="utf-8")]
    chance = random.Random(rows)
    seen: set[int] = set()

    def rotated(text: str) -> str:
        words = text.split(" ") + chance.choice(originals)["input"].split(" ")[:3]
        places = chance.randrange(len(words))
        return " ".join(words[places:] + words[:places])

    with target.open("w", encoding="utf-8") as file:
        while len(seen) < rows:
            row = chance.choice(originals)
            line = json.dumps({key: rotated(row[key]) for key in ("input", "output")}, ensure_ascii=False)
            if hash(line) not in seen:
                seen.add(hash(line))
                file.write(line + "\n")


def count_loop(corpus: Path, tokenizer_json: Path) -> Row:
    """Count in the simplest way: call `tokenizer(...)` for each text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_json.parent))
    needed: Counter[int] = Counter()
    rows = 0
    start = clocks()
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            ids_in = set(tokenizer(row["input"], add_special_tokens=False)["input_ids"])
            needed.update(set(tokenizer(row["output"], add_special_tokens=False)["input_ids"]) - ids_in)
            rows += 1
    return measured(rows, start, needed)


def count_profiler(corpus: Path, tokenizer_json: Path, processes: int) -> Row:
    profiler = Profiler(tokenizer_json)
    profiler.empty()
    start = clocks()
    counts = profiler.count([corpus], processes=processes)
    return measured(counts.examples, start, Counter(dict(enumerate(counts.needed.tolist()))))


def one_thread(corpus: Path, tokenizer_json: Path) -> Row:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return count_profiler(corpus, tokenizer_json, 1)


def clocks() -> tuple[float, float]:
    """Seconds of the wall clock, and processor seconds of this process and its finished children."""
    return time.perf_counter(), sum(os.times()[:4])


def measured(rows: int, start: tuple[float, float], needed: Counter[int]) -> Row:
    seconds, busy = (now - then for now, then in zip(clocks(), start, strict=True))
    own, children = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "rows/s": rows / seconds,
        # More useful than the wall clock on a machine with other work.
        "rows/processor s": rows / busy,
        "peak MB": own * unit / 1e6,
        "peak MB of a child": children * unit / 1e6 if children else None,
        "ids": sum(count > 0 for count in needed.values()),
        "document frequency": sum(needed.values()),
    }


WAYS: dict[str, Callable[[Path, Path], Row]] = {
    "loop": count_loop,
    "one process, one thread": one_thread,
    "one process, its threads": lambda corpus, tokenizer_json: count_profiler(corpus, tokenizer_json, 1),
    "two processes": lambda corpus, tokenizer_json: count_profiler(corpus, tokenizer_json, 2),
}
COMMANDS: dict[str, Callable[[Profiler, argparse.Namespace], Iterator[Row]]] = {
    "sizes": sizes,
    "ablation": ablation,
    "speed": speed,
}

if __name__ == "__main__":
    main()
