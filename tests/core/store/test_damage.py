"""Damaged store files give StoreError or the right rows, never a crash, a hang or other rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.store.stores import metadata, numbered
from vt_core.store import StoreWriter, TableSpec

#: Runs in a process of its own, because a fault here would be a bus error. Prints how many damaged files were
#: refused, and how many gave the right rows.
ATTACK = """
import random, sys
from pathlib import Path
import numpy as np
from vt_core.errors import StoreError
from vt_core.store import Store

directory, damage, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rows_at = [range(*map(int, pair.split("-"))) for pair in sys.argv[4].split(",")]
file = directory / "data.mdb"
whole = file.read_bytes()
random.seed(seed)
# Headers, tree pages and the table of contents: half of the damage goes to these few bytes of the file.
used = [at for at in range(len(whole)) if whole[at] and not any(at in rows for rows in rows_at)]

def verified(table):
    return table.checksum() == table.stored_checksum

def read():
    with Store.open(directory) as store:
        return {
            name: (table.read(np.arange(table.spec.rows)).tobytes(), verified(table))
            for name, table in store.tables.items()
        }

def damaged():
    content = bytearray(whole)
    if damage == "truncation":
        return content[: random.randrange(len(content))]
    at = random.choice(used) if random.random() < 0.5 else random.randrange(len(content))
    if damage == "bit":
        content[at] ^= 1 << random.randrange(8)
    else:
        length = random.choice([1, 8, 100, 5000])
        content[at : at + length] = random.randbytes(len(content[at : at + length]))
    return content

expected = read()
counts = {"refused": 0, "right": 0}
for _ in range(int(sys.argv[5])):
    content = damaged()
    file.unlink()  # a replaced file is another file, for the registry of open stores too
    file.write_bytes(content)
    try:
        found = read()
    except StoreError as error:
        assert len(str(error)) < 400 and str(error).startswith(str(directory)), error
        counts["refused"] += 1
        continue
    for name, (rows, same) in found.items():
        # Rows themselves have no checksum that every reader computes: `verify` finds what changed in them.
        assert found.keys() == expected.keys() and (rows == expected[name][0] or not same), name
    counts["right"] += 1
print(counts["refused"], counts["right"])
"""


@pytest.mark.parametrize("damage", ["bit", "garbage", "truncation"])
def test_damaged_files_are_refused_or_read_right(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    with StoreWriter(path, tile_rows=8) as writer:
        writer.add_table(TableSpec("embedding", 20, 3, "bfloat16"), [numbered(20, 3)])
        writer.add_table(TableSpec("head", 20, 5, "bfloat16"), [numbered(20, 5)])
    ranges = [
        f"{offset}-{offset + table.tile_bytes(tile)}"
        for table in metadata(path).tables
        for tile, offset in enumerate(table.tiles)
    ]
    arguments = [sys.executable, "-c", ATTACK, str(path), damage, "7", ",".join(ranges), "300"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refused, right = map(int, done.stdout.split())
    assert refused + right == 300
    assert refused >= (300 if damage == "truncation" else 50)
