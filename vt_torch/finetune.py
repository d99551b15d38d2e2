"""Fine-tuning with PEFT and TRL: :class:`vt_core.enrich.training.FinetuneBackend` for PyTorch."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.utils import logging

from vt_core.enrich.training import Example, Floats, LossPoint, Trained, TrainingPlan
from vt_core.errors import BackendError
from vt_core.files.adapters import LowRank
from vt_torch.device import pick_device, pick_dtype

try:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise BackendError(
        f"fine-tuning with PyTorch needs peft and trl ({error}); install them with: "
        "pip install 'vt[finetune]'"
    ) from error

_ADAPTER = "default"  #: PEFT's name of the only adapter
_ROWS = "trainable_tokens_delta"  #: part of PEFT's name of the rows of merged tokens
_IGNORED = -100  #: label of positions without a loss


def finetune(
    plan: TrainingPlan, on_step: Callable[[int], object], on_point: Callable[[LossPoint], object]
) -> Trained:
    """See :meth:`vt_core.enrich.training.FinetuneBackend.finetune`."""
    device = pick_device(plan.settings.device)
    with _quiet():
        return _finetune(plan, device, on_step, on_point)


def _finetune(
    plan: TrainingPlan,
    device: torch.device,
    on_step: Callable[[int], object],
    on_point: Callable[[LossPoint], object],
) -> Trained:
    set_seed(plan.settings.seed)
    model = _model(plan, device)
    listener = _Listener(on_step, on_point)
    trainer = _Trainer(
        rows_rate=plan.settings.rows_rate,
        model=model,
        args=_arguments(plan, device),
        train_dataset=_dataset(plan.train),
        eval_dataset=_dataset(plan.evaluation) if plan.evaluation else None,
        processing_class=AutoTokenizer.from_pretrained(plan.model),
        callbacks=[listener, *_early_stopping(plan)],
    )
    # They print to standard output.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(plan.work))
    steps = trainer.state.global_step
    stopped = steps < trainer.state.max_steps
    curve = tuple(listener.curve(trainer.state.log_history))
    if plan.settings.full:
        model.save_pretrained(plan.work / "weights")
        return Trained(None, weights=plan.work / "weights", curve=curve, steps=steps, stopped_early=stopped)
    model.save_pretrained(plan.work / "adapter")
    return Trained(
        plan.work / "adapter",
        layers=_layers(model),
        rows=_rows(model, plan),
        curve=curve,
        steps=steps,
        stopped_early=stopped,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars, its remarks, and its warnings about names that TRL still uses."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _model(plan: TrainingPlan, device: torch.device) -> Any:
    """The model with the parameters to train."""
    # All weights are trained in float32, for updates are often smaller than bfloat16 can add.
    name = plan.settings.dtype or ("float32" if plan.settings.full else None)
    dtype = pick_dtype(name, "bfloat16", device)
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=dtype)
    if plan.settings.full:
        return model
    rows: dict[str, list[int]] = {}
    if plan.new_ids:
        tables = [model.get_input_embeddings()]
        if not plan.tied:
            tables.append(model.get_output_embeddings())
        names = {id(module): name for name, module in model.named_modules()}
        rows = {names[id(table)].rpartition(".")[2]: list(plan.new_ids) for table in tables}
    config = LoraConfig(
        r=plan.settings.rank,
        lora_alpha=plan.settings.alpha,
        lora_dropout=plan.settings.dropout,
        target_modules="all-linear",
        trainable_token_indices=rows or None,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer.get_base_layer(), nn.Linear):
            raise BackendError(
                f"{name} is a {type(layer.get_base_layer()).__name__}, whose adapter vt cannot merge; train "
                "all weights with --full"
            )
    return adapted


def _arguments(plan: TrainingPlan, device: torch.device) -> SFTConfig:
    settings = plan.settings
    segment = settings.segment(len(plan.train))
    evaluates = bool(plan.evaluation)
    return SFTConfig(
        output_dir=str(plan.work / "checkpoints"),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch,
        gradient_checkpointing=False,
        max_length=None,
        seed=settings.seed,
        logging_strategy="steps",
        logging_steps=max(1, min(10, segment)),
        eval_strategy="steps" if evaluates else "no",
        eval_steps=segment,
        save_strategy="steps",
        save_steps=segment,
        save_total_limit=2,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False,
        prediction_loss_only=True,
        bf16=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        train_sampling_strategy="group_by_length",
        report_to="none",
        disable_tqdm=True,
    )


class _Trainer(SFTTrainer):
    """TRL's trainer with the loss of the outputs only, and a learning rate for the rows of merged tokens.

    TRL's own loss reads the head's weight and so misses rows that PEFT trains beside it, and on a CPU it
    multiplies the positions of prompts with the head as well.
    """

    def __init__(self, *, rows_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self._rows_rate = rows_rate

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        rows = {id(value) for name, value in self.model.named_parameters() if _ROWS in name}
        for group in list(optimizer.param_groups):
            own = [value for value in group["params"] if id(value) in rows]
            if own and group["lr"] != self._rows_rate:
                group["params"] = [value for value in group["params"] if id(value) not in rows]
                optimizer.add_param_group({**group, "params": own, "lr": self._rows_rate})
        return optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")[:, 1:]
        wanted = (labels != _IGNORED).any(dim=0).nonzero().flatten()
        labels = labels[:, wanted]
        logits = model(**inputs, use_cache=False, logits_to_keep=wanted).logits
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED, reduction="sum"
        )
        loss = total / ((labels != _IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss


class _Listener(TrainerCallback):
    """Reports updates and losses."""

    def __init__(self, on_step: Callable[[int], object], on_point: Callable[[LossPoint], object]) -> None:
        self._on_step, self._on_point = on_step, on_point

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for point in self.curve([{**(logs or {}), "step": state.global_step}]):
            self._on_point(point)

    @staticmethod
    def curve(history: Any) -> list[LossPoint]:
        """The points of the trainer's log; those before a resumed run's start are in it too."""
        points = []
        for entry in history:
            for name, evaluation in (("loss", False), ("eval_loss", True)):
                if name in entry and math.isfinite(entry[name]):
                    points.append(LossPoint(int(entry["step"]), float(entry[name]), evaluation))
        return points


def _early_stopping(plan: TrainingPlan) -> list[Any]:
    patience = plan.settings.patience
    return [EarlyStoppingCallback(patience)] if patience and plan.evaluation else []


def _dataset(examples: Any) -> Any:
    def labels(example: Example) -> list[int]:
        return [_IGNORED] * example.prompt + example.ids[example.prompt :]

    return Dataset.from_dict(
        {
            "input_ids": [example.ids for example in examples],
            "labels": [labels(example) for example in examples],
        }
    )


def _last_checkpoint(work: Path) -> str | None:
    """The last whole checkpoint of an interrupted run. The trainer writes its state last."""
    found = sorted(work.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in [path for path in found if not (path / "trainer_state.json").is_file()]:
        shutil.rmtree(path)
        found.remove(path)
    return str(found[-1]) if found else None


def _layers(model: PeftModel) -> list[LowRank]:
    layers = []
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and _ADAPTER in layer.lora_A:
            a, b = _floats(layer.lora_A[_ADAPTER].weight), _floats(layer.lora_B[_ADAPTER].weight)
            layers.append(LowRank(name.removeprefix("base_model.model."), a, b, layer.scaling[_ADAPTER]))
    return layers


def _rows(model: PeftModel, plan: TrainingPlan) -> dict[str, Floats]:
    if not plan.new_ids:
        return {}
    tables = {"embedding": model.get_input_embeddings()}
    if not plan.tied:
        tables["head"] = model.get_output_embeddings()
    return {name: _floats(getattr(table.token_adapter, _ROWS)[_ADAPTER]) for name, table in tables.items()}


def _floats(tensor: torch.Tensor) -> Floats:
    return tensor.detach().float().cpu().numpy()
