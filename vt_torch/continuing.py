"""Whether a recurrent model reads several tokens after others as it reads them one by one.

Some of transformers' recurrent layers ignore their state when they read several tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

#: Tokens of the text of the probe.
PROBE_TOKENS = 6
#: Relative L2 distance of its hidden states that is rounding.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
#: Exceptions of models that cannot read several tokens after others.
_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def limits_steps(model: nn.Module) -> bool:
    """Whether the time steps of Mamba 2 layers are limited. transformers does this only where it reads
    several tokens at once, so single tokens leave another state than a prompt.
    """
    limits = [getattr(module, "time_step_limit", None) for module in model.modules()]
    return any(limit and (limit[0] > 0 or limit[1] < math.inf) for limit in limits)


def continues(read: Callable[[tuple[int, ...]], torch.Tensor], dtype: str) -> bool:
    """Compare both ways to read a text.

    Args:
        read: reads :data:`PROBE_TOKENS` tokens in pieces with these ends. Returns the hidden states of all
            tokens, float32 ``[n, hidden]``.
        dtype: name of the run's float type.
    """
    try:
        single, several = read((3, 4, 5, 6)), read((3, 5, 6))
    except torch.OutOfMemoryError:
        raise
    except _ERRORS:
        return False
    return bool((several - single).norm() <= _TOLERANCE[dtype] * single.norm())
