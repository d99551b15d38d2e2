"""The Python API: arguments, results, streams, and closing. Each backend's arithmetic is tested elsewhere."""

from __future__ import annotations

import gc
import importlib.util
import inspect
import json
import threading
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import backend_params
from vt_core import Generation, Model, Stats, TaskVocabulary, VtError, load
from vt_core.decode.options import request_options
from vt_core.decode.sampling import SamplerSettings
from vt_core.errors import BackendError, OptionError, PromptError, VocabularyError

BACKEND = "torch" if importlib.util.find_spec("torch") else "mlx"
PROMPT = [5, 400, 17]


@pytest.fixture(scope="module")
def directory(tiny):
    return tiny("llama")[1]


@pytest.fixture(scope="module")
def model(directory):
    with load(directory, backend=BACKEND, device="cpu") as loaded:
        yield loaded


@pytest.fixture
def learning(directory, tmp_path, monkeypatch):
    """A model without learned ids that saves them in an empty cache, and the file that it saves them in."""
    monkeypatch.setenv("VT_CACHE", str(tmp_path))
    with load(directory, backend=BACKEND, device="cpu", learn=True) as loaded:
        yield loaded, tmp_path / "learned"


def parameters(function):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def test_generate_and_stream_take_the_options_of_a_request():
    expected = parameters(request_options)
    assert parameters(Model.generate) == parameters(Model.stream) == expected
    settings = {field.name: getattr(SamplerSettings(), field.name) for field in fields(SamplerSettings)}
    settings["logit_bias"] = None
    assert {name: expected[name] for name in settings} == settings


def test_docstrings_describe_every_argument():
    for function in (load, Model.stream):
        described = inspect.getdoc(function).partition("Args:")[2].partition("Raises:")[0]
        for name in parameters(function):
            assert f"\n    {name}: " in described, name


def test_flat_dictionary_has_every_field_once(model):
    result = model.generate(PROMPT, max_tokens=3)
    names = [field.name for kind in (Generation, Stats) for field in fields(kind) if field.name != "stats"]
    assert list(result.to_dict()) == names
    assert json.loads(json.dumps(result.to_dict()))["token_ids"] == list(result.token_ids)


