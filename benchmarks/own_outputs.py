"""Tokens that a model writes and the static set lacks, by the source of the static set.

    python -m benchmarks.own_outputs write  --data DATA --model MODEL --out DIR
    python -m benchmarks.own_outputs report --data DATA --model MODEL --out DIR

DATA holds the corpora of `benchmarks.profiler`. `write` lets the model answer the first inputs of each file
and resumes where an earlier run stopped. With `--batch N` the stock framework writes N answers at once, which
is faster (greedy, the same weights and prompts, in MODEL's dtype). `report` profiles and measures with the
answers written so far, and writes a Markdown table to DIR.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.profiler import TASKS, Row, files, markdown
from vt_core.files.model_dir import ModelDirectory
from vt_core.profile import Counts, Profiler, Stages
from vt_core.profile.language_filter import Mask
from vt_core.profile.selection import ordered_prior, select
from vt_core.types import Ids
from vt_core.vocab.prior import DEFAULT_PRIOR
from vt_core.vocab.tokenizer import Tokenizer

OWN_TASKS = ("math", "code, functions")

#: Prompts, and the full ids of the model's answers.
Outputs = list[tuple[str, list[int]]]
#: Returns the full ids of the answers to some prompts, including an end-of-text id.
Writer = Callable[[Sequence[str]], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("write", "report"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", action="append", choices=OWN_TASKS, help="default: all")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--profiled", type=int, default=60, help="inputs to profile on")
    parser.add_argument("--held-out", type=int, default=30, help="inputs to measure on")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--folds", type=int, default=0, help="report: measure on parts of what is profiled")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = arguments.task or OWN_TASKS
    if arguments.command == "write":
        write = (loop_writer if arguments.batch == 1 else batch_writer)(arguments)
        for source, target, limit in (part for name in tasks for part in parts(name, arguments)):
            continue_writing(source, target, limit, arguments.batch, write)
        return
    rows = [row for name in tasks for row in report(name, arguments)]
    (arguments.out / "own-outputs.md").write_text(markdown(rows))
    print(markdown(rows))


def parts(name: str, arguments: argparse.Namespace) -> list[tuple[Path, Path, int]]:
    """Corpus, file of the model's answers and number of rows, for profiling and for measuring."""
    task = TASKS[name]
    return [
        (source, arguments.out / f"own-{source.name}", limit)
        for source, limit in zip(
            files(arguments.data, (*task.profile, task.held_out)),
            (arguments.profiled, arguments.held_out),
            strict=True,
        )
    ]


def inputs(corpus: Path, limit: int) -> list[str]:
    with corpus.open(encoding="utf-8") as lines:
        return [json.loads(line)["input"] for line in islice(lines, limit)]


def continue_writing(source: Path, target: Path, limit: int, batch: int, write: Writer) -> None:
    done = len(written(target))
    prompts = inputs(source, limit)
    with target.open("a", encoding="utf-8") as out:
        for start in range(done, len(prompts), batch):
            group = prompts[start : start + batch]
            for prompt, ids in zip(group, write(group), strict=True):
                out.write(json.dumps({"input": prompt, "token_ids": ids}) + "\n")
            out.flush()
            print(f"{target.name}: {start + len(group)} of {len(prompts)}", flush=True)


def written(target: Path) -> Outputs:
    """Prompts and answers of a file that `write` made."""
    if not target.exists():
        return []
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    return [(row["input"], row["token_ids"]) for row in rows]


def loop_writer(arguments: argparse.Namespace) -> Writer:
    from vt_core import load

    model = load(arguments.model, backend=arguments.backend)
    return lambda prompts: [
        list(model.generate(prompt, max_tokens=arguments.max_tokens).token_ids) for prompt in prompts
    ]


