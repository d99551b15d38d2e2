"""Where to run, in which float type, and what the device's allocator says."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager

import mlx.core as mx

from vt_core.errors import BackendError

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def pick_device(name: str | None) -> mx.Device:
    """The device of that name, or MLX's default. The default itself, which a whole process shares, stays.

    Raises:
        BackendError: this machine has no such device.
    """
    if name not in (None, "cpu", "gpu"):
        raise BackendError(
            f"unknown device {name!r}: MLX has cpu and gpu; leave --device out to take the best"
        )
    if name == "gpu" and not _has_gpu():
        raise BackendError(
            "device 'gpu' cannot be used here: this MLX has none; leave --device out to take the best"
        )
    return mx.default_device() if name is None else mx.Device(mx.gpu if name == "gpu" else mx.cpu)


class ModelStream:
    """Where the operations of one model run, whichever thread asks for them.

    In new versions of MLX each thread has streams of its own, and only that thread can evaluate an array that
    waits on them. But the threads of a model's requests take turns, and go on with each other's arrays.
    """

    #: Streams that models have given back, by their device: MLX never frees one.
    _free: dict[mx.DeviceType, list[mx.Stream]] = {}  # noqa: RUF012

    def __init__(self, device: mx.Device) -> None:
        self.device = device
        free = self._free.setdefault(device.type, [])
        self.stream = free.pop() if free else _any_thread_stream(device)
        weakref.finalize(self, free.append, self.stream).atexit = False


def _any_thread_stream(device: mx.Device) -> mx.Stream:
    if hasattr(mx, "new_thread_unsafe_stream"):
        return mx.new_thread_unsafe_stream(device)
    return mx.default_stream(device)  # older versions: all threads share it


def on_device(place: mx.Device | ModelStream) -> AbstractContextManager[object]:
    """A context in which MLX's operations run there. It takes a microsecond to enter."""
    context: AbstractContextManager[object] = mx.stream(
        place.stream if isinstance(place, ModelStream) else place
    )
    return context


def pick_dtype(name: str | None, stored: str, device: mx.Device) -> mx.Dtype:
    """Float type of the run. The default is the model's own; on a CPU it is float32, the only one with fast
    products there.

    Raises:
        BackendError: no such float type.
    """
    if name is None:
        name = "float32" if device.type == mx.DeviceType.cpu else stored
    if name not in DTYPES:
        raise BackendError(f"unknown float type {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def empty_cache() -> None:
    """Return unused memory of MLX's allocator to the system."""
    mx.clear_cache()


def reset_peak(device: mx.Device) -> None:
    """Start measuring the allocator's peak. Call it before a model is loaded."""
    mx.clear_cache()
    mx.reset_peak_memory()


def peak_memory(device: mx.Device) -> int | None:
    """Peak bytes of MLX's allocator since :func:`reset_peak`."""
    return int(mx.get_peak_memory())


def _has_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu or mx.metal.is_available()
