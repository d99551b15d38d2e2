"""lm-evaluation-harness over HTTP gives the log-likelihoods of the model itself."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

PAIRS = [("the cat sat on", " a mat"), ("the dog", " ran to the old red barn"), ("a", " sea")]


@pytest.fixture
def harness(server, tiny):
    return LocalCompletionsAPI(
        model="tiny",
        base_url=f"{server.api}/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(tiny("llama")[0]),
        max_retries=1,
    )


def test_local_completions_scores_as_the_model_does(harness, reference):
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=at)
        for at, pair in enumerate(PAIRS)
    ]
    found = harness.loglikelihood(requests, disable_tqdm=True)
    pairs = []
    for context, continuation in PAIRS:
        prompt = reference.encode(context, raw=True).tolist()
        pairs.append((prompt, reference.encode(context + continuation, raw=True).tolist()[len(prompt) :]))
    expected = list(reference.score_each(pairs))
    assert [value for value, _ in found] == pytest.approx([score.log_prob for score in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [score.is_greedy for score in expected]


def test_local_completions_generates_as_the_model_does(harness, reference):
    arguments = ("the cat sat", {"until": ["zz"], "max_gen_toks": 8, "temperature": 0})
    requests = [Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0)]
    expected = reference.generate("the cat sat", raw=True, max_tokens=8, stop="zz").text
    assert harness.generate_until(requests, disable_tqdm=True) == [expected]
