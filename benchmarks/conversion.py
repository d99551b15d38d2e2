"""Converting: seconds, memory, and whether a tokenizer made from a GGUF file encodes as the original does.

    python -m benchmarks.conversion gemma.gguf=ORIGINAL/tokenizer.json other.gguf --data DATA_DIR

converts each source (a GGUF file or a Hugging Face directory) in a fresh process and prints its seconds, and
its peak memory above the same process before it began, everything imported. Behind a `=` stands the tokenizer
that the converted one is compared with, by the ids of texts: rows of the data files, and random characters.
Of a GGUF file the time to build and load its tokenizer is printed as well.

Exits with 1 when more memory was needed than `--most-mb`, or when a text is encoded otherwise.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

# From which random texts are drawn: letters of several scripts, marks, symbols, emoji, controls, spaces.
BLOCKS = (
    (0x20, 0x7F), (0xA0, 0x180), (0x300, 0x370), (0x370, 0x530), (0x590, 0x780), (0x900, 0xDFF),
    (0xE00, 0xE80), (0x1100, 0x1200), (0x2000, 0x2BFF), (0x3000, 0x3100), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0x00, 0x20),
)  # fmt: skip

CONVERT = """
import json, sys, time
import filelock, lmdb, ml_dtypes, numpy, tokenizers, tqdm
import converters.gguf, converters.huggingface, converters.tokenizer_json, vt_core.store
from converters import convert
from vt_core.decode.metrics import ProcessMemory
memory = ProcessMemory()
idle, start = memory.peak, time.perf_counter()
convert(sys.argv[1], sys.argv[2], progress=False)
print(json.dumps({"seconds": time.perf_counter() - start, "peak": memory.peak - idle}))
"""


def converted(source: Path, out: Path) -> dict[str, float]:
    """Seconds, and bytes of peak memory above what the process held before, of one conversion."""
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(source), str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{source} was not converted:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def tokenizer_seconds(source: Path, out: Path) -> float:
    """Seconds to build a GGUF file's tokenizer.json, and to load it as a tokenizer."""
    from tokenizers import Tokenizer

    from converters.gguf import GGUFSource

    start = time.perf_counter()
    GGUFSource(source).write_tokenizer(out)
    Tokenizer.from_file(str(out / "tokenizer.json"))
    return time.perf_counter() - start


def mixed_texts(data: Path | None, count: int) -> Iterator[str]:
    """Texts to encode: half of them from the rows of all files below `data`, taken in turn, the others
    random."""
    own = count // 2 if data else 0
    if data:
        lines = [iter(path.open(encoding="utf-8")) for path in sorted(data.rglob("*.jsonl"))]
        while own and lines:
            for file in list(lines):
                line = next(file, None)
                if line is None:
                    lines.remove(file)
                    continue
                for text in filter(None, (json.loads(line).get("input"), json.loads(line).get("output"))):
                    if own:
                        own -= 1
                        yield text
    draw = random.Random(0)
    for _ in range(count - (count // 2 if data else 0)):
        words = []
        for _ in range(draw.randint(1, 12)):
            low, high = draw.choice(BLOCKS)
            words.append("".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 8))))
        yield draw.choice((" ", "", "\n", "  ", "\r\n", "\t")).join(words)


def different(own: Path, original: Path, texts: list[str]) -> list[str]:
    """The texts to which two tokenizer.json files give different ids."""
    from tokenizers import Tokenizer

    ours, theirs = (Tokenizer.from_file(str(path)) for path in (own, original))
    return [text for text in texts if ours.encode(text).ids != theirs.encode(text).ids]


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE[=TOKENIZER_JSON]...")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Folder of JSONL files.")
@click.option("--texts", default=4000, show_default=True, help="How many texts to encode.")
@click.option("--most-mb", default=256.0, show_default=True, help="Memory above the idle import, in MB.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to convert to (default: temporary).")
def main(sources: tuple[str, ...], data: Path | None, texts: int, most_mb: float, work: Path | None) -> None:
    samples = list(mixed_texts(data, texts))
    failed = False
    for argument in sources:
        source, _, original = argument.partition("=")
        with tempfile.TemporaryDirectory(dir=work) as directory:
            out = Path(directory) / "model"
            cost = converted(Path(source), out)
            failed |= cost["peak"] / 1e6 > most_mb
            line = f"{source}: {cost['seconds']:.1f} s, {cost['peak'] / 1e6:.0f} MB above the idle import"
            if Path(source).is_file():
                line += f"; tokenizer {tokenizer_seconds(Path(source), Path(directory)):.1f} s"
            click.echo(line)
            if original:
                differing = different(out / "tokenizer.json", Path(original), samples)
                failed |= bool(differing)
                click.echo(f"    {len(differing)} of {len(samples)} texts encoded otherwise: {original}")
                for text in differing[:3]:
                    click.echo(f"    {text[:80]!r}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
