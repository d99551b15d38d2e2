"""A Hugging Face model directory as a source: config.json, tokenizer.json, and weights as safetensors."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from converters.packed import refuse_foreign_quantization
from converters.safetensors_io import ITEM_BYTES, Entry, read_chunks, read_header
from converters.source import CHUNK_BYTES, TensorInfo, fingerprint_files
from vt_core.errors import ConfigError, ModelError, TokenizerError
from vt_core.files.config_checks import check_config
from vt_core.files.json_files import read_object

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
#: Chat templates beside the default one, by name.
TEMPLATES_PATTERN = "additional_chat_templates/*.jinja"
SMALL_NAMES = ("config.json", "generation_config.json", INDEX_NAME, *TOKENIZER_NAMES)
"""Every file that a conversion may read besides the weights."""

_CARRIER = {"bfloat16": "uint16"}
"""numpy has no bfloat16."""


class HuggingFaceSource:
    """A directory in the layout of the Hugging Face hub. The headers of its weights have been read and
    checked."""

    kind = "huggingface"

    def __init__(self, path: Path, *, name: str | None = None, fingerprint: str | None = None) -> None:
        """Open `path`; `name` and `fingerprint` are given for a download, whose commit says more than its
        files.

        Raises ModelError when the directory is no such model, has no safetensors weights, or is quantized in
        a format that vt does not read.
        """
        self.path = path
        self.name = name or path.resolve().name
        self._fingerprint = fingerprint
        self.config = read_config(path)
        self.generation_config = _optional_json(path / "generation_config.json")
        self._entries = {
            tensor: (file, entry) for file, part in _weights(path).items() for tensor, entry in part.items()
        }
        self.default_dtype = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    def fingerprint(self) -> str:
        return self._fingerprint or fingerprint(self.path)

    def tensors(self) -> list[TensorInfo]:
        return [entry.info for _, entry in self._entries.values()]

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        file, entry = self._entries[name]
        return _convert_chunks(file, entry, dtype)

    def write_tokenizer(self, out: Path) -> None:
        if not (self.path / "tokenizer.json").is_file():
            raise TokenizerError(
                f"{self.path} has no tokenizer.json. Write one with transformers: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        for name in (*TOKENIZER_NAMES, *_template_names(self.path)):
            if (self.path / name).is_file():
                (out / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.path / name, out / name)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ModelError where it is missing or describes weights in a
    quantized format that vt does not read."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is not a Hugging Face model: it holds no config.json.")
    config = read_object(path / "config.json", "model configuration", ConfigError, strict=False)
    check_config(config, path / "config.json")
    refuse_foreign_quantization(path, config)
    return config


def fingerprint(path: Path) -> str:
    """Fingerprint of a model directory: changes when one of its files does."""
    names = {*SMALL_NAMES, *_template_names(path), WEIGHTS_NAME}
    if (path / INDEX_NAME).is_file():
        names |= set(index_files(path / INDEX_NAME))
    return fingerprint_files(path / name for name in sorted(names) if (path / name).is_file())


def _template_names(path: Path) -> list[str]:
    return [file.relative_to(path).as_posix() for file in path.glob(TEMPLATES_PATTERN)]


def index_files(index: Path) -> dict[str, list[str]]:
    """The weight files that an index names, each with its tensors. Raises ModelError for an index that is not
    sound."""
    weight_map = read_object(index, "weight index", ModelError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map.")
    files: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or PurePath(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{index} places {tensor!r} in {file!r}, which is no safetensors file beside it."
            )
        files.setdefault(file, []).append(tensor)
    return files


def _weights(path: Path) -> dict[Path, dict[str, Entry]]:
    # A whole file wins over an index, as it does in transformers.
    if (path / WEIGHTS_NAME).is_file():
        return {path / WEIGHTS_NAME: read_header(path / WEIGHTS_NAME)}
    if not (path / INDEX_NAME).is_file():
        raise ModelError(_no_weights(path))
    weights = {}
    for file, tensors in sorted(index_files(path / INDEX_NAME).items()):
        if not (path / file).is_file():
            raise ModelError(
                f"{path} is incomplete: {INDEX_NAME} names {file}, which is missing. Download it again."
            )
        header = read_header(path / file)
        missing = [tensor for tensor in tensors if tensor not in header]
        if missing:
            raise ModelError(f"{path / file} does not hold {missing[0]!r}, which {INDEX_NAME} places there.")
        chosen = set(tensors)
        weights[path / file] = {name: entry for name, entry in header.items() if name in chosen}
    return weights


def _no_weights(path: Path) -> str:
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        return (
            f"{path} holds pickled PyTorch weights only, and vt reads safetensors. Write them with "
            "transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)."
        )
    if ggufs := sorted(path.glob("*.gguf")):
        return f"{path} holds no {WEIGHTS_NAME}; give the GGUF file itself: {ggufs[0]}."
    return f"{path} holds no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}."


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_object(path, "configuration", ConfigError, strict=False) if path.is_file() else None


def _convert_chunks(file: Path, entry: Entry, dtype: str) -> Iterator[np.ndarray]:
    from vt_core.files import dtypes

    info = entry.info
    columns = math.prod(info.shape[1:])
    if dtype == info.dtype:
        for raw in read_chunks(file, entry, CHUNK_BYTES):
            yield raw.view(_CARRIER.get(dtype, dtype)).reshape(-1, columns)
        return
    widening = max(1, ITEM_BYTES[dtype] // ITEM_BYTES[info.dtype])
    for raw in read_chunks(file, entry, CHUNK_BYTES // widening):
        if info.dtype == "float64":
            yield dtypes.from_float32(raw.view("<f8").astype("<f4").reshape(-1, columns), dtype)
        else:
            values = raw.view(dtypes.storage_dtype(info.dtype)).reshape(-1, columns)
            yield dtypes.convert(values, info.dtype, dtype)
