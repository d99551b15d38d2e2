"""Counts a corpus with Ray Data: vt's own reader reads its files, and actors run `count_batches`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vt_core.errors import DataError, OptionError, VtError
from vt_core.profile.batch_counts import ExampleReader, count_batches
from vt_core.profile.batches import to_batch
from vt_core.profile.readers import read_chunks

if TYPE_CHECKING:
    from ray.data.datasource import FileBasedDatasource

#: Cores of an actor, and of a task that reads files for it. Together one, so that counting never stops reads.
COUNTING_CPUS, READING_CPUS = 0.9, 0.1


def count_with_ray(urls: Sequence[str], reader: ExampleReader) -> Iterator[pa.RecordBatch]:
    """Counts of a corpus, as `count_batches` yields them, one batch per block.

    Runs on the cluster that is connected, else on the one that RAY_ADDRESS names, else on this machine.

    Args:
        urls: files and directories that Ray's file systems open, in the formats that vt reads.
        reader: turns rows into examples. Each actor gets it once.

    Raises:
        OptionError: Ray is not installed, or cannot start.
        DataError: a file cannot be read, or Ray fails.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError:
        raise OptionError("--engine ray needs Ray Data; install it with pip install 'vt[ray]'.") from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init()
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OptionError(f"Ray cannot start ({error}).") from error
    try:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        source = _source(urls, reader.row_format.columns)
        rows = ray.data.read_datasource(source, num_cpus=READING_CPUS)
        counts = rows.map_batches(
            _Counter,
            fn_constructor_args=(reader,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=COUNTING_CPUS,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cores),
        )
        for table in counts.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from table.to_batches()
    except (RayError, OSError, ValueError) as error:
        cause = _vt_error(error)
        raise DataError(str(cause or f"Ray cannot count {', '.join(urls)}: {error}")) from error
    finally:
        if started:
            ray.shutdown()


class _Counter:
    """An actor. It keeps the tokenizer from block to block."""

    def __init__(self, reader: ExampleReader) -> None:
        self._reader = reader

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for counts in count_batches(block.to_batches(), self._reader):
            yield pa.Table.from_batches([counts])


def _source(urls: Sequence[str], columns: Sequence[str]) -> FileBasedDatasource:
    from ray.data.datasource import FileBasedDatasource

    class Corpus(FileBasedDatasource):
        """Rows as `vt_core.profile.batches` describes them."""

        def _open_input_source(self, filesystem: Any, path: str, **options: Any) -> Any:
            # Parquet needs random access, and vt decompresses.
            return filesystem.open_input_file(path)

        def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
            for chunk in read_chunks(path, columns=columns, file=f):
                yield pa.Table.from_batches([to_batch(chunk)])

    return Corpus(list(urls))


def _vt_error(error: BaseException | None) -> VtError | None:
    """vt's own error among the causes of one of Ray's."""
    while error is not None and not isinstance(error, VtError):
        error = getattr(error, "cause", None) or error.__cause__
    return error
