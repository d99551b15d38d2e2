"""Compare the row store with a plain numpy.memmap, and with LMDB holding one row per value under string keys.

    python -m benchmarks.row_store
    python -m benchmarks.row_store --rows 262144 --columns 640 --directory DIRECTORY_ON_THE_DISK_TO_MEASURE

Writes a synthetic bfloat16 table three times (four times its size) and prints two tables: the three layouts
side by side, and the row store against its targets. Warm figures are medians of calls that take turns, so
that other work on the machine affects all alike; cold figures come last. The memmap is fast because it keeps
every page that it has touched; the column "resident" shows the cost.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import mmap
import multiprocessing
import os
import re
import statistics
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import numpy as np

from vt_core.files import dtypes
from vt_core.store import Store, StoreWriter, TableSpec

FEW, MANY, BLOCK = 128, 18_874, 16
# As large as one tile of the store: a threaded BLAS prefers fewer and larger products.
PIECE_BYTES = 32 << 20
NAME = "embedding"

Figures = dict[str, float | None]


class Reader(ABC):
    """One layout of the table on disk."""

    def __init__(self, path: Path, rows: int, columns: int) -> None:
        self.path, self.rows, self.columns = path, rows, columns

    @abstractmethod
    def write(self, chunks: Iterator[np.ndarray]) -> None:
        """Write the table from chunks [n, columns] of uint16."""

    @abstractmethod
    def open(self) -> contextlib.AbstractContextManager:
        """Open for reading."""

    @abstractmethod
    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read rows `[n, columns]`."""

    @abstractmethod
    def tiles(self) -> Iterator[np.ndarray]:
        """Read the whole table in order, in pieces `[n, columns]`."""

    def file(self) -> Path:
        return self.path / "data.mdb"