def test_numpy_values_mean_the_same_as_python_values(model):
    expected = model.generate(
        PROMPT, max_tokens=6, temperature=0.5, top_k=40, top_p=0.5, seed=7, logit_bias={9: 1.5}
    )
    found = model.generate(
        np.array(PROMPT, dtype=np.uint16),
        max_tokens=np.int64(6),
        temperature=np.float32(0.5),
        top_k=np.int32(40),
        top_p=np.float64(0.5),
        seed=np.uint64(7),
        raw=np.bool_(False),
        logit_bias={np.int64(9): np.float32(1.5)},
    )
    assert found.token_ids == expected.token_ids
    assert json.dumps(found.to_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 2.5},
        {"max_tokens": "5"},
        {"max_tokens": True},
        {"max_tokens": None},
        {"max_tokens": 0},
        {"temperature": "hot"},
        {"temperature": None},
        {"temperature": float("nan")},
        {"temperature": 10**400},
        {"top_k": 2.0},
        {"top_p": [0.5]},
        {"seed": 1.5},
        {"seed": -1},
        {"logit_bias": [3]},
        {"logit_bias": {"3": 1.0}},
        {"logit_bias": {3: "1"}},
        {"logit_bias": {10**6: 1.0}},
        {"stop": 3},
        {"stop": ["a", 3]},
        {"stop": b"a"},
        {"stop": ""},
        {"system": 3},
        {"raw": "false"},
        {"approximate": 1},
        {"dynamic": None},
        {"template_arguments": ["enable_thinking"]},
        {"template_arguments": {1: 2}},
    ],
    ids=str,
)
def test_wrong_options_raise_before_anything_runs(model, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        model.stream("hello", **options)


@pytest.mark.parametrize(
    "prompt",
    [
        *(None, 5, 2.5, b"bytes", "", [], np.array(3), np.array([1.0, 2.0])),
        *([1, 2.5], [1, True], ["a"], [[1, 2]], [None], [10**30], [-1], [2280]),
        {"role": "user", "content": "hi"},
        [{"role": "user", "content": "hi"}, 3],
    ],
    ids=repr,
)
def test_wrong_prompts_raise_before_anything_runs(model, prompt):
    with pytest.raises(PromptError):
        model.stream(prompt)
    with pytest.raises(PromptError):
        list(model.score_each([(prompt, [1])]))


@pytest.mark.parametrize("continuation", [None, 5, [1.5], b"ab", [10**30], []], ids=repr)
def test_wrong_continuations_raise(model, continuation):
    with pytest.raises(PromptError):
        model.score(PROMPT, continuation)


@pytest.mark.parametrize(
    "pairs", [None, 3, [3], [[1, 2, 3]], ["ab"], [([1],)], [([1], 2)], [([1], [2], [3])]], ids=repr
)
def test_wrong_pairs_raise(model, pairs):
    with pytest.raises(PromptError):
        list(model.score_each(pairs))


@pytest.mark.parametrize("ids", [None, 3, "ab", [1.5], [-1], np.array([0.5])], ids=repr)
def test_wrong_static_rows_raise(model, ids):
    with pytest.raises(PromptError):
        model.set_static(ids)


@pytest.mark.parametrize("task", [None, "math.vt.json", [1, 2]], ids=repr)
def test_wrong_tasks_raise(model, task):
    with pytest.raises(VocabularyError, match="is not a TaskVocabulary"):
        model.set_task(task)


@pytest.mark.parametrize(
    "options",
    [
        {"path": 5},
        {"path": b"bytes"},
        {"path": "nul\0byte"},
        {"backend": "jax"},
        {"backend": 3},
        {"task": 3},
        {"task": [None]},
        {"task": "no-such.vt.json"},
        {"head": "huge"},
        {"head": ["full"]},
        {"store": "tape"},
        {"device": 0},
        {"dtype": "int3"},
        {"tile_bytes": 0},
        {"tile_bytes": 1.5},
        {"quantize": "int3"},
        {"adapter": 3},
        {"revision": 3},
        {"learn": "no"},
        {"progress": None},
    ],
    ids=str,
)
def test_load_refuses_wrong_options_before_it_resolves_the_model(options, monkeypatch):
    monkeypatch.setattr("converters.cache.resolve", lambda *_, **__: pytest.fail("resolved"))
    with pytest.raises(VtError):
        load(**{"path": "owner/model", "backend": BACKEND, **options})


@pytest.mark.parametrize("content", ["[1, 2", "7", '{"format": "vt-task/1"}', '["a"]', '{"a": -1}', "[true]"])
def test_load_refuses_a_damaged_task_before_it_resolves_the_model(content, monkeypatch, tmp_path):
    task = tmp_path / "task.vt.json"
    task.write_text(content)
    monkeypatch.setattr("converters.cache.resolve", lambda *_, **__: pytest.fail("resolved"))
    with pytest.raises(VocabularyError, match=r"task.vt.json"):
        load("owner/model", backend=BACKEND, task=task)


@pytest.mark.parametrize("options", [{"device": "abacus"}, {"quantize": "int8", "backend": "mlx"}], ids=str)
def test_load_refuses_what_the_backend_cannot_do_before_it_converts(tiny, options, tmp_path, monkeypatch):
    pytest.importorskip("mlx" if "backend" in options else BACKEND)
    monkeypatch.setenv("VT_CACHE", str(tmp_path))
    with pytest.raises(BackendError):
        load(tiny("llama")[0], **{"backend": BACKEND, **options})
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_of_learned_ids_fails_before_the_weights_are_read(directory, tmp_path, monkeypatch):
    model = load(directory, backend=BACKEND, device="cpu")
    ids, digest = np.arange(3), model.directory.manifest.tokenizer_digest
    task = tmp_path / "math.vt.json"
    TaskVocabulary("math", digest, model.rows, ids, np.ones(3, np.int64), examples=1).save(task)
    (tmp_path / "math.learned.json").write_text("{")
    monkeypatch.setattr("vt_core.decode.backend.backend", lambda name: pytest.fail("imported"))
    with pytest.raises(VocabularyError, match=r"math\.learned\.json"):
        load(directory, backend=BACKEND, device="cpu", task=task, learn=True)


def test_stop_at_the_last_chunk_frees_the_model_and_saves_learned_ids(learning):
    model, folder = learning
    model.set_static(np.array([0, 1, 2]))
    chunks = model.stream(PROMPT, max_tokens=8)
    for chunk in chunks:
        if chunk.result is not None:
            break
    assert chunk.result.stats.rescued > 0
    (file,) = folder.glob("*.json")
    assert json.loads(file.read_text())["ids"]
    assert model.generate(PROMPT, max_tokens=2).stats.generated_tokens == 2


def test_unsaved_learned_ids_are_an_error_after_the_last_chunk(learning):
    model, folder = learning
    model.set_static(np.array([0, 1, 2]))
    folder.write_text("in the way of the folder")
    chunks = []
    with pytest.raises(VtError, match="cannot be written"):
        for chunk in model.stream(PROMPT, max_tokens=8):
            chunks.append(chunk)
    assert chunks[-1].result.stats.rescued > 0


def test_closed_stream_leaves_another_one_alone(model):
    expected = model.generate(PROMPT, max_tokens=8).token_ids
    first, second = model.stream(PROMPT, max_tokens=8), model.stream(PROMPT, max_tokens=8)
    ids = [next(first).token_id]
    next(second)
    second.close()
    assert (*ids, *(chunk.token_id for chunk in first if chunk.token_id is not None)) == expected


def test_sampled_requests_teach_greedy_ones_nothing_about_drafts(model):
    model.set_drafts()
    model.generate(PROMPT, max_tokens=8, temperature=0.9, seed=1, draft="ngram")
    options = [request_options(draft="ngram", temperature=temperature) for temperature in (0.0, 0.5)]
    greedy, sampled = [model._request(made, None).drafter.recent for made in options]
    assert greedy == 0.5 != sampled


def test_rows_are_not_replaced_during_a_request(model):
    stream = model.stream(PROMPT, max_tokens=8)
    next(stream)
    for change in (lambda: model.set_static([1]), model.forget_learned, model.set_task):
        with pytest.raises(BackendError, match="in the middle of a request"):
            change()
    stream.close()
    model.forget_learned()


def test_closed_model_refuses_every_use(directory):
    with load(directory, backend=BACKEND, device="cpu") as model:
        open_stream = model.stream(PROMPT, max_tokens=50)
        next(open_stream)
    model.close()
    for use in (
        lambda: list(open_stream),
        lambda: model.generate(PROMPT),
        lambda: list(model.score_each([(PROMPT, [1])])),
        lambda: model.set_task(),
        lambda: model.forget_learned(),
    ):
        with pytest.raises(BackendError, match="this model is closed"):
            use()


def test_close_unmaps_the_vocabulary_tables(directory, tmp_path):
    import shutil

    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    own = shutil.copytree(directory, tmp_path / "own")
    model = load(own, backend=BACKEND, device="cpu")
    model.generate(PROMPT, max_tokens=2)
    assert str(own / "vocab.lmdb") in maps.read_text()
    model.close()
    assert str(own / "vocab.lmdb") not in maps.read_text()


@pytest.mark.parametrize("backend", backend_params())
def test_close_frees_the_arrays(directory, backend):
    gc.collect()
    before = array_bytes(backend)
    model = load(directory, backend=backend, device="cpu")
    model.generate(PROMPT, max_tokens=2)
    assert array_bytes(backend) - before > 100_000
    model.close()
    assert array_bytes(backend) - before < 1000


def array_bytes(backend):
    """Bytes of the framework's arrays that are alive."""
    if backend == "mlx":
        import mlx.core

        return mlx.core.get_active_memory()
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance() of deprecated proxies warns
        return sum(item.nbytes for item in gc.get_objects() if isinstance(item, torch.Tensor))


def test_close_ends_the_requests_of_other_threads(directory):
    model = load(directory, backend=BACKEND, device="cpu")
    inside, go_on = threading.Event(), threading.Event()
    poll = model.decoder.poll

    def slow(steps):
        inside.set()
        go_on.wait(30)
        return poll(steps)

    model.decoder.poll = slow
    failures = []

    def request():
        try:
            model.generate(PROMPT, max_tokens=300)
        except BackendError as error:
            failures.append(str(error))

    thread = threading.Thread(target=request)
    thread.start()
    inside.wait(30)
    threading.Timer(0.1, go_on.set).start()
    model.close()
    thread.join(30)
    assert failures == ["this model is closed; load it again"]


def test_tokens_of_a_draft_can_be_given(model):
    repeating = [5, 6, 7, 8] * 6
    free = model.generate(repeating, max_tokens=12, draft="none")
    fixed = model.generate(repeating, max_tokens=12, draft_tokens=2)
    assert fixed.token_ids == free.token_ids
    assert fixed.stats.drafted > 0 and max(length for length, _, _ in fixed.stats.draft_lengths) <= 2
    for given, text in ((0, "draft_tokens is 0, but it must be between 1 and 16"), (17, "is 17")):
        with pytest.raises(OptionError, match=text):
            model.generate(repeating, draft_tokens=given)
    with pytest.raises(OptionError, match="how many tokens to draft, but draft is none"):
        model.generate(repeating, draft_tokens=2, draft="none")
