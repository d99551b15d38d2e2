"""The backends by name, and what each package provides. A framework is imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from vt_core.errors import BackendError

if TYPE_CHECKING:
    from vt_core.decode.decoder import Decoder
    from vt_core.files.adapters import LowRank
    from vt_core.files.model_dir import ModelDirectory

#: Package of each backend, and the framework that it needs.
BACKENDS = {"mlx": ("vt_mlx", "mlx_lm"), "torch": ("vt_torch", "torch")}


class Backend(Protocol):
    """The module of a backend: ``vt_mlx``, ``vt_torch``."""

    def check_options(
        self, *, device: str | None, dtype: str | None, quantize: str | None, compile: bool = False
    ) -> None:
        """Check options of :meth:`load_decoder` without a model, and whether weights can be quantized to
        ``quantize``, one of :data:`vt_core.files.integers.MODES`.

        Raises:
            BackendError: this backend or this machine cannot do what is asked.
        """

    def empty_cache(self) -> None:
        """Return unused memory of the device's allocator to the system."""

    def load_decoder(
        self,
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
    ) -> Decoder[Any, Any]:
        """A decoder for a model directory; the head holds no rows yet.

        Args:
            directory: the model directory.
            head: name of the head strategy, see :data:`vt_core.vocab.heads.HEADS`.
            store: ``lmdb`` or ``ram``, see :func:`vt_core.files.tables.open_tables`.
            device: a device of the framework; None takes the best.
            dtype: float type of the run; None takes what the device runs well.
            tile_bytes: bytes of the full head that verification holds at once, in the run's dtype; None takes
                what was measured to be fastest on the device.
            tokens: rows that have a token; rows after them are padding and never join a head. None: all have.
            adapter: low-rank layers to add to the model's own.
            compile: whether steps of one token run through the framework's compiler.

        Raises:
            BackendError: this backend or this machine cannot do what is asked.
            ModelError: the framework cannot run this model.
        """


class Stock(Protocol):
    """The stock framework on a plain Hugging Face directory, as shipped, greedy: what vt is compared with."""

    device: str
    dtype: str

    def generate(
        self, prompt: Sequence[int], max_tokens: int, eos_ids: Collection[int], on_token: Callable[[], object]
    ) -> list[int]:
        """Full ids that the framework generates after a prompt; calls ``on_token`` for each one."""

    def next_logits(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        """Full logits after a context, float32 ``[V]``, computed as generation would."""

    def text_logits(self, prompt: Sequence[int], text: Sequence[int]) -> npt.NDArray[np.float32]:
        """Full logits at the position before each id of ``text``, float32 ``[len(text), V]``, in one pass."""

    def peak_memory(self) -> int | None:
        """As :meth:`Decoder.peak_memory`."""


class StockBackend(Protocol):
    """The module ``stock`` of a backend."""

    def load_stock(self, path: Path, *, device: str | None, dtype: str | None, stored: str) -> Stock:
        """The framework's own model of a plain Hugging Face directory; ``stored`` is the float type of its
        tensors.
        """


def default_backend() -> str:
    """``mlx`` on Apple Silicon, else ``torch``; if only one is installed, that one."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    order = ["mlx", "torch"] if apple else ["torch", "mlx"]
    for name in order:
        if importlib.util.find_spec(BACKENDS[name][1]) is not None:
            return name
    return order[0]


def check_backend(name: str) -> None:
    """Check that a backend exists and its framework is installed; imports nothing.

    Raises:
        BackendError: it does not exist or is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    framework = BACKENDS[name][1]
    if framework not in sys.modules and importlib.util.find_spec(framework) is None:
        raise _missing(name, f"No module named {framework!r}")


def backend(name: str) -> Backend:
    """Import a backend by name.

    Raises:
        BackendError: no such backend, or its framework cannot be imported.
    """
    check_backend(name)
    package, framework = BACKENDS[name]
    try:
        importlib.import_module(framework)
    except ImportError as error:
        raise _missing(name, str(error)) from error
    module: Any = importlib.import_module(package)
    return cast(Backend, module)


def _missing(name: str, why: str) -> BackendError:
    return BackendError(
        f"the {name} backend needs {BACKENDS[name][1]}, which cannot be imported here ({why}); "
        f"install it with: pip install 'vt[{name}]'"
    )


def stock_backend(name: str) -> StockBackend:
    """Import the module that runs a backend's stock framework; raises as :func:`backend`."""
    backend(name)
    module: Any = importlib.import_module(f"{BACKENDS[name][0]}.stock")
    return module