class Memmap(Reader):
    title = "numpy.memmap of a flat file"

    def file(self) -> Path:
        return self.path

    def write(self, chunks: Iterator[np.ndarray]) -> None:
        with open(self.path, "wb") as file:
            for chunk in chunks:
                file.write(chunk.data)
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self.table = np.memmap(self.path, np.uint16, "r", shape=(self.rows, self.columns))
        yield
        del self.table

    def read(self, ids: np.ndarray) -> np.ndarray:
        return self.table[ids]

    def tiles(self) -> Iterator[np.ndarray]:
        step = max(1, PIECE_BYTES // (2 * self.columns))
        for start in range(0, self.rows, step):
            yield self.table[start : start + step]


class StringKeys(Reader):
    title = "LMDB, one row per value, string keys"

    def write(self, chunks: Iterator[np.ndarray]) -> None:
        with lmdb.open(str(self.path), map_size=1 << 40, sync=False) as environment:
            row = 0
            for chunk in chunks:
                with environment.begin(write=True) as transaction:
                    for values in chunk:
                        transaction.put(str(row).encode(), values.tobytes())
                        row += 1
            environment.sync(True)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with lmdb.open(str(self.path), readonly=True, lock=False) as environment:
            self.environment = environment
            yield

    def read(self, ids: np.ndarray) -> np.ndarray:
        with self.environment.begin() as transaction:
            return np.stack(
                [np.frombuffer(transaction.get(str(i).encode()), np.uint16) for i in ids.tolist()]
            )

    def tiles(self) -> Iterator[np.ndarray]:
        step = max(1, PIECE_BYTES // (2 * self.columns))
        for start in range(0, self.rows, step):
            yield self.read(np.arange(start, min(start + step, self.rows)))


class Tiles(Reader):
    title = "row store (tiles)"

    def write(self, chunks: Iterator[np.ndarray]) -> None:
        with StoreWriter(self.path) as writer:
            writer.add_table(TableSpec(NAME, self.rows, self.columns, "bfloat16"), chunks)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with Store.open(self.path) as store:
            self.table = store.tables[NAME]
            yield
            del self.table

    def read(self, ids: np.ndarray) -> np.ndarray:
        return self.table.read(ids)

    def tiles(self) -> Iterator[np.ndarray]:
        for tile in self.table.tiles(PIECE_BYTES):
            yield tile.rows


def synthetic(rows: int, columns: int) -> Iterator[np.ndarray]:
    """Normally distributed bfloat16; two neighbors read as one float32 are a finite number too."""
    random = np.random.default_rng(0)
    for start in range(0, rows, 8192):
        values = random.standard_normal((min(8192, rows - start), columns), np.float32)
        yield dtypes.from_float32(values, "bfloat16")


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def copy_all(tiles: Iterator[np.ndarray], scratch: np.ndarray) -> None:
    for rows in tiles:
        scratch[: len(rows)] = rows


def drop_from_cache(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def disk_bytes_read() -> int | None:
    """Bytes that this process has read from disk, where the system tells."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return None
    return int(fields["read_bytes"])


def cold_ids(reader: Reader) -> np.ndarray:
    return np.random.default_rng(3).choice(reader.rows, min(FEW, reader.rows), replace=False)


def cold_bytes(reader: Reader) -> int | None:
    """Bytes read from disk for a few rows, from an open store with a cold page cache."""
    if disk_bytes_read() is None or not hasattr(os, "posix_fadvise"):
        return None
    drop_from_cache(reader.file())
    with reader.open():
        drop_from_cache(reader.file())
        before = disk_bytes_read()
        reader.read(cold_ids(reader))
        return disk_bytes_read() - before


def resident_bytes(file: Path) -> int | None:
    """Resident bytes of the mappings of `file` in this process, where the system tells."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    total, ours = 0, False
    for line in lines:
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(file.resolve()))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def numpy_product(columns: int) -> tuple[Callable, Callable]:
    """Functions that view a piece of the table as float32, and multiply it by 16 hidden states."""
    hidden = np.random.default_rng(1).standard_normal((columns // 2, BLOCK), np.float32)
    return lambda rows: rows.view(np.float32), lambda table: table @ hidden


def torch_product(columns: int) -> tuple[Callable, Callable]:
    """As `numpy_product`, in bfloat16 with torch."""
    import torch

    # Tiles are not writable, and nothing here writes.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    hidden = torch.randn((BLOCK, columns), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return (
        lambda rows: torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16),
        lambda table: torch.nn.functional.linear(hidden, table),
    )


def products(reader: Reader, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds to multiply the whole table by 16 hidden states: from the store's tiles, from memory in pieces
    of the same size, and from memory at once."""
    kinds = {"numpy float32": numpy_product}
    if importlib.util.find_spec("torch"):
        kinds["torch bfloat16"] = torch_product
    ram = np.concatenate(list(synthetic(reader.rows, reader.columns)))
    step = max(1, PIECE_BYTES // (2 * reader.columns))
    pieces = [ram[start : start + step] for start in range(0, reader.rows, step)]
    results = {}
    with reader.open():
        for name, kind in kinds.items():
            take, multiply = kind(reader.columns)
            calls = {
                "tiles": lambda take=take, by=multiply: [by(take(rows)) for rows in reader.tiles()],
                "in pieces": lambda take=take, by=multiply: [by(take(rows)) for rows in pieces],
                "whole": lambda take=take, by=multiply: by(take(ram)),
            }
            results[name] = medians(calls, repeats)
    return results


def read_in_child(path: str, rows: int, calls: int, barrier, results) -> None:
    random = np.random.default_rng(os.getpid())
    with Store.open(path) as store:
        table = store.tables[NAME]
        table.read(random.integers(0, rows, FEW))
        barrier.wait()
        start = time.process_time()
        for _ in range(calls):
            table.read(random.integers(0, rows, FEW))
        results.put((time.process_time() - start) / calls)


def seconds_per_call(path: Path, rows: int, processes: int) -> float:
    """Median processor seconds of a call for 128 random rows, with `processes` reading at once.

    Processor time, because with fewer cores than processes the wall clock includes waiting for a core.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=read_in_child, args=(str(path), rows, 500, barrier, results))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    times = [results.get() for _ in children]
    for child in children:
        child.join()
    return statistics.median(times)


def compare(readers: list[Reader], rows: int, columns: int, repeats: int) -> dict[str, Figures]:
    """Figures of each reader, by title."""
    random = np.random.default_rng(2)
    few, many = (random.choice(rows, min(count, rows), replace=False) for count in (FEW, MANY))
    raw = rows * columns * 2
    figures: dict[str, Figures] = {
        reader.title: {"raw": raw, "file / raw": os.path.getsize(reader.file()) / raw} for reader in readers
    }
    scratch = np.empty((max(1, PIECE_BYTES // (2 * columns)), columns), np.uint16)
    ram = np.concatenate(list(synthetic(rows, columns)))
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.enter_context(reader.open())
            assert np.array_equal(reader.read(few), ram[few]), f"{reader.title} gives wrong rows"
        for name, ids in (("few", few), ("many", np.sort(many)), ("many, unordered", many)):
            calls = {reader.title: lambda r=reader, ids=ids: r.read(ids) for reader in readers}
            for title, seconds in medians(calls, repeats).items():
                figures[title][name] = seconds
        calls = {reader.title: lambda r=reader: copy_all(r.tiles(), scratch) for reader in readers}
        pieces = [ram[start : start + len(scratch)] for start in range(0, rows, len(scratch))]
        scans = medians({"ram": lambda: copy_all(iter(pieces), scratch), **calls}, max(3, repeats // 4))
        for reader in readers:
            figures[reader.title]["scan"] = scans[reader.title]
            figures[reader.title]["scan / ram"] = scans["ram"] / scans[reader.title]
            figures[reader.title]["resident"] = resident_bytes(reader.file())
    return figures


def warm_targets(
    store: Figures, memmap: Figures, reader: Reader, repeats: int, processes: int
) -> Iterator[tuple[str, float, float, str]]:
    """Name, figure, limit and unit of each target that needs a warm page cache."""
    yield "file / raw", store["file / raw"], 1.01, ""
    yield f"{FEW} random rows", store["few"] * 1e3, 0.4, "ms"
    for name, key in (("id", "many"), ("random", "many, unordered")):
        yield f"{MANY} rows in {name} order / memmap", store[key] / memmap[key], 1.3, ""
    for name, seconds in products(reader, max(3, repeats // 4)).items():
        for where in ("whole", "in pieces"):
            label = f"scan with product, k={BLOCK}, {name} / RAM {where} ({seconds[where] * 1e3:.0f} ms)"
            yield label, seconds["tiles"] / seconds[where], 1.3, ""
    if store["resident"] is not None:
        yield "resident after gathers and scans", store["resident"] / 2**20, PIECE_BYTES / 2**20, "MiB"
    yield "open", medians({"open": lambda: Store.open(reader.path).close()}, 20)["open"] * 1e3, 5.0, "ms"
    alone, together = (seconds_per_call(reader.path, reader.rows, count) for count in (1, processes))
    # No slower, apart from noise.
    yield f"{processes} processes / one, processor time per call", together / alone, 1.2, ""


def touched_bytes(reader: Reader) -> int:
    """Bytes of the pages that hold the cold rows, if rows are contiguous from the start of a page."""
    size = reader.columns * 2
    pages = set()
    for start in (cold_ids(reader) * size).tolist():
        pages.update(range(start // mmap.PAGESIZE, (start + size - 1) // mmap.PAGESIZE + 1))
    return len(pages) * mmap.PAGESIZE


def print_comparison(figures: dict[str, Figures]) -> None:
    base = next(iter(figures.values()))
    heads = ["file/raw", f"{FEW} rows, ms", f"{MANY} rows, ms", "random order, ms"]
    heads += ["scan, GB/s", "cold, MiB", "resident, MiB"]
    print(f"{'':36}" + "".join(f"{head:>20}" for head in heads))
    for title, f in figures.items():
        cells = [f"{f['file / raw']:.4f}"]
        timed = ("few", "many", "many, unordered")
        cells += [f"{f[key] * 1e3:.3f} ({f[key] / base[key]:.1f}x)" for key in timed]
        cells += [f"{f['raw'] / f['scan'] / 1e9:.1f} ({f['scan / ram']:.0%} of RAM)"]
        cells += ["-" if f[key] is None else f"{f[key] / 2**20:.2f}" for key in ("cold", "resident")]
        print(f"{title:36}" + "".join(f"{cell:>20}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=151_936)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=40, help="turns whose median is taken")
    parser.add_argument("--processes", type=int, default=32, help="processes that read at once")
    parser.add_argument("--directory", help="where to put the files (default: that of temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        readers = [
            kind(Path(directory) / name, options.rows, options.columns)
            for kind, name in ((Memmap, "flat"), (StringKeys, "keys"), (Tiles, "tiles"))
        ]
        for reader in readers:
            reader.write(synthetic(options.rows, options.columns))
        figures = compare(readers, options.rows, options.columns, options.repeats)
        store, memmap = figures[Tiles.title], figures[Memmap.title]
        lines = list(warm_targets(store, memmap, readers[-1], options.repeats, options.processes))
        for reader in readers:
            figures[reader.title]["cold"] = cold_bytes(reader)
        if store["cold"] is not None:
            lines.append(("cold: bytes read / touched pages", store["cold"] / touched_bytes(reader), 1.2, ""))
        print(f"{options.rows:,} rows of {options.columns * 2:,} bytes (bfloat16), {os.cpu_count()} cores\n")
        print_comparison(figures)
        print("\nRow store against its targets")
        for name, figure, limit, unit in lines:
            verdict = "pass" if figure <= limit else "FALLS SHORT"
            print(f"  {name:72}{figure:9.3f} {unit:4} <= {limit:<6g} {verdict}")


if __name__ == "__main__":
    main()
