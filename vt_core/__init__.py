"""vt: low-memory generation for small language models, with the vocabulary tables on disk.

>>> from vt_core import load
>>> model = load("model-dir", backend="torch", task="math.vt.json")
>>> for chunk in model.stream("A farmer has 3 pens …", max_tokens=200):
...     print(chunk.text, end="")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vt_core.errors import VtError

if TYPE_CHECKING:
    from vt_core.model import Chunk, Generation, Model, Score
    from vt_core.vocab.task import TaskVocabulary

__version__ = "0.1.0"
__all__ = ["Chunk", "Generation", "Model", "Score", "TaskVocabulary", "VtError", "load"]


def load(
    path: str | Path | None = None,
    *,
    backend: str | None = None,
    task: str | Path | TaskVocabulary | Sequence[str | Path | TaskVocabulary] = (),
    head: str = "prealloc",
    store: str = "lmdb",
    device: str | None = None,
    dtype: str | None = None,
    tile_bytes: int | None = None,
    quantize: str | None = None,
    adapter: str | Path | None = None,
    revision: str | None = None,
    learn: bool = False,
    progress: bool = False,
) -> Model:
    """Load a model, ready to generate.

    Args:
        path: a model directory, a Hugging Face directory or hub id, or a GGUF file; the last three are
            converted once into the user's cache. None: the default model, SmolLM2-135M-Instruct.
        backend: ``mlx`` or ``torch``; None takes MLX on Apple Silicon and PyTorch elsewhere.
        task: task vocabularies (files or loaded ones) whose union is the static part of the head; none: the
            rank prior.
        head: ``prealloc``, ``split``, ``rebuild``, or ``full`` for the original head.
        store: ``lmdb`` reads rows from disk, ``ram`` keeps the tables in host memory.
        device: a device of the backend, such as ``cpu`` or ``cuda``; None takes the best.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None takes what the device runs well.
        tile_bytes: how much of the full head verification holds at once; None takes what is fastest on the
            device.
        quantize: ``int8`` or ``int4`` holds linear layers in so many bits and the head in eight, quantized
            while the float weights are read (PyTorch only); exact means the text of that head. None takes the
            weights as they are.
        adapter: directory of a LoRA adapter, as PEFT or mlx-lm save it, that leaves the vocabulary alone.
        revision: of a hub id.
        learn: begin with the tokens rescued in earlier sessions, and save those of this one, in
            ``NAME.learned.json`` beside the first task file, or in the user's cache.
        progress: show progress bars on stderr.

    Raises:
        VtError: of the kind that fits what is wrong; its text says what to do.
    """
    from converters.cache import cache_directory, resolve
    from vt_core.decode.backend import QUANTIZE, check_backend, default_backend
    from vt_core.decode.backend import backend as import_backend
    from vt_core.errors import OptionError
    from vt_core.files.adapters import read_adapter
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.host import trim_heap
    from vt_core.model import Model
    from vt_core.vocab.learning import LearnedFile, learned_path
    from vt_core.vocab.static import static_ids
    from vt_core.vocab.task import TaskVocabulary
    from vt_core.vocab.tokenizer import Tokenizer

    if tile_bytes is not None and tile_bytes < 1:
        raise OptionError(f"a tile of {tile_bytes} bytes holds no row; give at least 1, or leave it out")
    if quantize is not None and quantize not in QUANTIZE:
        raise OptionError(f"unknown quantization {quantize!r}: choose one of {', '.join(QUANTIZE)}")
    name = backend or default_backend()
    check_backend(name)
    files = [task] if isinstance(task, (str, Path, TaskVocabulary)) else task
    layers = [] if adapter is None else read_adapter(adapter)
    directory = ModelDirectory.open(resolve(path, revision=revision, progress=progress))
    tokenizer_json = directory.path / "tokenizer.json"
    tasks = [
        item if isinstance(item, TaskVocabulary) else TaskVocabulary.load(item, tokenizer_json)
        for item in files
    ]
    # Before the framework and the weights: reading a large vocabulary takes a few hundred megabytes in
    # passing.
    tokenizer = Tokenizer(directory.path)
    trim_heap()
    static = static_ids(directory, tokenizer, tasks)
    trim_heap()
    tokens = tokenizer.size(directory.manifest.vocab_rows)
    decoder = import_backend(name).load_decoder(
        directory,
        head=head,
        store=store,
        device=device,
        dtype=dtype,
        tile_bytes=tile_bytes,
        quantize=quantize,
        tokens=tokens,
        adapter=layers,
    )
    file = None
    if learn:
        digest = directory.manifest.tokenizer_digest
        beside = [Path(item) for item in files if not isinstance(item, TaskVocabulary)]
        path = learned_path(beside, cache_directory(), digest)
        file = LearnedFile(path, digest, tokens)
    model = Model(directory, decoder, tokenizer, backend=name, quantize=quantize, learned_file=file)
    model.set_static(static)
    trim_heap()
    return model


def __getattr__(name: str) -> object:
    """Public classes, imported when first asked for, so that ``import vt_core`` stays light."""
    if name in ("Chunk", "Generation", "Model", "Score"):
        from vt_core import model

        return getattr(model, name)
    if name == "TaskVocabulary":
        from vt_core.vocab.task import TaskVocabulary

        return TaskVocabulary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
