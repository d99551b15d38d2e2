"""A model directory written back as a plain Hugging Face one, tables included: what stock frameworks load."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from converters.cache import cache_directory
from converters.directory import DirectorySource
from converters.output import check_free_space, locked, new_directory
from converters.safetensors_io import write_file
from vt_core.files.manifest import MANIFEST_NAME
from vt_core.files.model_dir import ModelDirectory

WEIGHTS_NAME = "model.safetensors"


def stock_copy(directory: ModelDirectory) -> Path:
    """The plain copy of a model directory in the user's cache, written the first time it is asked for.

    Raises:
        ModelError: it cannot be written.
    """
    digest = hashlib.sha256((directory.path / MANIFEST_NAME).read_bytes()).hexdigest()[:16]
    out = cache_directory() / "stock" / f"{directory.path.resolve().name}-{digest}"
    if not (out / WEIGHTS_NAME).is_file():
        with locked(out, announce=True):
            if not (out / WEIGHTS_NAME).is_file():
                export(directory, out)
    return out


def export(directory: ModelDirectory, out: Path) -> None:
    """Write a plain Hugging Face directory to `out`, whole or not at all; call it under `locked(out)`.

    Raises:
        ModelError: that cannot be done.
    """
    source = DirectorySource(directory)
    check_free_space(out.parent, directory.manifest.total_bytes)
    with new_directory(out) as partial:
        source.write_tokenizer(partial)
        for name in ("config.json", "generation_config.json"):
            if name in directory.manifest.files:
                shutil.copyfile(directory.path / name, partial / name)
        write_file(
            partial / WEIGHTS_NAME,
            source.tensors(),
            lambda info: source.chunks(info.name, info.dtype),
            {"format": "pt"},
        )
