"""Loading a model for MLX: its body, its rows and its head."""

from __future__ import annotations

from collections.abc import Sequence

from vt_core.errors import BackendError, ModelError
from vt_core.files.adapters import LowRank
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tables import ScaledTable, Table, open_tables
from vt_core.vocab.heads import head_class
from vt_mlx.adapters import adapt
from vt_mlx.body import Body, load_body
from vt_mlx.decoder import MlxDecoder
from vt_mlx.device import ModelStream, on_device, pick_device, pick_dtype, reset_peak
from vt_mlx.rows import MlxRows


def check_options(
    *, device: str | None, dtype: str | None, quantize: str | None, compile: bool = False
) -> None:
    """See :meth:`vt_core.decode.backend.Backend.check_options`."""
    if quantize is not None:
        raise BackendError(
            "MLX reads weights that are quantized already: make them with vt-mlx convert --quantize "
            f"{_bits(quantize)}, and leave --quantize out here"
        )
    if compile:
        raise BackendError("--compile is for PyTorch, and this backend is MLX; leave --compile out")
    pick_dtype(dtype, "float32", pick_device(device))


def _bits(mode: str) -> str:
    return mode.removeprefix("int")


def load_decoder(
    directory: ModelDirectory,
    *,
    head: str,
    store: str,
    device: str | None,
    dtype: str | None,
    tile_bytes: int | None,
    tokens: int | None = None,
    adapter: Sequence[LowRank] = (),
    compile: bool = False,
) -> MlxDecoder:
    """See :meth:`vt_core.decode.backend.Backend.load_decoder`."""
    check_options(device=device, dtype=dtype, quantize=None, compile=compile)
    manifest = directory.manifest
    if manifest.integers:
        raise BackendError(
            f"{directory.name} is quantized ({manifest.integers}) for PyTorch; run it with vt-torch, or "
            f"quantize the original weights for MLX with vt-mlx convert --quantize {_bits(manifest.integers)}"
        )
    strategy = head_class(head)
    target = pick_device(device)
    run_dtype = pick_dtype(dtype, manifest.dtype, target)
    reset_peak(target)
    stream = ModelStream(target)
    with on_device(stream):
        body = load_body(directory, run_dtype)
        adapt(body.model, adapter)
    tables = _open_tables(directory, store, body)
    rows = MlxRows(tables, manifest.quantization or {}, manifest.tied, stream, run_dtype)
    return MlxDecoder(
        body.model,
        body.embedding,
        body.layers,
        body.head,
        rows,
        strategy(rows, tokens or manifest.vocab_rows),
        tied=manifest.tied,
        stream=stream,
        dtype=run_dtype,
        tile_bytes=tile_bytes,
    )


def _open_tables(directory: ModelDirectory, store: str, body: Body) -> dict[str, Table]:
    """The tables of a model by name, multiplied as mlx-lm multiplies them while it loads.

    Raises:
        ModelError: that cannot be done to a quantized table, or mlx-lm has no place for one.
    """
    manifest = directory.manifest
    tables: dict[str, Table] = dict(open_tables(directory, store, packed=True))
    for name, factor in body.factors.items():
        if factor == 1:
            continue
        if name in (manifest.quantization or {}):
            raise ModelError(
                f"mlx-lm multiplies the {name} of a {manifest.model_type} model while it loads, which vt "
                "cannot do to a quantized one; convert the original weights"
            )
        tables[name] = ScaledTable(tables[name], factor)
    if body.layers is None and "per_layer" in tables:
        raise ModelError(
            f"mlx-lm's {manifest.model_type} has no vocabulary table for its layers, and {directory.name} "
            "has one; vt cannot run this model with MLX"
        )
    return tables
