"""Makes the collection of task vocabularies, and the tables of its README.

    python vocabularies/make.py profile --data DATA --tokenizer qwen3=PATH --tokenizer gemma3=PATH …
    python vocabularies/make.py misses --data DATA --model PATH …

DATA holds the corpora that `CORPORA` lists. A PATH is whatever `profile --model` takes. `profile` writes
NAME-DIGEST/TASK.vt.json for each tokenizer and task, with held-out coverage. `misses` lets models answer
held-out inputs, and counts the tokens of their answers that are neither in the prompt nor in the vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vt_core import load
from vt_core.cli.tokenizer_source import find_tokenizer
from vt_core.profile import Profiler, RowFormat, Stages, merge_all
from vt_core.profile.rows import each_row
from vt_core.vocab.collection import find_task
from vt_core.vocab.task import TaskVocabulary

HERE = Path(__file__).parent
#: For each model and task: tokens of its answers, and how many of them are missing.
MISSES = HERE / "misses.json"

WMT = "Helsinki-NLP/OPUS-MT-testsets, WMT news tests"
NTREX = "MicrosoftTranslator/NTREX"

#: Origin and license of each corpus.
CORPORA = {
    "math/gsm8k_profile": ("openai/grade-school-math, train", "MIT"),
    "math/mawps_profile": ("LYH-YF/MWPToolkit, MAWPS", "MIT"),
    "qa/squad_profile": ("SQuAD 1.1", "CC BY-SA 4.0"),
    "summarization/xsum_profile": ("XSum", "research use"),
    "code/safim_block_profile": ("gonglinyuan/safim, block", "MIT, CC BY 4.0"),
    "code/safim_control_profile": ("gonglinyuan/safim, control", "MIT, CC BY 4.0"),
    "code/mbpp_profile": ("MBPP", "CC BY 4.0"),
    "translation/en-it_wmt09_profile": (WMT, "research use"),
    "translation/en-zh_wmt17-18-20_profile": (WMT, "research use"),
    "translation/en-zh_tatoeba_profile": ("Helsinki-NLP/OPUS-MT-testsets, Tatoeba", "CC BY 2.0 FR"),
    "translation/en-zh_ntrex_profile": (NTREX, "CC BY-SA 4.0"),
    "medical/medquad_profile": ("abachaa/MedQuAD", "CC BY 4.0"),
    "sql/text2sql_profile": ("jkkummerfeld/text2sql-data", "research use"),
    "intent/snips_profile": ("sonos/nlu-benchmark", "CC0 1.0"),
}

#: What of a row is counted: the output without the tokens of the input, or one whole field.
PAIR = RowFormat()
INPUT, OUTPUT = (RowFormat(inputs=("",), outputs=(field,)) for field in ("input", "output"))


@dataclass(frozen=True)
class Recipe:
    """What a task vocabulary is made from."""

    #: Corpora, each with the format of its rows.
    corpora: tuple[tuple[str, RowFormat], ...]
    held_out: str
    #: Languages of the language filter; empty for none.
    languages: tuple[str, ...] = ()
    stages: Stages = field(default_factory=Stages)
    #: What a model is asked to do with an input.
    instruction: str = ""


def _pairs(held_out: str, *corpora: str, languages: tuple[str, ...] = (), instruction: str = "") -> Recipe:
    parts = tuple((corpus, PAIR) for corpus in corpora)
    return Recipe(parts, held_out, languages, instruction=instruction)


#: Long and varied texts need nearly all tokens within the usual tolerance.
BUDGET = Stages(rows=16_384)

ITALIAN = "translation/en-it_wmt09_profile"
CHINESE = (
    "translation/en-zh_wmt17-18-20_profile",
    "translation/en-zh_tatoeba_profile",
    "translation/en-zh_ntrex_profile",
)

RECIPES = {
    "math": _pairs("math/gsm8k_eval", "math/gsm8k_profile", "math/mawps_profile"),
    "qa": _pairs("qa/squad_eval", "qa/squad_profile"),
    "summarization": _pairs(
        "summarization/xsum_eval", "summarization/xsum_profile", instruction="Summarize in one sentence."
    ),
    "code": _pairs(
        "code/humaneval_eval", "code/safim_block_profile", "code/safim_control_profile", "code/mbpp_profile"
    ),
    "translation-en-it": _pairs(
        "translation/en-it_ntrex_eval", ITALIAN, languages=("it",), instruction="Translate into Italian."
    ),
    "translation-en-zh": _pairs(
        "translation/en-zh_ntrex_eval", *CHINESE, languages=("zh",), instruction="Translate into Chinese."
    ),
    "medical": _pairs("medical/medquad_eval", "medical/medquad_profile"),
    "sql": _pairs("sql/text2sql_eval", "sql/text2sql_profile", instruction="Write the SQL query."),
    "intent": _pairs(
        "intent/snips_eval", "intent/snips_profile", instruction="Give the intent and its slots as JSON."
    ),
    "general-en": Recipe(
        (
            ("summarization/xsum_profile", INPUT),
            ("qa/squad_profile", INPUT),
            ("translation/en-zh_wmt17-18-20_profile", INPUT),
            ("medical/medquad_profile", OUTPUT),
            ("math/gsm8k_profile", OUTPUT),
        ),
        "summarization/xsum_eval",
        ("en",),
        BUDGET,
    ),
    "general-it": Recipe(((ITALIAN, OUTPUT),), "translation/en-it_ntrex_eval", ("it",), BUDGET),
    "general-zh": Recipe(
        tuple((corpus, OUTPUT) for corpus in CHINESE), "translation/en-zh_ntrex_eval", ("zh",), BUDGET
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("profile", "misses"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--model", action="append", default=[], type=Path)
    parser.add_argument("--task", action="append", choices=RECIPES, help="misses: default: all but general")
    parser.add_argument("--prompts", type=int, default=4, help="misses: inputs per task")
    parser.add_argument("--max-tokens", type=int, default=96, help="misses: most tokens per answer")
    arguments = parser.parse_args()
    if arguments.command == "profile":
        for tokenizer in arguments.tokenizer:
            name, _, path = tokenizer.partition("=")
            make(name, path, arguments.data)
        write_table("vocabularies", coverage_table())
        write_table("sources", sources_table())
    else:
        for model in arguments.model:
            found = json.loads(MISSES.read_text()) if MISSES.exists() else {}
            found.setdefault(model.stem, {}).update(misses(model, arguments))
            MISSES.write_text(json.dumps(found, indent=1) + "\n")
        write_table("misses", misses_table())


def make(name: str, tokenizer: str, data: Path) -> None:
    """Write all task vocabularies of a tokenizer."""
    found = find_tokenizer(tokenizer)
    base = Profiler(found.tokenizer_json, found.vocab_rows, name)
    directory = HERE / f"{name}-{base.digest[:12]}"
    directory.mkdir(exist_ok=True)
    for task_name, recipe in RECIPES.items():
        parts = [
            replace(base, row_format=row_format).count([data / f"{corpus}.jsonl"])
            for corpus, row_format in recipe.corpora
        ]
        profiler = replace(base, row_format=recipe.corpora[0][1])
        counts = merge_all(parts)
        task = profiler.select(counts, recipe.stages, recipe.languages, task_name)
        held_out = data / f"{recipe.held_out}.jsonl"
        task, _ = profiler.held_out(task, counts, [held_out], recipe.stages)
        origins = {Path(corpus).name + ".jsonl": CORPORA[corpus] for corpus, _ in recipe.corpora}
        source = tuple(
            {**entry, "origin": origins[entry["file"]][0], "license": origins[entry["file"]][1]}
            for entry in task.source
        )
        replace(task, source=source).save(directory / f"{task_name}.vt.json")
        print(directory.name, task_name, len(task.ids))


def misses(path: Path, arguments: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """For each task that a model can answer: tokens of its answers, and how many of them are missing."""
    found = {}
    with load(path, head="full") as model:
        manifest, encode = model.directory.manifest, model.tokenizer.encode_chat
        for name in arguments.task or [name for name in RECIPES if not name.startswith("general")]:
            recipe = RECIPES[name]
            file = find_task(name, manifest.tokenizer_digest)
            static = {*TaskVocabulary.load(file).ids.tolist(), *model.tokenizer.added_ids()}
            static |= model.tokenizer.eos_ids(manifest.vocab_rows)
            tokens = missing = 0
            for prompt in islice(_prompts(arguments.data, recipe), arguments.prompts):
                given = static.union(encode([{"role": "user", "content": prompt}]).tolist())
                answer = model.generate(prompt, max_tokens=arguments.max_tokens).token_ids
                tokens += len(answer)
                missing += sum(token_id not in given for token_id in answer)
            found[name] = tokens, missing
            print(path.name, name, tokens, missing, flush=True)
    return found


def _prompts(data: Path, recipe: Recipe) -> Iterator[str]:
    asking = RowFormat(prompt=f"{recipe.instruction}\n\n{{input}}".lstrip())
    return each_row([data / f"{recipe.held_out}.jsonl"], asking.prompt_text, ("input",))


def entries() -> dict[str, dict[str, TaskVocabulary]]:
    """All vocabularies, by task and tokenizer."""
    directories = sorted(path for path in HERE.iterdir() if any(path.glob("*.vt.json")))
    return {
        name: {
            path.name.rpartition("-")[0]: TaskVocabulary.load(path / f"{name}.vt.json")
            for path in directories
        }
        for name in RECIPES
    }


def coverage_table() -> list[list[str]]:
    """Sizes, and shares of held-out tokens that are missing."""
    found = entries()
    tokenizers = list(next(iter(found.values())))
    rows = [["task", "examples", "held out", *tokenizers]]
    for name, tasks in found.items():
        first = next(iter(tasks.values()))
        cells = [f"{len(task.ids):,}: {1 - _held_out(task)['token_coverage']:.2%}" for task in tasks.values()]
        rows.append([name, f"{first.examples:,}", RECIPES[name].held_out, *cells])
    return rows


def _held_out(task: TaskVocabulary) -> Any:
    assert task.held_out is not None, f"{task.name}: profile it with held-out data"
    return task.held_out


def sources_table() -> list[list[str]]:
    """Where the corpora come from."""
    rows = [["corpus", "origin", "license", "used by"]]
    for corpus, (origin, license) in CORPORA.items():
        users = [name for name, recipe in RECIPES.items() if corpus in dict(recipe.corpora)]
        rows.append([corpus, origin, license, ", ".join(users)])
    return rows


def misses_table() -> list[list[str]]:
    """Missing tokens among those that models wrote."""
    found = json.loads(MISSES.read_text())
    rows = [["task", *found]]
    for name in RECIPES:
        cells = [_share(*tasks[name]) if name in tasks else "–" for tasks in found.values()]
        if set(cells) != {"–"}:
            rows.append([name, *cells])
    totals = [[sum(pair[index] for pair in tasks.values()) for index in (0, 1)] for tasks in found.values()]
    return [*rows, ["all", *(f"{_share(*total)}, {total[1] / total[0]:.1%}" for total in totals)]]


def _share(tokens: int, missing: int) -> str:
    return f"{missing} of {tokens:,}"


def write_table(mark: str, rows: list[list[str]]) -> None:
    """Replace the table of the README that stands between the comments of this name."""
    readme = HERE / "README.md"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    before, rest = readme.read_text().split(f"<!-- {mark} -->\n")
    after = rest.split(f"<!-- /{mark} -->")[1]
    readme.write_text(f"{before}<!-- {mark} -->\n" + "\n".join(lines) + f"\n<!-- /{mark} -->{after}")


if __name__ == "__main__":
    main()
