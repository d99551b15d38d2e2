"""Every endpoint and field, with OpenAI's client; texts are compared with the model's own."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "the cat sat"}]
LONG = [{"role": "user", "content": "a mat"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        yield client


def asynchronous(server):
    return openai.AsyncOpenAI(base_url=server.api, api_key="none", max_retries=0)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "vt"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_health(server):
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


# Chat completions.


def chat(client, **options):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "max_tokens": 8, **options}
    )


def test_chat_gives_the_text_of_the_model(client, reference):
    expected = reference.generate(MESSAGES, max_tokens=8)
    found = chat(client)
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == "length" and choice.logprobs is None
    assert found.object == "chat.completion" and found.model == "tiny"
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.stats.prompt_tokens, 8)
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert found.model_extra["vt"]["exact"] is True


def test_chat_stream_gives_the_same_text(client, reference):
    expected = reference.generate(MESSAGES, max_tokens=8).text
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_without_usage_has_none(client):
    chunks = list(chat(client, stream=True))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


def test_async_client_streams_and_waits(server, reference):
    expected = reference.generate(MESSAGES, max_tokens=8).text

    async def both():
        async with asynchronous(server) as client:
            whole = chat(client)
            stream = await chat(client, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return text, (await whole).choices[0].message.content

    assert asyncio.run(both()) == (expected, expected)


SAMPLING = [
    {"temperature": 0.9, "seed": 7},
    {"temperature": 0.9, "seed": 7, "top_p": 0.5},
    {"temperature": 1.5, "seed": 3, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {"9": 50.0}},
    {"temperature": 2.0, "seed": 11, "extra_body": {"top_k": 5}},
    {"temperature": 2.0, "seed": 11, "extra_body": {"min_p": 0.4}},
    {"extra_body": {"repetition_penalty": 1.8}},
    {"extra_body": {"vt": {"approximate": True}}},
    {"extra_body": {"vt": {"draft": "ngram", "draft_tokens": 2, "batch": "alone"}}},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_sampling_fields_reach_the_model(client, reference, options):
    own = {name: value for name, value in options.items() if name != "extra_body"}
    extra = options.get("extra_body", {})
    own |= {name: value for name, value in extra.items() if name != "vt"} | extra.get("vt", {})
    if "logit_bias" in own:
        own["logit_bias"] = {9: 50.0}
    expected = reference.generate(MESSAGES, max_tokens=8, **own)
    found = chat(client, **options)
    assert found.choices[0].message.content == expected.text
    assert found.model_extra["vt"]["exact"] is expected.exact


def test_n_answers_have_consecutive_seeds(client, reference):
    found = chat(client, n=3, temperature=1.2, seed=5)
    expected = [reference.generate(MESSAGES, max_tokens=8, temperature=1.2, seed=5 + at) for at in range(3)]
    assert [choice.message.content for choice in found.choices] == [each.text for each in expected]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected[0].stats.prompt_tokens, 24)


def test_n_answers_stream(client, reference):
    texts = ["", ""]
    for chunk in chat(client, n=2, temperature=1.2, seed=5, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    expected = [
        reference.generate(MESSAGES, max_tokens=8, temperature=1.2, seed=5 + at).text for at in range(2)
    ]
    assert texts == expected


def test_draws_without_a_seed_differ_and_tell_their_seed(client, reference):
    found = [chat(client, temperature=1.5, max_tokens=12) for _ in range(2)]
    texts = [each.choices[0].message.content for each in found]
    assert texts[0] != texts[1]
    seed = found[0].model_extra["vt"]["seed"]
    assert reference.generate(MESSAGES, max_tokens=12, temperature=1.5, seed=seed).text == texts[0]


def test_stop_ends_the_answer(client, reference):
    whole = reference.generate(MESSAGES, max_tokens=8).text
    found = chat(client, stop=[whole[3:5], "zzzz"])
    assert found.choices[0].message.content == whole[: whole.index(whole[3:5])]
    assert found.choices[0].finish_reason == "stop"
    assert chat(client, stop=whole[3:5]).choices[0].finish_reason == "stop"


def test_max_completion_tokens(client):
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=3)
    assert found.usage.completion_tokens == 3


def test_answer_without_a_limit_ends_with_the_context(client, reference):
    found = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert found.usage.completion_tokens <= 1024
    assert found.usage.total_tokens <= reference.context


def test_messages_may_be_parts_and_have_every_role(client, reference):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
        {"role": "assistant", "content": "sat", "refusal": None},
        {"role": "user", "name": "ann", "content": "on"},
    ]
    expected = reference.generate(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": "sat"},
            {"role": "user", "content": "on"},
        ],
        max_tokens=8,
    )
    assert chat(client, messages=messages).choices[0].message.content == expected.text


def test_chat_logprobs_are_those_of_the_full_head(client, reference):
    generated = reference.generate(MESSAGES, max_tokens=8)
    ids = reference.encode(MESSAGES).tolist()
    (score,) = reference.score_each([(ids, list(generated.token_ids))], top=3)
    whole = chat(client, logprobs=True, top_logprobs=3)
    stream = list(chat(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [chunk.choices[0].logprobs.content for chunk in stream if chunk.choices[0].logprobs]
    for content in (whole.choices[0].logprobs.content, *streamed):
        assert [each.logprob for each in content] == list(score.log_probs)
        assert b"".join(bytes(each.bytes) for each in content) == generated.text.encode()
        tops = [[other.logprob for other in each.top_logprobs] for each in content]
        assert tops == [[value for _, value in each] for each in score.top]
    assert len(streamed) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == generated.text
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_harmless_fields_change_nothing(client, reference):
    found = chat(
        client,
        user="ann",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        modalities=["text"],
        parallel_tool_calls=True,
        verbosity="medium",
        response_format={"type": "text"},
        extra_body={"vt": {"draft": "auto"}, "top_logprobs": None},
    )
    assert found.choices[0].message.content == reference.generate(MESSAGES, max_tokens=8).text


# Refusals.

REFUSED = {
    "messages": [[], "hi", [3], [{"role": "user"}], [{"role": "king", "content": "x"}], None],
    "messages[0].content[0].type": [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    ],
    "messages[0].colour": [[{"role": "user", "content": "x", "colour": "red"}]],
    "temperature": [-1, "hot", True, 1e7],
    "top_p": [2, 0],
    "top_k": [-1, 0.5],
    "min_p": [1.5],
    "max_tokens": [0, -3, 1.5, "8"],
    "n": [0, 1000],
    "seed": [1.5, "7"],
    "stop": [3, [""], ["a", 4]],
    "logit_bias": [[1], {"x": 1}, {"9": 101}],
    "logit_bias.9": [{"9": "a"}],
    "logprobs": [3],
    "top_logprobs": [2, 99],
    "stream": ["yes"],
    "stream_options.other": [{"other": True}],
    "tools": [[{"type": "function", "function": {"name": "f"}}], "all"],
    "tools[0].type": [[{"type": "web_search"}]],
    "tools[0].function.name": [[{"type": "function", "function": {"name": "a b"}}]],
    "tools[0].function.strict": [[{"type": "function", "function": {"name": "a", "strict": True}}]],
    "tool_choice": ["auto", "always"],
    "reasoning_effort": ["low", "huge"],
    "response_format.type": [{"type": "xml"}],
    "response_format.json_schema": [{"type": "json_schema"}],
    "modalities": [["text", "audio"]],
    "verbosity": ["low"],
    "functions": [[{"name": "f"}]],
    "function_call": ["auto"],
    "web_search_options": [{}],
    "chat_template_kwargs.messages": [{"messages": []}],
    "vt.speed": [{"speed": 3}],
    "vt.draft": [{"draft": "psychic"}],
    "vt.draft_tokens": [{"draft_tokens": 0}, {"draft_tokens": 17}, {"draft_tokens": 1.5}],
    "vt.batch": [{"batch": 4}],
    "vt.approximate": [{"approximate": 1}],
    "vt.task": [{"task": "math"}],
    "best_of": [2],
    "top_a": [0.1],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in REFUSED for value in REFUSED[path]])
def test_wrong_fields_are_refused_by_name(server, path, value):
    name = path.partition(".")[0].partition("[")[0]
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, name: value}
    reply = httpx.post(f"{server.api}/chat/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(path) and error["message"].startswith(path.partition("[")[0])


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_not_found(client, stream):
    with pytest.raises(openai.NotFoundError, match="this server has tiny") as caught:
        chat(client, model="gpt-4", stream=stream)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompts_are_refused(client, reference, stream):
    with pytest.raises(openai.BadRequestError, match="tokens") as caught:
        chat(client, max_tokens=reference.context, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.BadRequestError, match="tokens") as caught:
        chat(client, messages=[{"role": "user", "content": "cat " * reference.context}], stream=stream)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"messages": NaN}', 400),
        (b'{"n": 1, "n": 2}', 400),
        (b"\xff\xfe", 400),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b" " * (5 << 20), 413),
    ],
    ids=range(9),
)
def test_bodies_that_are_no_request_are_refused(server, content, status):
    reply = httpx.post(f"{server.api}/chat/completions", content=content)
    assert reply.status_code == status
    assert reply.json()["error"]["message"] and "Traceback" not in reply.text


def test_unknown_addresses_and_methods(server):
    assert httpx.get(f"{server.api}/nothing").json()["error"]["code"] == "not_found"
    reply = httpx.get(f"{server.api}/chat/completions")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")


# Completions.


def complete(client, prompt="the cat sat", **options):
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 6, **options})


def test_completion_gives_the_text_of_the_model(client, reference):
    expected = reference.generate("the cat sat", raw=True, max_tokens=6)
    ids = reference.encode("the cat sat", raw=True).tolist()
    for prompt in ("the cat sat", ["the cat sat"], ids, [ids]):
        found = complete(client, prompt)
        assert [choice.text for choice in found.choices] == [expected.text]
        assert found.choices[0].finish_reason == "length"
        assert found.usage.total_tokens == len(ids) + 6


def test_completion_has_sixteen_tokens_where_the_request_does_not_say(client):
    found = client.completions.create(model="tiny", prompt="the cat")
    assert found.usage.completion_tokens == 16


def test_completions_of_several_prompts_are_in_order(client, reference):
    found = complete(client, ["the cat", "a mat"], n=2, temperature=1.0, seed=3)
    expected = [
        reference.generate(prompt, raw=True, max_tokens=6, temperature=1.0, seed=seed).text
        for prompt in ("the cat", "a mat")
        for seed in (3, 4)
    ]
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]


def test_completion_stream(client, reference):
    expected = [reference.generate(prompt, raw=True, max_tokens=6).text for prompt in ("the cat", "a mat")]
    texts, reasons = ["", ""], [None, None]
    for chunk in complete(client, ["the cat", "a mat"], stream=True, echo=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == ["the cat" + expected[0], "a mat" + expected[1]]
    assert reasons == ["length", "length"]
    last = list(complete(client, stream=True, stream_options={"include_usage": True}))[-1]
    assert last.usage.completion_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt(client, reference, stream):
    ids = reference.encode("the cat sat on a mat", raw=True).tolist()
    (score,) = reference.score_each([(ids[:1], ids[1:])], top=2)
    found = complete(client, "the cat sat on a mat", max_tokens=0, echo=True, logprobs=2, stream=stream)
    (choice, *_) = next(iter(found)).choices if stream else found.choices
    assert choice.text == "the cat sat on a mat"
    assert choice.logprobs.token_logprobs == [None, *score.log_probs]
    assert "".join(choice.logprobs.tokens) == "the cat sat on a mat"
    assert [
        choice.text[at:][: len(token)]
        for at, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
    ] == choice.logprobs.tokens
    best = [max(top.values()) for top in choice.logprobs.top_logprobs[1:]]
    assert best == [each[0][1] for each in score.top]


def test_completion_logprobs_follow_the_answer(client, reference):
    generated = reference.generate("the cat", raw=True, max_tokens=6)
    ids = reference.encode("the cat", raw=True).tolist()
    (score,) = reference.score_each([(ids, list(generated.token_ids))])
    (choice,) = complete(client, "the cat", logprobs=0).choices
    assert choice.logprobs.token_logprobs == list(score.log_probs)
    assert choice.logprobs.top_logprobs is None
    (choice,) = complete(client, "the cat", logprobs=1, echo=True).choices
    assert choice.logprobs.token_logprobs[-6:] == pytest.approx(list(score.log_probs), abs=1e-4)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": [[1.5]]}),
        ("prompt", {"prompt": {"a": 1}}),
        ("max_tokens", {"max_tokens": 0}),
        ("suffix", {"suffix": "x"}),
        ("best_of", {"best_of": 3}),
        ("logprobs", {"logprobs": 99}),
        ("logprobs", {"logprobs": True}),
        (None, {"prompt": [10**6]}),
    ],
    ids=str,
)
def test_wrong_fields_of_completions_are_refused(server, path, options):
    reply = httpx.post(f"{server.api}/completions", json={"prompt": "the cat", **options})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert path is None or error["param"].startswith(path)


# Metrics and tasks.


def test_metrics_count(server, client):
    def value(name):
        text = httpx.get(f"{server.url}/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    names = ("vt_generated_tokens_total", "vt_ttft_seconds_count", "vt_verifications_total")
    before = [value(name) for name in names]
    chat(client)
    after = [value(name) for name in names]
    assert after[0] - before[0] == 8 and after[1] - before[1] == 1 and after[2] > before[2]
    assert value("vt_memory_bytes") > 1e6
    assert value("vt_running_requests") == 0


def test_error_event_in_a_stream(server, client, monkeypatch):
    model = server.models["tiny"]

    def broken(*args, **options):
        yield from ()
        raise RuntimeError("secret path /etc")

    monkeypatch.setattr(model, "run", broken)
    with pytest.raises(openai.APIError) as caught:
        list(chat(client, stream=True))
    assert "its log says why" in caught.value.message and "secret" not in str(caught.value.body)
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert "secret" not in json.dumps(caught.value.body)
