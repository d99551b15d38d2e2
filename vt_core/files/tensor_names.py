"""Comparing the tensors that a framework's model declares with those that its files hold."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vt_core.errors import ModelError

_log = logging.getLogger("vt")


def check_tensor_names(
    model: str, model_class: str, *, missing: Iterable[str], unused: Iterable[str]
) -> None:
    """Refuse missing tensors, and log tensors that the model does not use, as the stock frameworks do.

    Unused are, for example, value heads, buffers that older versions saved, and layers after the last one
    that config.json counts.

    Args:
        model: what messages call the model.
        model_class: the framework's class of the model, for messages.
        missing: tensors that the model declares and no file holds.
        unused: tensors that the files hold and the model does not declare.

    Raises:
        ModelError: a tensor is missing. The message names all of them.
    """
    if absent := sorted(missing):
        raise ModelError(
            f"{model} lacks {len(absent)} tensors of {model_class}: {', '.join(absent)}; download the model "
            "again, or convert it again"
        )
    if beside := sorted(unused):
        _log.info(
            "%s: %d tensors are not used, because %s does not have them: %s",
            model,
            len(beside),
            model_class,
            ", ".join(beside),
        )
