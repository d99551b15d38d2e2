"""Where to run, in which float type, and what the device's allocator says."""

from __future__ import annotations

import os

import torch

from vt_core.errors import BackendError

#: Float types of a run.
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Types of stored rows.
DTYPES = FLOATS | {"int8": torch.int8}


def pick_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        BackendError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(
            f"device {name!r} cannot be used here ({reason}); leave --device out to take the best"
        ) from error
    return device


def pick_dtype(
    name: str | None, stored: str, device: torch.device, quantize: str | None = None
) -> torch.dtype:
    """Float type of the run.

    The default is the model's own, or float32 on a CPU without bfloat16 instructions. Quantized weights run
    in bfloat16 on every CPU (their float32 kernels take a hundred times as long), and 4-bit weights on CUDA
    too, which has no other kernel.

    Raises:
        BackendError: no such float type.
    """
    if name is None and quantize is not None and (device.type == "cpu" or quantize == "int4"):
        name = "bfloat16"
    if name is None:
        runs_well = device.type != "cpu" or (stored in FLOATS and multiplies(FLOATS[stored]))
        name = stored if runs_well else "float32"
    if name not in FLOATS:
        raise BackendError(f"unknown float type {name!r}: choose one of {', '.join(FLOATS)}")
    return FLOATS[name]


def empty_cache() -> None:
    """Return unused memory of the devices' allocators to the system."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Start measuring the allocator's peak. Call it before a model is loaded."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes of the device's allocator since :func:`reset_peak`; None if the device does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has matrix instructions for that type. Without them, products are several times slower
    than in float32.
    """
    if dtype != torch.bfloat16:
        return dtype == torch.float32
    # oneDNN, which multiplies for PyTorch, can be told to use fewer instructions than there are.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in ("", "DEFAULT", "ALL") and not limit.startswith(
        ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10")
    ):
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
