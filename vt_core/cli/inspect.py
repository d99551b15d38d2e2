"""``inspect``: describe a model directory, a task vocabulary or an n-gram table, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.options import FILE, json_option, quantize_option
from vt_core.cli.streams import write_json
from vt_core.errors import ModelError, escape_controls
from vt_core.files.integers import MODES

if TYPE_CHECKING:
    from vt_core.files.manifest import SourceInfo, TableInfo
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.vocab.ngrams import NgramTable
    from vt_core.vocab.task import TaskVocabulary

#: Rows of the head that the savings are estimated for.
EXAMPLE_ROWS = 8192
#: Length of a commit of the hub, the fingerprint of a source from there. Others are longer.
COMMIT_DIGITS = 40

Report = dict[str, Any]
Lines = list[tuple[str, str]]


@click.command()
@click.argument("path", type=FILE)
@click.option(
    "--verify", is_flag=True, help="Read all files and compare their digests; exit code 2 if one differs."
)
@click.option(
    "--measure",
    is_flag=True,
    help="Run the model, also with its full head, and print its speed and the miss rate up to which exact "
    "decoding is faster than the full head.",
)
@quantize_option
@json_option
@click.pass_obj
def inspect(
    backend: str, path: Path, verify: bool, measure: bool, quantize: str | None, as_json: bool
) -> None:
    """Describe PATH: a model directory, a task vocabulary or an n-gram table.

    \b
    Examples:
      vt-torch inspect gemma-vt
      vt-torch inspect gemma-vt --verify
      vt-torch inspect gemma-vt --measure
      vt-torch inspect math.vt.json --json
      vt-torch inspect math.ngrams
    """
    if quantize is not None and not measure:
        raise click.UsageError("--quantize goes with --measure: it sets how the model is loaded")
    if path.is_dir() or not path.exists():
        report, lines = _inspect_model(path, verify, backend if measure else None, quantize)
    else:
        if verify or measure:
            raise click.UsageError(f"{'--verify' if verify else '--measure'} is for model directories")
        report, lines = _inspect_file(path)
    if as_json:
        write_json(report)
        return
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(escape_controls(f"{name:<{width}}  {text}"))


def _inspect_model(
    path: Path, verify: bool, measured_on: str | None, quantize: str | None
) -> tuple[Report, Lines]:
    from vt_core.files.model_dir import ModelDirectory

    directory = ModelDirectory.open(path)
    report, lines = _model_report(directory)
    if verify:
        directory.verify()
        report["verified"] = True
        lines.append(("digests", f"verified, of {len(directory.manifest.files)} files"))
        if (unchecked := _unchecked(directory.manifest.source)) is not None:
            report["unchecked"] = unchecked
            lines.append(("unchecked", unchecked))
    if measured_on is not None:
        click.echo("measuring: the model is loaded twice and runs some tens of steps", err=True)
        measured, texts = _speed_report(directory, measured_on, quantize)
        report, lines = report | measured, lines + texts
    return report, lines


def _unchecked(source: SourceInfo) -> str | None:
    """What no digest can tell about a model directory; None for a model from the hub, which has digests."""
    from_hub = source.kind == "huggingface" and len(source.fingerprint) == COMMIT_DIGITS
    if from_hub or source.kind == "random":
        return None
    kind = "GGUF files" if source.kind == "gguf" else "plain directories"
    return f"whether {source.name} was whole when it was converted: {kind} have no digests"


def _inspect_file(path: Path) -> tuple[Report, Lines]:
    from vt_core.vocab.ngrams import NgramTable
    from vt_core.vocab.task import TaskVocabulary

    if path.suffix == ".gguf":
        raise ModelError(f"{path} is a GGUF file, not a model directory. Make one with the convert command.")
    if path.suffix == ".ngrams":
        return _ngrams_report(NgramTable.open(path))
    return _task_report(TaskVocabulary.load(path))


def _model_report(directory: ModelDirectory) -> tuple[Report, Lines]:
    from vt_core.vocab.merges import Merges

    manifest = directory.manifest
    tables, body = manifest.table_bytes, manifest.body_bytes
    rows = min(EXAMPLE_ROWS, manifest.vocab_rows)
    reduced = manifest.table_bytes_of(rows)
    report = {
        "kind": "model",
        "path": str(directory.path),
        "format_version": manifest.format_version,
        "source": {"kind": manifest.source.kind, "name": manifest.source.name},
        "model_type": manifest.model_type,
        "vocab_rows": manifest.vocab_rows,
        "hidden": manifest.hidden,
        "dtype": manifest.dtype,
        "tied": manifest.tied,
        "head_bias": manifest.head_bias,
        "tokenizer_digest": manifest.tokenizer_digest,
        "table_bytes": tables,
        "body_bytes": body,
        "total_bytes": manifest.total_bytes,
        "table_share": tables / (tables + body),
        "example_rows": rows,
        "example_table_bytes": reduced,
        "example_saved_bytes": tables - reduced,
    }
    merged = len(Merges.beside(directory.tokenizer_path))
    if merged:
        report["merged_tokens"] = merged
    if per_layer := manifest.tables.get("per_layer"):
        report["per_layer_rows"] = per_layer.rows
        report["per_layer_bytes"] = per_layer.rows * per_layer.row_bytes
    quantization = _quantization(directory)
    if quantization is not None:
        report["quantization"] = quantization
    joined = "embedding and head are one table" if manifest.tied else "separate embedding and head"
    lines = [
        ("model", f"{manifest.model_type}, from {manifest.source.name} ({manifest.source.kind})"),
        ("vocabulary", f"{manifest.vocab_rows:,} rows of {manifest.hidden:,} {manifest.dtype}, {joined}"),
        ("tables", f"{size_text(tables)}, {tables / (tables + body):.0%} of the model"),
        *_per_layer_lines(per_layer),
        ("rest", size_text(body)),
        *_quantized_lines(quantization),
        ("on disk", size_text(manifest.total_bytes)),
        ("tokenizer", manifest.tokenizer_digest),
        *([("enriched", f"with {merged:,} merged tokens")] if merged else []),
        (
            "with a head",
            f"of {rows:,} rows: {size_text(reduced)} in memory, {size_text(tables - reduced)} saved",
        ),
    ]
    return report, lines


def _per_layer_lines(table: TableInfo | None) -> Lines:
    if table is None:
        return []
    size = size_text(table.rows * table.row_bytes)
    return [("per layer", f"{table.rows:,} rows of their own table, {size} of these tables, read from disk")]


def _quantization(directory: ModelDirectory) -> dict[str, Any] | None:
    """How the weights are quantized: the body's from config.json, the tables' from vt.json."""
    if mode := directory.manifest.integers:
        return {"method": mode, "tables": {"head": {"bits": 8}}}
    settings = directory.config.get("quantization")
    if not settings:
        return None if directory.quantization is None else {"method": directory.quantization, "tables": {}}
    return {
        "bits": settings["bits"],
        "group_size": settings["group_size"],
        "mode": settings.get("mode") or "affine",
        "tables": {
            name: {"bits": how.bits, "group_size": how.group_size}
            for name, how in (directory.manifest.quantization or {}).items()
        },
    }


def _quantized_lines(quantization: dict[str, Any] | None) -> Lines:
    if quantization is None:
        return []
    if quantization.get("method") in MODES:
        text = f"{quantization['method']}, for vt-torch; the head in 8 bits, whose text exact decoding gives"
        return [("quantized", text)]
    text = quantization.get("method") or _bits_text(quantization)
    tables = [f"the {name} in {_bits_text(how)}" for name, how in quantization["tables"].items()]
    return [("quantized", f"{text}; {' and '.join(tables) if tables else 'the tables are not'}")]


def _bits_text(how: dict[str, Any]) -> str:
    return f"{how['bits']} bits in groups of {how['group_size']}"


def _speed_report(directory: ModelDirectory, backend: str, quantize: str | None) -> tuple[Report, Lines]:
    from vt_core.decode.policy import MAX_BLOCK
    from vt_core.measure.step_costs import measure

    costs, full_step_s = measure(directory, backend, quantize)
    hits = costs.tokens_per_s(0, MAX_BLOCK)
    miss_rate = costs.break_even(full_step_s, MAX_BLOCK)
    report = {
        "step_s": costs.step_s,
        "full_step_s": full_step_s,
        "verify_one_s": costs.verify_s(1),
        "verify_block_s": costs.verify_s(MAX_BLOCK),
        "max_block": MAX_BLOCK,
        "break_even_miss_rate": miss_rate,
    }
    if miss_rate == 1:
        worth = "faster than the full head at any miss rate"
    elif miss_rate == 0:
        worth = "slower than the full head, even without misses; use --head full"
    else:
        worth = f"faster than the full head while fewer than {miss_rate:.1%} of the tokens are misses"
    lines = [
        ("full head", f"{1 / full_step_s:.1f} tokens/s"),
        ("reduced head", f"{1 / costs.step_s:.1f} tokens/s approximate, {hits:.1f} exact without misses"),
        (
            "verification",
            f"{costs.verify_s(1) * 1e3:.0f} ms for 1 position, "
            f"{costs.verify_s(MAX_BLOCK) * 1e3:.0f} ms for {MAX_BLOCK}",
        ),
        ("exact decoding", worth),
    ]
    return report, lines


def _task_report(task: TaskVocabulary) -> tuple[Report, Lines]:
    rows = len(task.ids)
    report = {
        "kind": "task",
        "name": task.name,
        "rows": rows,
        "vocab_rows": task.vocab_size,
        "row_share": rows / task.vocab_size,
        "examples": task.examples,
        "prior": task.prior,
        "languages": list(task.languages),
        "tolerance": task.tolerance,
        "stages": dict(task.stages),
        "tokenizer_digest": task.tokenizer_digest,
    }
    lines = [
        ("task", task.name),
        ("rows", f"{rows:,} of {task.vocab_size:,} ({rows / task.vocab_size:.1%})"),
        *((f"after {stage}", f"{size:,}") for stage, size in task.stages.items()),
        ("examples", f"{task.examples:,}"),
        ("tokenizer", task.tokenizer_digest),
    ]
    return report, lines


def _ngrams_report(table: NgramTable) -> tuple[Report, Lines]:
    from vt_core.vocab.ngrams import ENTRY_BYTES

    size = ENTRY_BYTES * sum(table.entries)
    report = {
        "kind": "ngrams",
        "name": table.name,
        "entries": list(table.entries),
        "bytes": size,
        "examples": table.examples,
        "min_count": table.min_count,
        "samples": [dict(sample) for sample in table.samples],
        "tokenizer_digest": table.tokenizer_digest,
    }
    lines = [
        ("n-grams of", table.name),
        ("entries", f"{sum(table.entries):,}, {size_text(size)}"),
        *((f"after {n} token{'s' * (n > 1)}", f"{count:,}") for n, count in enumerate(table.entries, 1)),
        ("counted", f"in {table.examples:,} outputs, at least {table.min_count} times each"),
        *map(_sample_line, table.samples),
        ("tokenizer", table.tokenizer_digest),
    ]
    return report, lines


def _sample_line(sample: Mapping[str, Any]) -> tuple[str, str]:
    after = f"after '{sample['context']}'" if sample["context"] else "at the start"
    follows = f"'{sample['next']}'" if sample["next"] else "the end"
    return after, f"{follows}, {sample['count']:,} times, {sample['share']:.0%}"


def size_text(size: int) -> str:
    """Bytes as text, in decimal units with three digits."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
