"""Layers that came quantised, in a layout that transformers reads: what it needs for that."""

from __future__ import annotations

import importlib.util

from vt_core.errors import BackendError
from vt_core.model_dir import ModelDirectory

#: Packages that transformers multiplies with, by what config.json calls the layout: their modules and names.
_PACKAGES = {
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
}


def check_packages(directory: ModelDirectory, bits: int | None) -> None:
    """Whether layers that came quantised, if these are such, can be run, and are not to be quantised again.

    Raises:
        BackendError: a package is missing, which is named, or ``bits`` were asked for.
    """
    settings = directory.config.get("quantization_config")
    if not isinstance(settings, dict):
        return
    method = str(settings.get("quant_method"))
    if bits is not None:
        raise BackendError(f"{directory.path} is quantised already ({method}); leave --quantize out")
    packages = _PACKAGES.get(method, {})
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BackendError(
            f"{directory.path} holds layers quantised with {method}, for which transformers needs "
            f"{' and '.join(missing)}; install with: pip install {' '.join(missing)}"
        )
