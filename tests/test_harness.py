"""lm-evaluation-harness on vt, compared with the harness's own model of transformers on small tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from tests.conftest import backend_params
from vt_core import load
from vt_core.errors import BackendError, OptionError, PromptError
from vt_core.harness import VtLM
from vt_core.harness.__main__ import main

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "old", "red", "barn", "by", "sea"]
TASKS = {
    "choices": """
        output_type: multiple_choice
        doc_to_text: "{{text}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{answer}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: byte_perplexity}]
    """,
    "writing": """
        output_type: generate_until
        doc_to_text: "{{text}}"
        doc_to_target: "{{choices[0]}}"
        generation_kwargs: {until: ["ab", "<|im_end|>"], max_gen_toks: 12}
        metric_list: [{metric: exact_match}]
    """,
}
METRICS = {"choices": ["acc", "acc_norm"], "rolling": ["byte_perplexity"], "writing": ["exact_match"]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of three tasks over one file of documents."""
    root = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)

    def text(words):
        return " ".join(rng.choice(WORDS, words))

    documents = [
        {"text": text(5 + 7 * row), "choices": [" a", " b", " sat", " the sea"], "answer": row % 4}
        for row in range(6)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    common = f"""
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {root}/data.jsonl}}, cache_dir: {root}/cache}}
        test_split: test
    """
    for name, particular in TASKS.items():
        lines = (f"task: {name}" + common + particular).splitlines()
        (root / f"{name}.yaml").write_text("\n".join(line.strip() for line in lines))
    return root


def evaluate(lm, tasks, names=tuple(TASKS), **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        lm, tasks=list(names), task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )


def responses(results):
    return {
        name: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for name, samples in results["samples"].items()
    }


@pytest.fixture(scope="module")
def stock(tasks, tiny):
    pytest.importorskip("torch")
    from lm_eval.models.huggingface import HFLM

    return evaluate(HFLM(str(tiny("llama")[0]), device="cpu", dtype="float32", max_length=40), tasks)


@pytest.mark.parametrize("backend", backend_params())
def test_tasks_give_the_results_of_transformers(backend, tasks, tiny, stock):
    options = {"backend": backend, "device": "cpu", "dtype": "float32"}
    ours = evaluate(VtLM(tiny("llama")[1], max_length=40, **options), tasks)
    expected, found = responses(stock), responses(ours)
    for name in ("choices", "rolling"):
        for mine, theirs in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(
                [np.ravel(answer) for answer in mine], [np.ravel(answer) for answer in theirs], rtol=1e-5
            )
    assert found["writing"] == expected["writing"]
    lengths = [len(text) for ((text,),) in found["writing"]]
    assert min(lengths) < 10 < 25 < max(lengths), "some texts stop early, others do not"
    for name, metrics in METRICS.items():
        for metric in metrics:
            assert ours["results"][name][f"{metric},none"] == pytest.approx(
                stock["results"][name][f"{metric},none"], rel=1e-5
            )


@pytest.fixture(scope="module")
def lm(tiny):
    pytest.importorskip("torch")
    return VtLM(load(tiny("llama")[1], backend="torch", device="cpu", dtype="float32"), max_length=64)


def write(lm, *requests):
    instances = [Instance("generate_until", {}, arguments, index) for index, arguments in enumerate(requests)]
    return lm.generate_until(instances, disable_tqdm=True)


def test_sampled_texts_differ_and_are_reproducible(lm):
    request = ("the cat", {"do_sample": True, "top_p": 0.9, "max_gen_toks": 8, "until": "", "num_beams": 1})
    texts = write(lm, request, request, request)
    assert len(set(texts)) == 3
    assert write(lm, request, request) == texts[:2]
    greedy = ("the cat", {"do_sample": False, "temperature": 0.7, "max_gen_toks": 8})
    assert write(lm, greedy) == [lm.model.generate("the cat", raw=True, max_tokens=8).text]


def test_chat_template_is_applied_once(lm):
    history = [{"role": "user", "content": "the cat"}]
    rendered = lm.apply_chat_template(history)
    assert lm.tok_encode(rendered) == lm.model.encode("the cat").tolist()
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    assert not lm.apply_chat_template(history, add_generation_prompt=False).endswith("assistant\n")
    assert "/" not in lm.tokenizer_name


def test_text_without_context_follows_the_prefix_token(lm):
    assert (lm.eot_token_id, lm.prefix_token_id) == (0, 0)
    (answer,) = lm.loglikelihood([Instance("loglikelihood", {}, ("", "the cat"), 0)], disable_tqdm=True)
    score = lm.model.score([0], "the cat")
    assert answer == (score.log_prob, score.is_greedy)
    assert write(lm, ("", {"max_gen_toks": 4})) == [lm.model.generate([0], max_tokens=4).text]
    assert lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0)]) == [0]


def test_texts_that_do_not_fit_are_refused_or_cut_with_a_warning(lm, caplog):
    with pytest.raises(OptionError, match="64 tokens to generate leave no room"):
        write(lm, ("the cat", {"max_gen_toks": 64}))
    with pytest.raises(OptionError, match="unknown generation option 'num_beams'"):
        write(lm, ("the cat", {"num_beams": 4, "max_gen_toks": 4}))
    long = Instance("loglikelihood", {}, ("the", " cat" * 99), 0)
    with pytest.raises(PromptError, match="a continuation of 198 tokens is longer than max_length, 64"):
        lm.loglikelihood([long], disable_tqdm=True)
    write(lm, ("a b " * 99, {"max_gen_toks": 4}))
    assert "cut at its beginning: 60 fit" in caplog.text


@pytest.fixture
def command(monkeypatch, tasks):
    """The command in this process, without the thousands of tasks of the harness."""
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))

    def run(*arguments):
        line = ["run", "--model", "vt", "--include_path", str(tasks), "--output_path", str(tasks), *arguments]
        monkeypatch.setattr(sys, "argv", ["harness", *line])
        main()

    return run


def test_command_runs_a_task(command, tasks, tiny, lm, capsys):
    options = f"path={tiny('llama')[1]},backend=torch,dtype=float32,head=split,max_length=40"
    command("--model_args", options, "--tasks", "choices", "--limit", "3")
    assert "|choices|" in capsys.readouterr().out
    (file,) = tasks.rglob("results_*.json")
    found = json.loads(file.read_text())
    assert found["config"]["model"] == "vt"
    ours = evaluate(VtLM(lm.model, max_length=40), tasks, ["choices"], limit=3)
    assert found["results"]["choices"]["acc,none"] == ours["results"]["choices"]["acc,none"]


def test_command_reports_user_errors_in_one_line(command, tasks, capsys):
    with pytest.raises(SystemExit) as caught:
        command("--model_args", f"path={tasks}", "--tasks", "choices")
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Error: ") and str(tasks) in last


def test_arguments_override_the_defaults_of_the_harness(tiny):
    path = tiny("llama")[1]
    added = {"batch_size": 4, "max_batch_size": None, "device": "cuda:0"}
    made = VtLM.create_from_arg_string(f"path={path},backend=torch,device=cpu,max_gen_toks=7", added)
    assert (made.model.decoder.device, made._max_gen_toks) == ("cpu", 7)
    with pytest.raises(BackendError, match="nowhere"):
        VtLM.create_from_arg_string(f"path={path},backend=torch", added | {"device": "nowhere"})


def test_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "vt_core.harness", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Evaluation Harness" in done.stdout
