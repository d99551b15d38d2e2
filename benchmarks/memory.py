"""What a process of vt holds in memory, step by step: a table for docs/measuring.md. Linux only.

    python -m benchmarks.memory --backend torch --model gemma-vt

It loads a model as :func:`vt_core.load` does, and answers prompts. After each step it prints what is
resident: anonymous memory, which no file backs, and pages of files (libraries, and weights that are used
where they lie in their file). The peak is the largest resident memory within the step: Linux can start it
anew.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vt_core.decode.backend import BACKENDS, default_backend
from vt_core.files.dtypes import FLOATS

PROMPT = "Explain in two sentences why the sky is blue."
LONG_PROMPT = " ".join([PROMPT, *["Use the words light, molecules, wavelength and sunset."] * 120])

MB = 1e6


@dataclass(frozen=True)
class Memory:
    """Bytes of this process now."""

    anonymous: int
    files: int
    #: Largest resident memory since :meth:`start_peak`.
    peak: int

    @classmethod
    def now(cls) -> Memory:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        sizes = {line[0]: int(line[1]) * 1024 for line in lines if line[-1] == "kB"}
        return cls(sizes["RssAnon:"], sizes["RssFile:"] + sizes["RssShmem:"], sizes["VmHWM:"])

    @staticmethod
    def start_peak() -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print a row of the table for what is done inside."""
    gc.collect()
    before = Memory.now()
    Memory.start_peak()
    yield
    now = Memory.now()
    sizes = (now.anonymous, now.anonymous - before.anonymous, now.files, now.files - before.files, now.peak)
    anonymous, more, files, more_files, peak = (f"{size / MB:.0f}" for size in sizes)
    click.echo(f"| {name} | {anonymous} | {more} | {files} | {more_files} | {peak} |")


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), default=default_backend, show_default="best")
@click.option("--model", help="As for generate. Default: SmolLM2-135M.")
@click.option("--dtype", type=click.Choice(FLOATS))
@click.option("--max-tokens", type=int, default=32, show_default=True)
@click.option("--no-long-prompt", is_flag=True, help="Leave out the prompt of 1200 tokens.")
def main(backend: str, model: str | None, dtype: str | None, max_tokens: int, no_long_prompt: bool) -> None:
    """Print what a model holds in memory, MB."""
    click.echo("| step | anonymous | + | files | + | peak |")
    click.echo("|---|---:|---:|---:|---:|---:|")
    with step("Python, vt"):
        from converters.cache import open_model
        from vt_core.decode import backend as backends
        from vt_core.host import trim_heap
        from vt_core.model import Model
        from vt_core.vocab.static import static_ids
        from vt_core.vocab.tokenizer import Tokenizer

        directory = open_model(model)
    with step("tokenizer"):
        tokenizer = Tokenizer(directory.path)
        trim_heap()
    with step("static ids"):
        static = static_ids(directory, tokenizer, [])
        trim_heap()
    with step("framework"):
        module = backends.backend(backend)
    with step("body"):
        decoder = module.load_decoder(
            directory,
            head="prealloc",
            store="lmdb",
            device="cpu",
            dtype=dtype,
            tile_bytes=None,
            tokens=tokenizer.size(directory.manifest.vocab_rows),
        )
        trim_heap()
    with step("rows of the head"):
        loaded = Model(directory, decoder, tokenizer, backend=backend)
        loaded.set_static(static)
        decoder.release()
        trim_heap()
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("approximate", PROMPT, {"approximate": True}),
        ("exact", PROMPT, {}),
        ("exact, again", PROMPT, {}),
    ]
    if not no_long_prompt:
        requests.append(("exact, long prompt", LONG_PROMPT, {}))
    for name, prompt, options in requests:
        with step(name):
            result = loaded.generate(prompt, max_tokens=max_tokens, **options)
    with step("freed memory returned"):
        trim_heap()
    manifest = directory.manifest
    click.echo(
        f"\n{decoder.dtype}; stored in {manifest.dtype}: body {manifest.body_bytes / MB:.1f} MB, tables "
        f"{manifest.table_bytes / MB:.1f} MB; rows {decoder.head.nbytes / MB:.1f} MB; last prompt "
        f"{result.stats.prompt_tokens} tokens"
    )


if __name__ == "__main__":
    main()
