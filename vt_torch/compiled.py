"""Steps of one token through ``torch.compile``, on caches whose shapes do not change from step to step.

Prompts, drafts and repeated reads run as always, on the same caches. Compiled kernels round differently, so
hidden states differ from those of the plain model in the last places of the run's float type.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from contextlib import nullcontext
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from vt_core.errors import BackendError
from vt_torch.products import onednn_off

#: Tokens that a new cache has room for. It is doubled as a text grows; each size is compiled, the second one
#: for all later sizes on a CPU.
_FIRST_CAPACITY = 512

#: Layers of transformers' caches that :class:`FixedLayer` can stand for.
_REPLACED = (DynamicLayer, DynamicSlidingWindowLayer)


class FixedLayer(StaticLayer):
    """transformers' static layer, except that tokens can be taken back, and that it can be enlarged.

    It stands for layers with a sliding window as well: the mask hides what is outside of the window.
    """

    max_cache_len: int
    cumulative_length: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; the number is positive or negative."""
        if self.is_initialized:
            self.cumulative_length.sub_(abs(tokens_to_remove))

    def enlarge(self, capacity: int) -> None:
        """Make room for so many tokens."""
        if self.is_initialized:
            keys, values = self.keys, self.values
            self.max_cache_len = capacity
            self.lazy_initialization(keys, values)
            self.keys[:, :, : keys.shape[-2]], self.values[:, :, : keys.shape[-2]] = keys, values
        self.max_cache_len = capacity


def fixed_cache(cache: DynamicCache) -> DynamicCache:
    """A cache with fixed shapes that holds what a cache of the same model holds, windows included."""
    for index, layer in enumerate(cache.layers):
        fixed = FixedLayer(_FIRST_CAPACITY)
        if layer.is_initialized:
            count = layer.keys.shape[-2]
            fixed.enlarge(_capacity(count))
            fixed.update(layer.keys, layer.values)
        cache.layers[index] = fixed
    return cache


def plain_cache(cache: DynamicCache) -> DynamicCache:
    """A copy with layers of full attention, to be exported."""
    plain = empty_plain_cache(len(cache.layers))
    for layer, copy in zip(cache.layers, plain.layers, strict=True):
        if layer.is_initialized:
            count = int(layer.cumulative_length)
            copy.update(layer.keys[:, :, :count], layer.values[:, :, :count])
    return plain


def empty_plain_cache(layers: int) -> DynamicCache:
    """A cache of so many layers of full attention."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer() for _ in range(layers)]
    return cache


def fit(cache: DynamicCache, length: int) -> None:
    """Let a cache hold a text of so many tokens."""
    for layer in cache.layers:
        if layer.max_cache_len < length:
            layer.enlarge(_capacity(length))


def _capacity(length: int) -> int:
    capacity = _FIRST_CAPACITY
    while capacity < length:
        capacity *= 2
    return capacity


def check_compiler(device: torch.device) -> None:
    """Check that this machine can compile.

    Raises:
        BackendError: it cannot.
    """
    if device.type == "cpu":
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
        if not any(shutil.which(name) for name in names):
            raise BackendError(
                f"--compile needs a C++ compiler, and there is no {' or '.join(names)} here; install one, or "
                "leave --compile out"
            )
    elif device.type != "cuda":
        raise BackendError(f"--compile is for CPU and CUDA, not for {device.type}; leave it out")
    elif importlib.util.find_spec("triton") is None:
        raise BackendError("--compile needs Triton on CUDA; pip install triton, or leave --compile out")


def check_model(model: PreTrainedModel, reason: str | None) -> None:
    """Check that the steps of a model can be compiled.

    Args:
        model: the body.
        reason: what else keeps it from that, as the end of a sentence.

    Raises:
        BackendError: they cannot.
    """
    if any(type(layer) not in _REPLACED for layer in DynamicCache(config=model.config).layers):
        reason = "its layers keep states that are not keys and values of every token"
    if reason is not None:
        name = type(model).__name__.removeprefix("Tableless")
        raise BackendError(f"{name} cannot run with --compile: {reason}; leave --compile out")


def compile_steps(model: PreTrainedModel, device: torch.device, without_onednn: bool) -> None:
    """Let the layers of a model run compiled when they read one token on a cache of :func:`fixed_cache`.

    Args:
        model: the body.
        device: of its weights.
        without_onednn: whether PyTorch's own kernels multiply one position faster.
    """
    body, embedding = model.get_decoder(), model.get_input_embeddings()
    plain, graphs = body.forward, device.type == "cuda"
    compiled = torch.compile(plain, mode="reduce-overhead" if graphs else None)

    @functools.wraps(plain)
    def forward(*, input_ids: torch.Tensor, past_key_values: DynamicCache, **options: Any) -> Any:
        if input_ids.shape[1] > 1 or not past_key_values.layers[0].is_initialized:
            return plain(input_ids=input_ids, past_key_values=past_key_values, **options)
        # Other arguments would be compiled anew, also where they are None.
        options = {name: value for name, value in options.items() if value is not None}
        options["inputs_embeds"] = embedding(input_ids)
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with onednn_off() if without_onednn else nullcontext():
            output = compiled(past_key_values=past_key_values, **options)
        if graphs:  # the next step overwrites what a graph returns
            output.last_hidden_state = output.last_hidden_state.clone()
        return output

    body.forward = forward


def warm_up(model: PreTrainedModel, cache: DynamicCache, index: torch.Tensor) -> None:
    """Compile the steps of a model, for the first size of a cache and for any other. It takes minutes, or
    seconds if it was done before.

    Args:
        model: of :func:`compile_steps`.
        cache: an empty one.
        index: a token, ``[1, 1]``.

    Raises:
        BackendError: the compiler fails.
    """
    body = model.get_decoder()
    try:
        for capacity in (_FIRST_CAPACITY, 2 * _FIRST_CAPACITY):
            fit(cache, capacity)
            for _ in range(2):  # a prompt, and a step; then two steps
                body(input_ids=index, past_key_values=cache, use_cache=True)
    except RuntimeError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(f"torch.compile failed here ({reason.strip()}); leave --compile out") from error
