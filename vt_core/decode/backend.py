"""What the generation loop asks of a backend. The arrays behind a :class:`Step` never leave it."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vt_core.errors import BackendError

if TYPE_CHECKING:
    from vt_core.decode.sampling import Sampler
    from vt_core.decode.scoring import Scored
    from vt_core.decode.verification import Draft
    from vt_core.files.adapters import LowRank
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.vocab.active import Ids
    from vt_core.vocab.heads import Head

#: one decoded position of a backend: hidden state, reduced logits and greedy choice, all possibly still lazy
Step = Any

#: hidden states ``[k, hidden]`` of a backend, the input of its head
States = Any

#: Backends by name: the package that holds each, and what it needs. Imported when asked for, not before.
BACKENDS = {"mlx": ("vt_mlx", "mlx_lm"), "torch": ("vt_torch", "torch")}


#: How a backend may quantize float weights while it loads them: bits of the linear layers.
QUANTIZE = ("int8", "int4")


class Decoder(Protocol):
    """A model body with its caches and a head. One request at a time: :meth:`begin`, then steps, then
    :meth:`end`.

    Laws: ``prefill(a + b)`` leaves the state of ``prefill(a)`` and then ``step`` over b; reduced logits are
    the gathered columns of the full ones; after :meth:`end`, and after any failed request, the head holds
    exactly the static rows.
    """

    head: Head
    device: str
    dtype: str
    can_rewind: bool  #: whether the caches of this model can take tokens back
    can_follow: bool  #: whether the next step can be queued before the host knows this one's token

    def begin(self) -> None:
        """Start a request with empty caches."""

    def prefill(self, ids: Ids) -> Step:
        """Run a prompt of full ids (at least one) and return its last position."""

    def step(self, token: int) -> Step:
        """Run one more token, a full id that is active."""

    def follow(self, step: Step) -> Step:
        """Run the greedy choice of ``step``, without waiting for it; only where :attr:`can_follow`."""

    def poll(self, step: Step) -> int:
        """The greedy choice of a step, a full id; waits for the device. Ties go to the lowest full id."""

    def logits(self, step: Step) -> npt.NDArray[np.float32]:
        """Logits of the active rows in local order, ``[size]`` float32; waits for the device."""

    def confidence(self, step: Step) -> float:
        """Probability of the greedy choice among the active rows; waits for the device."""

    def verify(self, steps: Sequence[Step], drafts: Sequence[Draft], sampler: Sampler) -> list[int]:
        """The full head's choices for decoded positions, as :func:`vt_core.decode.verification.verify` makes
        them.
        """

    def states(self, ids: Ids, start: int) -> Iterator[States]:
        """Read a text of full ids, in place of :meth:`prefill`, and give the hidden states of its positions
        from ``start`` on, in order, in pieces of at most :data:`vt_core.decode.scoring.POSITIONS`.

        A piece stays good after :meth:`end`.
        """

    def score(self, states: Sequence[States], targets: Ids) -> Scored:
        """What :func:`vt_core.decode.scoring.log_probabilities` makes of the full head, read once, for the
        ids ``targets [k]`` at the ``k`` positions of some states.
        """

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens that were read, among those since the last call: the caches are as
        before.

        ``rewind(0)`` keeps all; either way the next tokens may be taken back. Only where :attr:`can_rewind`,
        unless 0.
        """

    def end(self) -> None:
        """End a request: caches let go, dynamic rows dropped. Safe at any moment."""

    def peak_memory(self) -> int | None:
        """Peak bytes of the device's allocator, or None where the process's own memory is the measure."""


class Backend(Protocol):
    """The module of a backend: ``vt_mlx``, ``vt_torch``."""

    def load_decoder(
        self,
        directory: ModelDirectory,
        *,
        head: str,
        store: str,
        device: str | None,
        dtype: str | None,
        tile_bytes: int | None,
        quantize: str | None = None,
        tokens: int | None = None,
        adapter: Sequence[LowRank] = (),
    ) -> Decoder:
        """A decoder for a model directory; the head holds nothing yet.

        ``tokens``: the rows that have a token; those behind them are padding, and no head ever holds one.
        None: every row has one. ``adapter``: low-rank layers to put beside the model's own.
        ``tile_bytes``: how much of the full head verification holds at once, in the run's dtype; None takes
        what was measured to be fastest on the device. ``quantize``: one of :data:`QUANTIZE`, or None to take
        the weights as they are stored; BackendError where the backend cannot.
        """


class Stock(Protocol):
    """The stock framework on a plain Hugging Face directory, as shipped: what vt is compared with. Greedy."""

    device: str
    dtype: str

    def generate(
        self, prompt: Sequence[int], max_tokens: int, eos_ids: Collection[int], on_token: Callable[[], object]
    ) -> list[int]:
        """Full ids that the framework writes after a prompt; calls ``on_token`` as each one comes out."""

    def next_logits(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        """Full logits after a context, float32 ``[V]``, computed as generation would."""

    def text_logits(self, prompt: Sequence[int], text: Sequence[int]) -> npt.NDArray[np.float32]:
        """Full logits that each id of a text was to be chosen from, float32 ``[len(text), V]``, in one
        pass.
        """

    def peak_memory(self) -> int | None:
        """As :meth:`Decoder.peak_memory`."""


class StockBackend(Protocol):
    """The module ``stock`` of a backend."""

    def load_stock(self, path: Path, *, device: str | None, dtype: str | None, stored: str) -> Stock:
        """The framework's own model of a plain Hugging Face directory whose tensors are ``stored`` in that
        float type.
        """


def default_backend() -> str:
    """``mlx`` on Apple Silicon, else ``torch``; whichever is installed where only one is."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    order = ["mlx", "torch"] if apple else ["torch", "mlx"]
    for name in order:
        if importlib.util.find_spec(BACKENDS[name][1]) is not None:
            return name
    return order[0]


def check_backend(name: str) -> None:
    """Raises BackendError where there is no such backend, or its framework is not installed; imports
    nothing.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    framework = BACKENDS[name][1]
    if framework not in sys.modules and importlib.util.find_spec(framework) is None:
        raise _missing(name, f"No module named {framework!r}")


def backend(name: str) -> Backend:
    """The backend of that name, imported now.

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
    return module


def _missing(name: str, why: str) -> BackendError:
    return BackendError(
        f"the {name} backend needs {BACKENDS[name][1]}, which cannot be imported here ({why}); "
        f"install it with: pip install 'vt[{name}]'"
    )


def stock_backend(name: str) -> StockBackend:
    """The runner of that backend's stock framework, imported now; raises as :func:`backend`."""
    backend(name)
    module: Any = importlib.import_module(f"{BACKENDS[name][0]}.stock")
    return module
