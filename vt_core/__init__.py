"""vt: exact, low-memory generation for small language models. Their vocabulary tables stay on disk.

>>> from vt_core import load
>>> with load("model-dir", task="math.vt.json") as model:
...     for chunk in model.stream("A farmer has 3 pens …", max_tokens=200):
...         print(chunk.text, end="")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vt_core.errors import VtError

if TYPE_CHECKING:
    from vt_core.model import Chunk, Generation, Model, Score, Session, Stats
    from vt_core.vocab.task import TaskVocabulary

__version__ = "0.1.0"
__all__ = ["Chunk", "Generation", "Model", "Score", "Session", "Stats", "TaskVocabulary", "VtError", "load"]


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
    slots: int = 8,
    cache_bytes: int | None = None,
    draft_file: str | Path | None = None,
    quantize: str | None = None,
    compile: bool = False,
    adapter: str | Path | None = None,
    revision: str | None = None,
    learn: bool = False,
    progress: bool = False,
) -> Model:
    """Load a model.

    >>> model = load("Qwen/Qwen2.5-0.5B-Instruct")
    >>> model.generate("Why is the sky blue?", max_tokens=100).text
    >>> for chunk in model.stream([{"role": "user", "content": "Hi"}], temperature=0.8, top_p=0.95, seed=1):
    ...     print(chunk.text, end="")
    >>> chunk.result.finish_reason, chunk.result.stats.tokens_per_s
    >>> model.score("The sky is", " blue").log_prob
    >>> with model.session(system="Answer in one sentence.") as session:
    ...     session.send("Why is the sky blue?").text
    >>> model.close()

    ``help(vt_core.Model)`` describes the arguments of these methods, ``help(vt_core.Generation)`` and
    ``help(vt_core.Stats)`` their results.

    Args:
        path: a model directory, a Hugging Face directory, a hub id, or a GGUF file. All but the first are
            converted once, into the user's cache. None: the default model, SmolLM2-135M-Instruct.
        backend: ``mlx`` or ``torch``. None: MLX on Apple Silicon, PyTorch elsewhere.
        task: task vocabularies, as files, as names in the collection that comes with vt's repository
            (``math``), or as objects; the head holds their union. None given: the rank prior, which are the
            most frequent tokens of the tokenizer.
        head: ``prealloc``, ``split`` or ``rebuild``, three ways to hold a small head; or ``full``, the
            original head.
        store: ``lmdb`` reads vocabulary rows from disk, ``ram`` keeps the tables in host memory.
        device: device of the backend, such as ``cpu`` or ``cuda``. None: the best one.
        dtype: ``float32``, ``bfloat16`` or ``float16``. None: what runs well on the device.
        tile_bytes: bytes of the full head that verification reads at a time. None: what is fastest on the
            device.
        slots: requests that run at once; others wait. Each has caches of its own.
        cache_bytes: most bytes that these caches may take; a request that would exceed it waits. None: a
            quarter of the machine's memory.
        draft_file: n-gram table (``NAME.ngrams``) to draft from, besides those next to the task files.
        quantize: ``int8`` or ``int4`` runs a quantized copy of the model, which is made once, in the user's
            cache: linear layers of 8 or 4 bits, a head of 8 (PyTorch only). Exact then means the text of the
            quantized head. None: weights as they are.
        compile: whether steps of one token run through ``torch.compile`` (PyTorch only; not for quantized,
            recurrent and some other models). Loading then takes minutes the first time; what is compiled is
            kept in the user's cache.
        adapter: directory of a LoRA adapter in the format of PEFT or mlx-lm. It must not change the
            vocabulary.
        revision: branch, tag or commit of a hub id.
        learn: whether to start with the tokens rescued in earlier sessions, and to save those of this one.
            They are kept in ``NAME.learned.json`` next to the first task file, or else in the user's cache.
        progress: whether to show progress bars on stderr.

    Returns:
        The model. Use it in a ``with`` statement, or close it, to free its memory at a known moment.

    Raises:
        ModelError: the model cannot be found, converted or read.
        VocabularyError: a task vocabulary cannot be read, or belongs to another tokenizer.
        OptionError: an argument has the wrong type or is out of range.
        BackendError: the backend is not installed, or cannot do what was asked on this machine.
        VtError: base class of all errors; each message says what to do.
    """
    from vt_core.decode.options import load_options
    from vt_core.loading import load_model

    # All options are checked before anything is read, downloaded or converted.
    options = load_options(
        path=path,
        backend=backend,
        task=task,
        head=head,
        store=store,
        device=device,
        dtype=dtype,
        tile_bytes=tile_bytes,
        slots=slots,
        cache_bytes=cache_bytes,
        draft_file=draft_file,
        quantize=quantize,
        compile=compile,
        adapter=adapter,
        revision=revision,
        learn=learn,
        progress=progress,
    )
    return load_model(options)


def __getattr__(name: str) -> object:
    """Import public classes when first used, so that ``import vt_core`` stays fast."""
    if name in ("Chunk", "Generation", "Model", "Score", "Session", "Stats"):
        from vt_core import model

        return getattr(model, name)
    if name == "TaskVocabulary":
        from vt_core.vocab.task import TaskVocabulary

        return TaskVocabulary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
