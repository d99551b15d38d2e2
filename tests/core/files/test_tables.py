"""Tables of a model directory, from disk and from memory."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from converters import convert
from tests.converters import tiny
from vt_core.errors import OptionError
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tables import ScaledTable, open_tables


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    root = tmp_path_factory.mktemp("tables")
    source = tiny.write_model(root / "source", tiny.llama(tied=False), tie_word_embeddings=False)
    return ModelDirectory.open(convert(source, root / "out", progress=False))


@pytest.mark.parametrize("store", ["lmdb", "ram"])
def test_tables_give_the_rows_of_the_source(directory: ModelDirectory, store: str) -> None:
    tables = open_tables(directory, store)
    expected = tiny.llama(tied=False)["lm_head.weight"]
    ids = np.array([3, 39, 3])
    assert tables["head"].read(ids).tolist() == expected[ids].tolist()
    assert tables["head"].bytes_read == 3 * tables["head"].spec.row_bytes
    scanned = np.concatenate([tile.rows for tile in tables["head"].tiles(100)])
    assert scanned.tolist() == expected.tolist()


def test_a_scaled_table_multiplies_and_rounds(directory: ModelDirectory) -> None:
    table = ScaledTable(open_tables(directory, "lmdb")["embedding"], 2.0)
    rows = open_tables(directory, "ram")["embedding"].read(np.arange(40))
    # Doubling a bfloat16 adds one to its exponent, whose lowest bit is bit 7.
    assert table.read(np.arange(40)).tolist() == (rows + (1 << 7)).tolist()
    assert np.concatenate([tile.rows for tile in table.tiles(100)]).tolist() == (rows + (1 << 7)).tolist()


def test_an_unknown_store_is_refused(directory: ModelDirectory) -> None:
    with pytest.raises(OptionError, match="unknown store 'disk': choose one of lmdb, ram"):
        open_tables(directory, "disk")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_models_of_one_directory_share_one_mapping(directory: ModelDirectory) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(directory.store_path.resolve()))

    first = open_tables(directory, "lmdb")
    second = open_tables(ModelDirectory.open(directory.path), "lmdb")
    assert mappings() == 1
    del first
    gc.collect()
    second["head"].read(np.arange(40))
    assert mappings() == 1
    del second
    gc.collect()
    assert mappings() == 0
