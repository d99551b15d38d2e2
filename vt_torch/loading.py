"""Loading a model for PyTorch: its rows, its body and its head."""

from __future__ import annotations

from collections.abc import Sequence

from vt_core.errors import BackendError, ModelError
from vt_core.files.adapters import LowRank
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tables import open_tables
from vt_core.vocab.heads import head_class
from vt_torch.adapters import adapt
from vt_torch.body import layer_table, load_body
from vt_torch.compiled import check_compiler
from vt_torch.decoder import TorchDecoder
from vt_torch.device import pick_device, pick_dtype, reset_peak
from vt_torch.integers import choose_sums
from vt_torch.prequantized import find_layout
from vt_torch.products import bound_kernels, kernels_of
from vt_torch.quantized import check_kernels
from vt_torch.rows import TorchRows


def check_options(
    *, device: str | None, dtype: str | None, quantize: str | None, compile: bool = False
) -> None:
    """See :meth:`vt_core.decode.backend.Backend.check_options`."""
    target = pick_device(device)
    run_dtype = pick_dtype(dtype, "float32", target, quantize)
    if quantize is not None:
        check_kernels(quantize, target, run_dtype)
    if compile:
        check_compiler(target)
        if quantize is not None:
            raise BackendError("--compile is for float weights; leave --compile or --quantize out")


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
) -> TorchDecoder:
    """See :meth:`vt_core.decode.backend.Backend.load_decoder`."""
    check_options(device=device, dtype=dtype, quantize=None, compile=compile)
    manifest = directory.manifest
    strategy = head_class(head)
    target = pick_device(device)
    layout = find_layout(directory)
    if compile and (layout is not None or manifest.integers):
        raise BackendError(
            f"--compile is for float weights, and those of {directory.name} are quantized; leave --compile "
            "out"
        )
    mode = "int4" if layout is not None and layout.stays(target) else manifest.integers
    run_dtype = pick_dtype(dtype, manifest.dtype, target, mode)
    if manifest.integers:
        check_kernels(manifest.integers, target, run_dtype)
    reset_peak(target)
    bound_kernels()
    rows = TorchRows(open_tables(directory, store), manifest.tied, target, run_dtype)
    if target.type == "cpu":  # timed now: later, the first token would wait, and the sample add to the peak
        if rows.quantized:
            choose_sums(manifest.hidden)
        elif head != "full":
            kernels_of(rows.head_table.spec, run_dtype)
    model = load_body(directory, target, run_dtype)
    if layer_table(model) is None and rows.per_layer is not None:
        raise ModelError(
            f"transformers' {manifest.model_type} has no vocabulary table for its layers, and "
            f"{directory.name} has one; vt cannot run this model with PyTorch"
        )
    adapt(model, adapter, target)
    return TorchDecoder(
        model,
        rows,
        strategy(rows, tokens or manifest.vocab_rows),
        tied=manifest.tied,
        device=target,
        dtype=run_dtype,
        tile_bytes=tile_bytes,
        compiled=compile,
    )
