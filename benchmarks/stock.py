"""The stock frameworks on the same weights: what vt is compared with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from converters.safetensors_io import read_chunks, read_header, write_file
from converters.source import TensorInfo
from vt_core.model_dir import ModelDirectory

Tokens = tuple[list[int], list[float]]  #: full ids and the time of each, the start of the call first


def export(model: Path, out: Path) -> Path:
    """Write a model directory back as a plain Hugging Face one: one file, tables included. Kept if it is
    there.
    """
    directory = ModelDirectory.open(model)
    if (out / "model.safetensors").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    for file in directory.path.iterdir():
        if file.suffix in (".json", ".jinja") and file.name not in (
            "vt.json",
            "model.safetensors.index.json",
        ):
            shutil.copy(file, out)
    manifest = directory.manifest
    shape = (manifest.vocab_rows, manifest.hidden)
    store = directory.open_store()
    names = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}
    tables = {names[name]: store.tables[name] for name in manifest.tables}
    bodies = {
        name: (path, entry)
        for path in directory.path.glob("*.safetensors")
        for name, entry in read_header(path).items()
    }
    infos = [TensorInfo(name, manifest.dtype, shape) for name in tables]
    infos += [entry.info for _, entry in bodies.values()]

    def chunks(info: TensorInfo):
        if info.name in tables:
            return (np.ascontiguousarray(tile.rows) for tile in tables[info.name].tiles())
        return read_chunks(*bodies[info.name], 8 << 20)

    write_file(out / "model.safetensors", infos, chunks, {"format": "pt"})
    return out


def load_torch(path: str | Path, dtype: str):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


def load_mlx(path: str | Path, dtype: str):
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(path), lazy=True)
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    mx.clear_cache()
    return model


def generate_torch(model, prompt: Sequence[int], max_tokens: int, eos: Collection[int]) -> Tokens:
    """Greedy, by ``generate``; the penalties that a model's generation_config may ask for are off."""
    import torch

    times: list[float] = []

    class Times:
        def put(self, _):
            times.append(time.perf_counter())

        def end(self): ...

    ids = torch.tensor([list(prompt)])
    times_zero = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(eos),
        pad_token_id=0,
        streamer=Times(),
    )
    # The streamer is given the prompt first.
    return out[0, len(prompt) :].tolist(), [times_zero, *times[1:]]


def generate_mlx(model, prompt: Sequence[int], max_tokens: int, eos: Collection[int]) -> Tokens:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    times, out = [time.perf_counter()], []
    for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=max_tokens):
        times.append(time.perf_counter())
        out.append(int(token))
        if token in eos:
            break
    return out, times


def next_logits(backend: str, model, context: Sequence[int]) -> np.ndarray:
    """Full logits after a context, float32 ``[V]``, computed as generation would: last token apart on MLX."""
    if backend == "torch":
        import torch

        with torch.inference_mode():
            return model(torch.tensor([list(context)]), logits_to_keep=1).logits[0, -1].float().numpy()
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if len(context) > 1:
        model(mx.array([list(context[:-1])]), cache=cache)
    return np.array(model(mx.array([list(context[-1:])]), cache=cache)[0, -1].astype(mx.float32))


def text_logits(backend: str, model, prompt: Sequence[int], text: Sequence[int]) -> np.ndarray:
    """Full logits that each id of a text was to be chosen from, float32 ``[len(text), V]``, in one pass."""
    context = [*prompt, *text[:-1]]
    if backend == "torch":
        import torch

        with torch.inference_mode():
            out = model(torch.tensor([context]), logits_to_keep=len(text), use_cache=False)
            return out.logits[0].float().numpy()
    import mlx.core as mx

    return np.array(model(mx.array([context]))[0, -len(text) :].astype(mx.float32))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of ``logits [n, V]``, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


LOAD: dict[str, Callable] = {"torch": load_torch, "mlx": load_mlx}
GENERATE: dict[str, Callable[..., Tokens]] = {"torch": generate_torch, "mlx": generate_mlx}
