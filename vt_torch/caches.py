"""Taking back what transformers' rotary embeddings remember about the length of a text.

Dynamic NTK scaling computes new frequencies whenever a text becomes longer than all before it, and keeps
them. After tokens were taken back, and in the next request, keys would be rotated by the wrong ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

#: Attributes of a rotary embedding, besides its buffers, that depend on the lengths that it has seen.
_REMEMBERED = ("max_seq_len_cached", "attention_scaling", "original_inv_freq")


class _State(NamedTuple):
    buffers: dict[str, Any]
    attributes: dict[str, Any]


class RotaryLog:
    """The frequencies of dynamic rotary embeddings before each step since the last :meth:`rewind`."""

    def __init__(self, model: nn.Module) -> None:
        """Take ``model`` as it was loaded: no text has been read yet."""
        self._modules = [module for module in model.modules() if _is_dynamic(module)]
        self._first = self._states()
        self._log: list[list[_State]] = []

    def begin(self) -> None:
        """Restore the state before any text."""
        self._log.clear()
        self._restore(self._first)

    def record(self) -> None:
        """Save the state before a step."""
        if self._modules:
            self._log.append(self._states())

    def rewind(self, count: int) -> None:
        """Take back the last ``count`` steps. Steps before them can no longer be taken back."""
        if count and self._modules:
            self._restore(self._log[-count])
        self._log.clear()

    # References suffice: dynamic scaling makes new arrays and does not write into old ones.

    def _states(self) -> list[_State]:
        return [
            _State(
                dict(module._buffers),
                {name: value for name, value in vars(module).items() if name.endswith(_REMEMBERED)},
            )
            for module in self._modules
        ]

    def _restore(self, states: list[_State]) -> None:
        for module, state in zip(self._modules, states, strict=True):
            module._buffers.update(state.buffers)
            for name in [name for name in vars(module) if name.endswith(_REMEMBERED)]:
                if name not in state.attributes:
                    delattr(module, name)
            vars(module).update(state.attributes)


def _is_dynamic(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding that computes new frequencies for longer texts."""
    kinds = getattr(module, "rope_type", None)
    each = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and "dynamic" in kind for kind in each)
