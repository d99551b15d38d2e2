"""Rotary embeddings that depend on the length of a text: where they change, and what they remember.

Dynamic NTK scaling computes new frequencies whenever a text becomes longer than all before it, and keeps
them. After tokens were taken back, and in the next request, keys would be rotated by the wrong ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from vt_core.files.architectures import architecture

#: Attributes of a rotary embedding, besides its buffers, that depend on the lengths that it has seen.
_REMEMBERED = ("max_seq_len_cached", "attention_scaling", "original_inv_freq")


class _State(NamedTuple):
    buffers: dict[str, Any]
    attributes: dict[str, Any]


@dataclass
class RotaryLog:
    """The frequencies of one text: now, and before each token since the last :meth:`settle`."""

    now: list[_State]
    before: list[list[_State]] = field(default_factory=list)

    def rewind(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        if self.before:
            self.now = self.before[-count]
            del self.before[-count:]

    def settle(self) -> None:
        """Tokens so far can no longer be taken back."""
        self.before.clear()


class Rotary:
    """The dynamic rotary embeddings of a model, which remember the length of the text that they saw last."""

    def __init__(self, model: nn.Module) -> None:
        """Take ``model`` as it was loaded: no text has been read yet."""
        self._modules = [module for module in model.modules() if _scales_by_length(module, "dynamic")]
        self._first = self._states()

    @property
    def is_dynamic(self) -> bool:
        """Whether the model has such embeddings."""
        return bool(self._modules)

    def log(self) -> RotaryLog:
        """The log of an empty text."""
        return RotaryLog(self._first)

    @contextmanager
    def reading(self, log: RotaryLog, recorded: int) -> Iterator[None]:
        """Read tokens of a text; the last ``recorded`` of them may be taken back."""
        if not self._modules:
            yield
            return
        self._restore(log.now)
        log.before += [log.now] * recorded
        try:
            yield
        finally:
            log.now = self._states()

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


def cache_threshold(model: PreTrainedModel) -> int | None:
    """Length at which longrope switches its factors, for models whose caches are invalid on the other side
    (Phi 3). None for others, also those whose caches transformers keeps across the border.
    """
    return scaling_start(model) if architecture(model.config.model_type).rebuilds_cache else None


def scaling_start(model: PreTrainedModel) -> int | None:
    """Length after which the rotation of keys depends on the length of the text (longrope, dynamic NTK); None
    where it never does.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    # One for the model, or one for each kind of layer.
    settings = [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]
    starts = [
        part.get("original_max_position_embeddings") or model.config.max_position_embeddings
        for part in settings
        if part.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(starts, default=None)


def rotates_by_length(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding that depends on the longest text of a call."""
    return _scales_by_length(module, "dynamic", "longrope")


def _scales_by_length(module: nn.Module, *types: str) -> bool:
    kinds = getattr(module, "rope_type", None)
    each = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and any(name in kind for name in types) for kind in each)
