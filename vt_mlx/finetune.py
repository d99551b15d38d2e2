"""Fine-tuning with mlx-lm's tuner: :class:`vt_core.enrich.training.FinetuneBackend` for MLX."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.trainer import TrainingArgs, evaluate, iterate_batches, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from vt_core.enrich.training import Example, Floats, LossPoint, Settings, Trained, TrainingPlan
from vt_core.errors import BackendError
from vt_core.files.adapters import CONFIG_NAME, MLX_NAME, LowRank
from vt_core.files.architectures import architecture_of
from vt_core.files.json_files import read_json, write_json
from vt_mlx.device import on_device, pick_device, pick_dtype

_LAST, _BEST = "checkpoint-last", "checkpoint-best"


def finetune(
    plan: TrainingPlan, on_step: Callable[[int], object], on_point: Callable[[LossPoint], object]
) -> Trained:
    """See :meth:`vt_core.enrich.training.FinetuneBackend.finetune`."""
    device = pick_device(plan.settings.device)
    # mlx-lm's tuner prints a table of the losses that `on_point` gets.
    with on_device(device), redirect_stdout(io.StringIO()):
        mx.random.seed(plan.settings.seed)
        run = _Run(plan, _model(plan, device), on_step, on_point)
        run.train()
        return run.trained()


def _model(plan: TrainingPlan, device: mx.Device) -> nn.Module:
    """The model with the parameters to train."""
    model, config = load_model(plan.model, lazy=True)
    if not architecture_of(config).same_weights_in_mlx:
        raise BackendError(
            f"mlx-lm renames or changes the weights of a {config.get('model_type')} model, so vt cannot "
            "write them back; train it with vt-torch"
        )
    name = plan.settings.dtype or ("float32" if plan.settings.full else None)
    model.set_dtype(pick_dtype(name, str(config.get("dtype") or "bfloat16"), device))
    if not plan.settings.full:
        model.freeze()
        linear_to_lora_layers(model, -1, _lora_config(plan))
        if plan.new_ids:
            _add_rows(model, plan)
    mx.eval(model.parameters())
    return model


def _lora_config(plan: TrainingPlan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "rank": settings.rank,
        "scale": settings.alpha / settings.rank,
        "dropout": settings.dropout,
    }


class _Rows(nn.Module):
    """A table, an embedding or a head, with some rows trained and the others frozen."""

    def __init__(self, table: nn.Module, ids: Sequence[int]) -> None:
        super().__init__()
        self.table = table
        self.table.freeze()
        # In float32, for updates are often smaller than bfloat16 can add.
        self.rows = table.weight[mx.array(list(ids))].astype(mx.float32)
        self._runs = _runs(ids)
        place = np.full(table.weight.shape[0], -1, np.int32)
        place[list(ids)] = np.arange(len(ids))
        self._place = mx.array(place)

    def embed(self, ids: mx.array) -> mx.array:
        place = self._place[ids]
        frozen = self.table(ids)
        trained = self.rows[mx.maximum(place, 0)].astype(frozen.dtype)
        return mx.where((place >= 0)[..., None], trained, frozen)

    def multiply(self, hidden: mx.array, logits: mx.array) -> mx.array:
        """`logits` of the frozen table, with those of the trained rows in their places."""
        fresh = hidden @ self.rows.astype(hidden.dtype).T
        pieces, end = [], 0
        for start, first, count in self._runs:
            pieces += [logits[..., end:start], fresh[..., first : first + count]]
            end = start + count
        return mx.concatenate([*pieces, logits[..., end:]], axis=-1)


class _Embedding(_Rows):
    def __call__(self, ids: mx.array) -> mx.array:
        return self.embed(ids)

    def as_linear(self, hidden: mx.array) -> mx.array:
        return self.multiply(hidden, self.table.as_linear(hidden))


class _Head(_Rows):
    def __call__(self, hidden: mx.array) -> mx.array:
        return self.multiply(hidden, self.table(hidden))


def _runs(ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of ids without gaps: the first id, its place among the ids, and how many there are."""
    runs: list[tuple[int, int, int]] = []
    for place, id in enumerate(ids):
        if runs and id == runs[-1][0] + runs[-1][2]:
            start, first, count = runs[-1]
            runs[-1] = (start, first, count + 1)
        else:
            runs.append((id, place, 1))
    return runs