def batch_writer(arguments: argparse.Namespace) -> Writer:
    import torch
    from transformers import AutoModelForCausalLM

    from converters.export import stock_copy

    directory = ModelDirectory.open(arguments.model)
    tokenizer = Tokenizer(directory.path)
    ends = tokenizer.eos_ids(directory.manifest.vocab_rows)
    dtype = getattr(torch, directory.manifest.dtype)
    model = AutoModelForCausalLM.from_pretrained(stock_copy(directory), dtype=dtype).eval()

    def write(prompts: Sequence[str]) -> list[list[int]]:
        encoded = [chat_ids(tokenizer, prompt) for prompt in prompts]
        longest = max(map(len, encoded))
        padding = [[0] * (longest - len(ids)) for ids in encoded]
        out = model.generate(
            torch.tensor([pad + ids for pad, ids in zip(padding, encoded, strict=True)]),
            attention_mask=torch.tensor(
                [pad + [1] * len(ids) for pad, ids in zip(padding, encoded, strict=True)]
            ),
            do_sample=False,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=arguments.max_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
        )
        return [until_end(ids, ends) for ids in out[:, longest:].tolist()]

    return write


def chat_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]).tolist()


def until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    return next((ids[: place + 1] for place, id in enumerate(ids) if id in ends), ids)


def report(name: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Share of missing tokens in the model's answers, for each source of the static set.

    Measured on the held-out inputs or, with `--folds`, on each part of the profiled ones in turn, left out of
    the profile.
    """
    directory = ModelDirectory.open(arguments.model)
    tokenizer = Tokenizer(directory.path)
    profiler = Profiler(directory.path / "tokenizer.json", directory.manifest.vocab_rows)
    always = set(profiler.always.tolist())
    allowed = profiler.allowed(TASKS[name].languages)
    (source, own, _), (_, held_out, _) = parts(name, arguments)
    with source.open(encoding="utf-8") as lines:
        corpus = [json.loads(line) for line in lines]
    figures: dict[str, list[tuple[int, int, int, int]]] = {}
    for profiled, measured in splits(written(own), written(held_out), arguments.folds):
        left_out = {prompt for prompt, _ in measured}
        rows = [row for row in corpus if row["input"] not in left_out]
        for label, examples, ids in static_sets(profiler, allowed, rows, profiled):
            active = always.union(ids.tolist())
            missing = sum(
                sum(id not in active for id in output if id not in given)
                for given, output in (
                    (set(chat_ids(tokenizer, prompt)), output) for prompt, output in measured
                )
            )
            tokens = sum(len(output) for _, output in measured)
            figures.setdefault(label, []).append((examples, len(ids), missing, tokens))
    for label, found in figures.items():
        examples, static, missing, tokens = (sum(column) for column in zip(*found, strict=True))
        yield {
            "task": name,
            "profile": label,
            "profiled": examples // len(found),
            "static rows": static // len(found),
            "tokens": tokens,
            "missing": missing / tokens,
        }


def splits(own: Outputs, held_out: Outputs, folds: int) -> Iterator[tuple[Outputs, Outputs]]:
    """Split into answers to profile and answers to measure."""
    if not folds:
        yield own, held_out
    for fold in range(folds):
        yield [row for place, row in enumerate(own) if place % folds != fold], own[fold::folds]


def static_sets(
    profiler: Profiler, allowed: Mask | None, rows: list[dict[str, str]], own: Outputs
) -> Iterator[tuple[str, int, Ids]]:
    """Name, number of profiled examples, and ids of each static set."""
    prompts = {prompt for prompt, _ in own}
    references = count(profiler, rows)
    outputs = count(profiler, [{"input": prompt} for prompt, _ in own], [ids for _, ids in own])
    sources = {
        "references": references,
        "references of the same inputs": count(profiler, [row for row in rows if row["input"] in prompts]),
        "own outputs": outputs,
        "references and own outputs": references.merge(outputs),
    }
    prior = ordered_prior(profiler.table, profiler.rows, DEFAULT_PRIOR, allowed)
    yield "prior", 0, prior
    for source, counts in sources.items():
        for label, size in ((source, 0), (f"{source}, prior", DEFAULT_PRIOR)):
            task = select(counts, profiler.table, profiler.rows, Stages(prior=size), allowed=allowed)
            yield label, counts.examples, task.ids


def count(profiler: Profiler, rows: list[dict[str, str]], outputs: list[list[int]] | None = None) -> Counts:
    """Count rows as `profile` does or, given the model's answers, as `profile --self` does."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if outputs is None:
            return profiler.count([file])
        coming = iter(outputs)
        return profiler.count_own([file], lambda prompt, most: next(coming))


if __name__ == "__main__":
    main()
