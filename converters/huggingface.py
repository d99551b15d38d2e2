"""A Hugging Face model directory as a source: config.json, tokenizer.json, and weights as safetensors."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from converters.packed import refuse_foreign_quantization
from converters.safetensors_io import ITEM_BYTES, Entry, read_chunks, read_header
from converters.source import CHUNK_BYTES, TensorInfo, fingerprint_files, utf8
from converters.tokenizer_json import digest
from vt_core.errors import ConfigError, ModelError, TokenizerError, shorten
from vt_core.files.config_checks import check_config
from vt_core.files.json_files import read_object
from vt_core.vocab.merges import MERGES_NAME

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
    MERGES_NAME,
)
#: Chat templates beside the default one, by name.
TEMPLATES_PATTERN = "additional_chat_templates/*.jinja"
#: Every file that a conversion may read besides the weights.
SMALL_NAMES = ("config.json", "generation_config.json", INDEX_NAME, *TOKENIZER_NAMES)

SHARD_PATTERN = "model-*-of-*.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
#: numpy has no bfloat16.
_CARRIER = {"bfloat16": "uint16"}


class HuggingFaceSource:
    """A directory in the layout of the Hugging Face hub. The headers of its weights have been read and
    checked."""

    kind = "huggingface"

    def __init__(self, path: Path, *, name: str | None = None, fingerprint: str | None = None) -> None:
        """Open `path`; `name` and `fingerprint` are given for a download, whose commit says more than its
        files.

        Raises:
            ModelError: the directory is not a model, has no safetensors weights, or is quantized in a
                format that vt does not read.
        """
        self.path = path
        self.name = name or utf8(path.resolve().name)
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
        return converted_chunks(file, entry, dtype)

    def write_tokenizer(self, out: Path) -> str:
        if not (self.path / "tokenizer.json").is_file():
            raise TokenizerError(
                f"{self.path} has no tokenizer.json. Write one with transformers: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        # Checked here and not in the copies, so that messages name the user's files.
        tokenizer_digest = digest(self.path / "tokenizer.json")
        for name in (*TOKENIZER_NAMES, *_template_names(self.path)):
            if not (self.path / name).is_file():
                continue
            if name.endswith(".json") and name != "tokenizer.json":
                read_object(self.path / name, "tokenizer file", TokenizerError, strict=False)
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.path / name, out / name)
        return tokenizer_digest


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory.

    Raises:
        ModelError: it is missing or describes weights in a quantized format that vt does not read.
    """
    if not (path / "config.json").is_file():
        if files := sorted(path.glob("*.gguf")):
            raise ModelError(f"{path} holds no config.json; give the GGUF file itself: {files[0]}.")
        raise ModelError(f"{path} is not a Hugging Face model: it holds no config.json.")
    check_links(path)
    config = read_object(path / "config.json", "model configuration", ConfigError, strict=False)
    check_config(config, path / "config.json")
    refuse_foreign_quantization(path, config)
    return config


def fingerprint(path: Path) -> str:
    """Fingerprint of a model directory: changes when one of its files does."""
    names = {*SMALL_NAMES, *_template_names(path), WEIGHTS_NAME, *_shards(path)}
    if (path / INDEX_NAME).is_file():
        names |= set(index_files(path / INDEX_NAME))
    return fingerprint_files(path / name for name in sorted(names) if (path / name).is_file())


def _template_names(path: Path) -> list[str]:
    return [file.relative_to(path).as_posix() for file in path.glob(TEMPLATES_PATTERN)]


def check_links(path: Path) -> None:
    """Raise ModelError where a file that a conversion reads is a symbolic link out of the directory.

    In the hub's cache, files are links to `blobs` beside `snapshots`.
    """
    root = path.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    names = (*SMALL_NAMES, TEMPLATES_PATTERN.partition("/")[0], *_template_names(path))
    for file in (*(path / name for name in names), *path.glob("*.safetensors")):
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in allowed):
            raise ModelError(
                f"{file} is a link out of the directory, to {file.resolve()}. Put the file itself there."
            )


def index_files(index: Path) -> dict[str, list[str]]:
    """The weight files that an index names, each with its tensors.

    Raises:
        ModelError: the index is invalid.
    """
    weight_map = read_object(index, "weight index", ModelError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map.")
    files: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        plain = str(PurePath(file)) if isinstance(file, str) else ""  # without a leading ./
        if PurePath(plain).name != plain or not plain.endswith(".safetensors"):
            raise ModelError(
                f"{index} places {shorten(tensor)} in {shorten(file)}, which is not a safetensors file "
                "in its directory."
            )
        files.setdefault(plain, []).append(tensor)
    return files


def _weights(path: Path) -> dict[Path, dict[str, Entry]]:
    # A whole file wins over an index, as it does in transformers.
    if (path / WEIGHTS_NAME).is_file():
        return {path / WEIGHTS_NAME: read_header(path / WEIGHTS_NAME)}
    if not (path / INDEX_NAME).is_file():
        return _weights_without_index(path)
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


def _weights_without_index(path: Path) -> dict[Path, dict[str, Entry]]:
    """The shards of a directory without an index, as mlx-lm reads them."""
    names = _shards(path)
    if not names:
        raise ModelError(_no_weights(path))
    count = int(names[0].removesuffix(".safetensors").rpartition("-")[2])
    if names != [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]:
        raise ModelError(
            f"{path} is incomplete: of the {count} files of its weights it holds {len(names)}. Download it "
            "again."
        )
    weights = {path / name: read_header(path / name) for name in names}
    seen: set[str] = set()
    for file, header in weights.items():
        if twice := seen & header.keys():
            raise ModelError(f"{file} holds {min(twice)}, which another file of the model holds too.")
        seen |= header.keys()
    return weights


def _shards(path: Path) -> list[str]:
    """Names of weight files that are numbered, in order."""
    return sorted(file.name for file in path.glob(SHARD_PATTERN) if _SHARD.fullmatch(file.name))


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


def converted_chunks(file: Path, entry: Entry, dtype: str) -> Iterator[np.ndarray]:
    """A tensor of a file as :meth:`converters.source.Source.chunks` gives it."""
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
