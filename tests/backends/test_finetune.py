"""Fine-tuning lowers the loss, and the written directory holds what was trained."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.plain import plain_model
from tests.conftest import backend_params
from tests.stock import LOAD
from vt_core.decode.backend import BACKENDS
from vt_core.enrich.training import Example, Settings, TrainingPlan
from vt_core.errors import OptionError

pytestmark = pytest.mark.slow

#: Outputs that repeat, after prompts that differ.
EXAMPLES = [Example([10 + at, 11 + at % 5, *[40, 50, 60, 70, at % 2 + 80], 0], 2) for at in range(24)]


def finetune_module(backend):
    import importlib

    if backend == "torch":
        pytest.importorskip("trl")
    return importlib.import_module(f"{BACKENDS[backend][0]}.finetune")


def settings(**changes):
    values = {"epochs": 3, "learning_rate": 2e-2, "batch_size": 8, "micro_batch": 4, "rank": 4, "alpha": 4}
    defaults = {"device": "cpu", "dtype": "float32", "rows_learning_rate": 2e-2}
    return Settings(**{**values, **defaults, **changes})


def run(backend, model, work, new_ids=(), examples=EXAMPLES, **changes):
    """(What was trained, all points of the curve, all steps)."""
    points, steps = [], []
    work.mkdir(exist_ok=True)
    plan = TrainingPlan(
        model.path, model.tied, tuple(new_ids), examples[:20], examples[20:], settings(**changes), work
    )
    trained = finetune_module(backend).finetune(plan, steps.append, points.append)
    return trained, points, steps


def loss(backend, path):
    """Mean loss of the outputs of the examples, by the stock framework."""
    model = LOAD[backend](path, "float32")
    losses = []
    for example in EXAMPLES:
        prompt, output = example.ids[: example.prompt], example.ids[example.prompt :]
        logits = model.text_logits(prompt, output).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses += [-log[at, id] for at, id in enumerate(output)]
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("backend", backend_params())
def test_written_weights_have_the_loss_that_training_reports(backend, kind, tiny, tmp_path):
    model = plain_model(tiny(kind)[0])
    new_ids = (40, 60)
    trained, points, steps = run(backend, model, tmp_path / "work", new_ids, patience=0)
    assert steps[-1] == trained.steps == 9 and not trained.stopped_early
    model.write_trained(tmp_path / "out", trained, new_ids)
    evaluated = [point.loss for point in points if point.evaluation]
    assert len(evaluated) == 3 and tuple(points) == tuple(trained.curve)
    held = sum(len(example.ids) - example.prompt for example in EXAMPLES[20:])
    assert held == 24
    before, after = loss(backend, model.path), loss(backend, tmp_path / "out")
    assert after < before - 1
    model_after = LOAD[backend](tmp_path / "out", "float32")
    total = 0.0
    for example in EXAMPLES[20:]:
        prompt, output = example.ids[: example.prompt], example.ids[example.prompt :]
        logits = model_after.text_logits(prompt, output).astype(np.float64)
        log = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        total -= sum(log[at, id] for at, id in enumerate(output))
    assert total / held == pytest.approx(min(evaluated), rel=2e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("backend", backend_params())
def test_only_linear_layers_and_new_rows_change(backend, kind, tiny, tmp_path):
    model = plain_model(tiny(kind)[0])
    trained, _, _ = run(backend, model, tmp_path / "work", (40, 60), epochs=1)
    model.write_trained(tmp_path / "out", trained, (40, 60))
    before, after = load_file(model.path / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name, values in before.items():
        changed = np.flatnonzero((after[name] != values).reshape(len(values), -1).any(axis=1)).tolist()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert changed == [40, 60], name
        elif ".layers." in name and name.endswith("proj.weight"):
            assert changed, name
        else:
            assert not changed, name


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("backend", backend_params())
def test_rows_of_merged_tokens_have_their_own_learning_rate(backend, kind, tiny, tmp_path):
    model = plain_model(tiny(kind)[0])
    before = load_file(model.path / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    changes = {"epochs": 1, "dropout": 0.0, "patience": 0}
    for rate, rows_rate, moved in ((1e-2, 1e-7, False), (1e-7, 1e-2, True)):
        work = tmp_path / f"{rate}"
        trained, _, _ = run(
            backend, model, work, (40, 60), learning_rate=rate, rows_learning_rate=rows_rate, **changes
        )
        difference = np.abs(trained.rows["embedding"] - before[[40, 60]]).max()
        layers = max(np.abs(layer.b).max() for layer in trained.layers)
        assert (difference > 5e-3, layers > 5e-3) == (moved, not moved)


@pytest.mark.parametrize("backend", backend_params())
def test_updates_below_the_precision_of_bfloat16_are_kept(backend, tiny, tmp_path, capsys):
    model = plain_model(tiny("llama")[0])
    before = load_file(model.path / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    changes = {"epochs": 1, "dtype": "bfloat16", "rows_learning_rate": 1e-6, "patience": 0}
    trained, _, _ = run(backend, model, tmp_path / "work", (40, 60), **changes)
    rounded = (before[[40, 60]].view(np.uint32) + 0x7FFF + (before[[40, 60]].view(np.uint32) >> 16 & 1)) >> 16
    start = (rounded << 16).astype(np.uint32).view(np.float32)
    moved = np.abs(trained.rows["embedding"] - start)
    assert 0 < np.median(moved) < 1e-5
    printed = capsys.readouterr()
    assert not printed.out and "train_loss" not in printed.err


@pytest.mark.parametrize("backend", backend_params())
def test_first_update_is_as_large_as_the_learning_rate(backend, tiny, tmp_path):
    model = plain_model(tiny("llama")[0])
    before = load_file(model.path / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    changes = {"epochs": 1, "batch_size": 20, "micro_batch": 20, "rows_learning_rate": 1e-2, "patience": 0}
    trained, _, _ = run(backend, model, tmp_path / "work", (40, 60), **changes)
    assert trained.steps == 1
    moved = np.abs(trained.rows["embedding"] - before[[40, 60]])
    assert np.median(moved) == pytest.approx(1e-2, rel=0.02) and moved.max() < 1.02e-2


@pytest.mark.parametrize("backend", backend_params())
def test_the_adapter_alone_gives_the_same_model_without_new_rows(backend, tiny, tmp_path):
    from vt_core import load

    source, directory = tiny("llama")
    model = plain_model(source)
    trained, _, _ = run(backend, model, tmp_path / "work", epochs=1)
    model.write_trained(tmp_path / "out", trained, ())
    prompt = EXAMPLES[0].ids[:2]
    with load(directory, backend=backend, adapter=trained.adapter, dtype="float32") as adapted:
        found = list(adapted.generate(prompt, max_tokens=6).token_ids)
        eos = adapted.eos_ids
    from tests.stock import GENERATE

    merged = LOAD[backend](tmp_path / "out", "float32")
    assert found == list(GENERATE[backend](merged, prompt, 6, eos)[0])


@pytest.mark.parametrize("backend", backend_params())
def test_all_weights_can_be_trained(backend, tiny, tmp_path):
    model = plain_model(tiny("qwen2")[0])
    trained, _, _ = run(backend, model, tmp_path / "work", (40,), full=True, epochs=1, learning_rate=1e-2)
    assert trained.adapter is None
    model.write_trained(tmp_path / "out", trained, (40,))
    before, after = load_file(model.path / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all((after[name] != values).any() for name, values in before.items() if "proj.weight" in name)
    assert loss(backend, tmp_path / "out") < loss(backend, model.path)


@pytest.mark.parametrize("backend", backend_params())
def test_an_interrupted_run_goes_on_from_its_last_checkpoint(backend, tiny, tmp_path):
    model = plain_model(tiny("llama")[0])
    whole, _, _ = run(backend, model, tmp_path / "whole", (40,), dropout=0.0)
    points = []

    def stop(point):
        points.append(point)
        if point.evaluation and point.step == 6:
            raise KeyboardInterrupt

    work = tmp_path / "work"
    work.mkdir()
    plan = TrainingPlan(model.path, True, (40,), EXAMPLES[:20], EXAMPLES[20:], settings(dropout=0.0), work)
    with pytest.raises(KeyboardInterrupt):
        finetune_module(backend).finetune(plan, lambda step: None, stop)
    steps = []
    resumed = finetune_module(backend).finetune(plan, steps.append, lambda point: None)
    assert steps[0] in (4, 7) and resumed.steps == 9
    assert [point.step for point in resumed.curve] == [point.step for point in whole.curve]
    np.testing.assert_allclose(
        [point.loss for point in resumed.curve], [point.loss for point in whole.curve], rtol=1e-4
    )
    np.testing.assert_allclose(resumed.rows["embedding"], whole.rows["embedding"], atol=1e-4)


@pytest.mark.parametrize("backend", backend_params())
def test_training_stops_early_and_keeps_the_best_weights(backend, tiny, tmp_path):
    model = plain_model(tiny("llama")[0])
    # Nothing to learn for the evaluation split: its outputs are never seen.
    others = [Example([10, 11, 300 + at, 400, 0], 2) for at in range(4)]
    examples = [*EXAMPLES[:20], *others]
    trained, points, _ = run(
        backend, model, tmp_path / "work", examples=examples, epochs=20, patience=2, learning_rate=3e-2
    )
    evaluated = [point.loss for point in points if point.evaluation]
    assert trained.stopped_early and len(evaluated) < 20
    assert min(evaluated) < min(evaluated[-2:])
    model.write_trained(tmp_path / "out", trained, ())
    stock = LOAD[backend](tmp_path / "out", "float32")
    total = 0.0
    for example in others:
        logits = stock.text_logits(example.ids[:2], example.ids[2:]).astype(np.float64)
        log = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        total -= sum(log[at, id] for at, id in enumerate(example.ids[2:]))
    assert total / 12 == pytest.approx(min(evaluated), rel=2e-3)


def test_rows_learn_faster_than_layers_but_not_beyond_their_scale_unless_told_otherwise():
    assert Settings(learning_rate=1e-3).for_rows(1.0).rows_rate == pytest.approx(1e-2)
    assert Settings(learning_rate=1e-3).for_rows(0.02).rows_rate == pytest.approx(2e-3)
    assert Settings(learning_rate=1e-3, rows_learning_rate=5e-3).rows_rate == 5e-3


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scale_of_rows_is_their_root_mean_square(kind, tiny):
    model = plain_model(tiny(kind)[0])
    weights = load_file(model.path / "model.safetensors")
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    rows = [weights[name].astype(np.float64)[[40, 60, 900]] for name in names if name in weights]
    assert len(rows) == (1 if model.tied else 2)
    expected = min(np.sqrt((values**2).mean()) for values in rows)
    assert model.rows_scale((40, 60, 900)) == pytest.approx(expected)


def test_a_batch_must_be_a_multiple_of_the_micro_batch():
    with pytest.raises(OptionError, match="a batch of 10 examples cannot be computed 4 at a time"):
        Settings(batch_size=10, micro_batch=4)
