"""How packed head rows are multiplied fastest on a CPU: by MLX as they are, or dequantized and by numpy.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.packed_products

prints the time of a row (microseconds, the best of some rounds), by bits and by positions of a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np

from vt_core.files import packing
from vt_core.files.dtypes import from_float32
from vt_core.files.quantization import Quantization


@click.command()
@click.option("--rows", default=8192, show_default=True)
@click.option("--hidden", default=896, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(rows: int, hidden: int, rounds: int) -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, hidden), dtype=np.float32)
    piece = (2 << 20) // (4 * hidden)
    click.echo("bits  positions  MLX  numpy  of it dequantizing")
    for bits in (4, 5, 6, 8):
        words, *floats = packing.quantize(values, bits, 64)
        how = Quantization(bits, 64, "bfloat16")
        stored = packing.join(words, *(from_float32(part, how.dtype) for part in floats))
        packed = [mx.array(part) for part in (words, *floats)]

        def pieces(stored=stored, how=how):
            return (packing.dequantize(stored[at : at + piece], how) for at in range(0, rows, piece))

        unpacking = best(lambda pieces=pieces: list(map(len, pieces())), rounds) / rows
        for count in (1, 4, 16, 32):
            states = rng.standard_normal((count, hidden), dtype=np.float32)
            given = mx.array(states)

            def on_mlx(given=given, packed=packed, bits=bits):
                mx.eval(mx.quantized_matmul(given, *packed, transpose=True, group_size=64, bits=bits))

            def on_numpy(states=states, pieces=pieces):
                for weights in pieces():
                    weights @ states.T

            times = (best(on_mlx, rounds) / rows, best(on_numpy, rounds) / rows, unpacking)
            click.echo(f"{bits:4}  {count:9}  " + "  ".join(f"{1e6 * each:.2f}" for each in times))


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some rounds, after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
