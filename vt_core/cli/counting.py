"""Counts what the options of ``profile`` ask for: on this machine, on a cluster, or with the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core import __version__
from vt_core.cli.streams import progress
from vt_core.errors import OptionError

if TYPE_CHECKING:
    from vt_core import Model
    from vt_core.profile import Counts, Profiler
    from vt_core.profile.checkpoint import Checkpoint

#: Makes a checkpoint from its kind, the corpus files, and the settings of `run_signature`.
MakeCheckpoint = Callable[..., "Checkpoint | None"]


@contextmanager
def checkpoints(out: Path) -> Iterator[MakeCheckpoint]:
    """Makes checkpoints next to `out`, and removes them when the block ends without an exception.

    There are none for a device or a pipe.
    """
    from vt_core.profile.checkpoint import Checkpoint, run_signature

    made: list[Checkpoint] = []

    def make(kind: str, files: list[Path], *settings: object) -> Checkpoint | None:
        if out.exists() and not out.is_file():
            return None
        path = out.with_name(f".{out.name}.{kind}.checkpoint")
        made.append(Checkpoint(path, run_signature(files, kind, *settings)))
        if made[-1].load() is not None:
            click.echo(f"resuming from {path}", err=True)
        return made[-1]

    try:
        yield make
    except KeyboardInterrupt:
        if any(checkpoint.path.exists() for checkpoint in made):
            click.echo("interrupted; run the same command again to resume", err=True)
        raise
    for checkpoint in made:
        checkpoint.clear()


def count(profiler: Profiler, options: dict[str, Any], checkpoint: MakeCheckpoint, backend: str) -> Counts:
    """The counts of all files that the options of `profile` name, merged.

    Args:
        checkpoint: as `checkpoints` yields it.
        backend: runs the model, with ``--self``.
    """
    from vt_core.profile import merge_all
    from vt_core.profile.counting import default_processes
    from vt_core.profile.shards import Shard, parse_shard, shard_spans
    from vt_core.vocab.added_tokens import TokenizerFiles

    files = list(map(Path, options["data"]))
    parts = [_load_counts(profiler, path, options) for path in (*options["merge"], *options["more_counts"])]
    if options["engine"] != "local":
        return merge_all([profiler.empty(), *parts, _count_on_cluster(profiler, options)])
    # The digest of a tokenizer covers its tokens only, so its file counts as an input too.
    inputs = [profiler.tokenizer_json, *files]
    tokenizer_files = TokenizerFiles.beside(profiler.tokenizer_json)
    settings = (profiler.digest, tokenizer_files, profiler.row_format, profiler.skip_bad, profiler.contexts)
    if files and (not options["own"] or options["self_weight"]):
        shard = parse_shard(options["shard"]) if options["shard"] else None
        with progress("counted", " rows") as on_rows:
            counted = profiler.count(
                files,
                processes=options["processes"] or default_processes(files),
                spans=shard_spans(files, *shard) if shard else None,
                checkpoint=checkpoint("count", inputs, *settings, options["shard"]),
                on_rows=on_rows,
            )
        parts.append(replace(counted, shards=(Shard.of(files, *shard),)) if shard else counted)
    if options["own"]:
        with _load(backend, options) as model, progress("counted", " rows") as on_rows:
            asked = {key: options[key] for key in ("device", "max_tokens", "limit")}
            # The manifest has the digests of all files, and so covers the weights and the chat template.
            generated_by = (__version__, model.backend, model.directory.manifest)
            own = profiler.count_own(
                files,
                lambda prompt, max_tokens: model.generate(prompt, max_tokens=max_tokens).token_ids,
                max_tokens=options["max_tokens"],
                limit=options["limit"],
                checkpoint=checkpoint("self", inputs, *settings, *generated_by, asked),
                on_rows=on_rows,
            )
        parts.append(own.times(options["self_weight"] or 1))
    return merge_all([profiler.empty(), *parts])


def _load_counts(profiler: Profiler, path: Path, options: dict[str, Any]) -> Counts:
    """Saved counts. Raises OptionError if they lack n-grams that ``--ngrams`` asks for."""
    counts = profiler.load_counts(path)
    if counts.ngrams.longest < profiler.contexts:
        longest = counts.ngrams.longest
        held = f"n-grams of at most {longest + 1} tokens" if longest else "no n-grams"
        if options["ngrams"] is not None:
            known = longest + 1 if longest else 0
            raise OptionError(f"{path} holds {held}; count it again, or give --ngrams {known}.")
        click.echo(f"{path} holds {held}; the n-gram table will have no others", err=True)
    return counts


def _count_on_cluster(profiler: Profiler, options: dict[str, Any]) -> Counts:
    """The counts of the data, by Spark or Ray."""
    if options["engine"] == "spark":
        from vt_core.profile.engines.spark import count_with_spark

        return profiler.count_with(
            count_with_spark(options["data"], profiler.reader, master=options["master"])
        )
    from vt_core.profile.engines.ray import count_with_ray

    return profiler.count_with(count_with_ray(options["data"], profiler.reader))


def _load(backend: str, options: dict[str, Any]) -> Model:
    """The model with its full head, so that no task vocabulary limits what it writes."""
    from vt_core import load

    return load(
        options["model"], backend=backend, head="full", device=options["device"], revision=options["revision"]
    )