def _add_rows(model: nn.Module, plan: TrainingPlan) -> None:
    """Put trained rows in place of the embedding and, where there is one, the head."""
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        last = name.rpartition(".")[2]
        if last == "embed_tokens":
            found[name] = _Embedding(module, plan.new_ids)
        elif last == "lm_head" and not plan.tied:
            if "bias" in module:
                raise BackendError("the head has a bias, whose new values vt-mlx cannot train; use vt-torch")
            found[name] = _Head(module, plan.new_ids)
    if len(found) != (1 if plan.tied else 2):
        raise BackendError(
            "mlx-lm calls the tables of this model by names that vt does not know; train it with vt-torch"
        )
    model.update_modules(tree_unflatten(list(found.items())))


class _Examples:
    """Examples as mlx-lm's tuner reads them: ids, and where the output starts."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[list[int], int]:
        example = self._examples[index]
        return example.ids, example.prompt


class _Run(TrainingCallback):
    """Trains from one evaluation to the next, and saves everything after each."""

    def __init__(
        self,
        plan: TrainingPlan,
        model: nn.Module,
        on_step: Callable[[int], object],
        on_point: Callable[[LossPoint], object],
    ) -> None:
        self._plan, self._model = plan, model
        self._on_step, self._on_point = on_step, on_point
        settings = plan.settings
        self._total = settings.epochs * settings.steps(len(plan.train))
        self._optimizer = _optimizer(settings, self._total)
        self._optimizer.init(model.trainable_parameters())
        self._micro = min(settings.micro_batch, len(plan.train))
        self._step = 0
        self._worse = 0  # evaluations since the best one
        self._curve: list[LossPoint] = []

    def train(self) -> None:
        settings = self._plan.settings
        self._load()
        while self._step < self._total and not self._stopped:
            count = min(settings.segment(len(self._plan.train)), self._total - self._step)
            self._train(count)
            self._step += count
            if self._plan.evaluation:
                self._add_point(self._evaluate(), evaluation=True)
                losses = [point.loss for point in self._curve if point.evaluation]
                self._worse = 0 if losses[-1] == min(losses) else self._worse + 1
                if not self._worse:
                    self._save(_BEST)
            self._save(_LAST)
        if self._plan.evaluation and (self._plan.work / _BEST).is_dir():
            self._load_weights(self._plan.work / _BEST)

    @property
    def _stopped(self) -> bool:
        return 0 < self._plan.settings.patience <= self._worse

    def trained(self) -> Trained:
        """The outcome; writes the adapter or all weights."""
        plan, model = self._plan, self._model
        curve, stopped = tuple(self._curve), self._step < self._total
        if plan.settings.full:
            weights = _fresh(plan.work / "weights")
            shutil.copyfile(plan.model / "config.json", weights / "config.json")
            mx.save_safetensors(
                str(weights / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "pt"}
            )
            return Trained(None, weights=weights, curve=curve, steps=self._step, stopped_early=stopped)
        adapter = _fresh(plan.work / "adapter")
        layers, rows = _layers(model), _rows(model)
        parameters = dict(tree_flatten(model.trainable_parameters()))
        low_rank = {name: value for name, value in parameters.items() if ".lora_" in name}
        mx.save_safetensors(str(adapter / MLX_NAME), low_rank)
        config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": _lora_config(plan)}
        write_json(adapter / CONFIG_NAME, config)
        return Trained(adapter, layers, rows, curve=curve, steps=self._step, stopped_early=stopped)

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """Called by mlx-lm's tuner."""
        self._add_point(train_info["train_loss"], self._step + self._updates(train_info["iteration"]))

    def _updates(self, iterations: int) -> int:
        return iterations // (self._plan.settings.batch_size // self._plan.settings.micro_batch)

    def _train(self, count: int) -> None:
        settings = self._plan.settings
        accumulate = settings.batch_size // settings.micro_batch
        np.random.seed(settings.seed + self._step)  # mlx-lm orders batches with it
        arguments = TrainingArgs(
            batch_size=self._micro,
            iters=count * accumulate,
            steps_per_report=min(10, count) * accumulate,
            steps_per_save=1 << 30,
            max_seq_length=1 << 20,
            adapter_file=str(self._plan.work / "segment.safetensors"),
            grad_accumulation_steps=accumulate,
        )
        seen = 0

        def batches(*args: Any, **options: Any) -> Any:
            nonlocal seen
            for batch in iterate_batches(*args, **options):
                yield batch
                seen += 1
                if seen % accumulate == 0:
                    self._on_step(self._step + seen // accumulate)

        train(
            self._model,
            self._optimizer,
            _Examples(self._plan.train),
            args=arguments,
            loss=_loss,
            iterate_batches=batches,
            training_callback=self,
        )
        self._on_step(self._step + count)

    def _evaluate(self) -> float:
        examples = _Examples(self._plan.evaluation)
        loss = evaluate(
            self._model,
            examples,
            batch_size=1,
            num_batches=-1,
            max_seq_length=1 << 20,
            loss=_loss,
            iterate_batches=partial(_in_order, iterate_batches),
        )
        return float(loss)

    def _add_point(self, loss: float, step: int | None = None, evaluation: bool = False) -> None:
        if math.isfinite(loss):
            self._curve.append(LossPoint(self._step if step is None else step, float(loss), evaluation))
            self._on_point(self._curve[-1])

    def _save(self, name: str) -> None:
        """Save weights, the optimizer and the curve, under that name at once."""
        fresh = _fresh(self._plan.work / f"{name}.partial")
        weights = dict(tree_flatten(self._model.trainable_parameters()))
        mx.save_safetensors(str(fresh / "weights.safetensors"), weights)
        if name == _LAST:
            state = dict(tree_flatten(self._optimizer.state))
            mx.save_safetensors(str(fresh / "optimizer.safetensors"), state)
        curve = [asdict(point) for point in self._curve]
        write_json(fresh / "state.json", {"step": self._step, "worse": self._worse, "curve": curve})
        out = self._plan.work / name
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)

    def _load(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self._plan.work / _LAST
        if not (path / "state.json").is_file():
            return
        self._load_weights(path)
        saved: Any = mx.load(str(path / "optimizer.safetensors"))
        self._optimizer.state = tree_unflatten(list(saved.items()))
        state = read_json(path / "state.json", "checkpoint", BackendError)
        self._step, self._worse = state["step"], state["worse"]
        self._curve = [LossPoint(**point) for point in state["curve"]]

    def _load_weights(self, path: Path) -> None:
        self._model.load_weights(str(path / "weights.safetensors"), strict=False)
        mx.eval(self._model.parameters())


def _optimizer(settings: Settings, steps: int) -> optimizers.Optimizer:
    """AdamW whose learning rates fall to 0 in a line: that of merged tokens' rows, and that of the rest.

    Corrects the bias of the moments as PyTorch's does; without it, first updates are three times as large.
    """
    rows, rest = (
        optimizers.AdamW(optimizers.linear_schedule(rate, 0.0, steps), weight_decay=0.0, bias_correction=True)
        for rate in (settings.rows_rate, settings.learning_rate)
    )
    return optimizers.MultiOptimizer([rows, rest], [lambda name, value: name.endswith(".rows")])


def _in_order(batches: Any, *args: Any, **options: Any) -> Any:
    state = np.random.get_state()
    yield from batches(*args, **options)
    np.random.set_state(state)


def _loss(model: nn.Module, batch: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
    """Loss of the outputs: as mlx-lm's, which also counts one position after the end of a text."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    steps = mx.arange(1, targets.shape[1] + 1)
    mask = mx.logical_and(steps >= lengths[:, :1], steps < lengths[:, 1:])
    losses = nn.losses.cross_entropy(model(inputs), targets).astype(mx.float32) * mask
    count = mask.sum()
    return losses.sum() / count, count


def _layers(model: nn.Module) -> list[LowRank]:
    return [
        LowRank(name, _floats(layer.lora_a.T), _floats(layer.lora_b.T), layer.scale)
        for name, layer in model.named_modules()
        if isinstance(layer, LoRALinear)
    ]


def _rows(model: nn.Module) -> dict[str, Floats]:
    names = {_Embedding: "embedding", _Head: "head"}
    modules = [module for _, module in model.named_modules() if type(module) in names]
    return {names[type(module)]: _floats(module.rows) for module in modules}


def _floats(array: mx.array) -> Floats:
    return np.ascontiguousarray(np.array(array.astype(mx.float32)))


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
