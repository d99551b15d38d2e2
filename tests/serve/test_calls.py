"""Tool calls and reasoning in answers, however the text is cut into pieces."""

from __future__ import annotations

import pytest

from vt_core.serve.calls import Call, NotACall, gemma_calls, json_calls, python_calls, read_calls
from vt_core.serve.markup import FORMATS, Markup, PartReader, Reasoning, Text

WEATHER = Call("weather", {"city": "Turin", "days": 2})
TIME = Call("time", {"zone": "CET"})

HERMES, MISTRAL, LFM, GEMMA_3, GEMMA_4, PHI, GRANITE, LLAMA = (
    next(each for each in FORMATS if all(sign in each.signs for sign in signs))
    for signs in (
        ["<tool_call>"],
        ["[TOOL_CALLS]"],
        ["<|tool_call_start|>"],
        ["<start_function_call>"],
        ["<|tool_call>"],
        ["<|tool_call|>", "<|/tool_call|>"],
        ["<|tool_call|>"],
        ["ipython"],
    )
)
GRANITE = next(each for each in FORMATS if each.signs == ("<|tool_call|>",))

#: Format, answer, and its parts.
ANSWERS = {
    "hermes": (
        HERMES,
        "Let me see.\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Turin", "days": 2}}\n</tool_call>',
        [Text("Let me see."), WEATHER],
    ),
    "hermes, two": (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": {"city": "Turin", "days": 2}}</tool_call>\n'
        '<tool_call>{"name": "time", "arguments": {"zone": "CET"}}</tool_call>\n',
        [WEATHER, TIME],
    ),
    "hermes, end missing": (
        HERMES,
        '<tool_call>\n{"name": "time", "arguments": {"zone": "CET"}}',
        [TIME],
    ),
    "list": (
        HERMES,
        '<tool_call>[{"name": "weather", "arguments": {"city": "Turin", "days": 2}}, '
        '{"name": "time", "arguments": {"zone": "CET"}}]</tool_call>',
        [WEATHER, TIME],
    ),
    "qwen coder": (
        HERMES,
        "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nTurin\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        [Text("I look."), WEATHER],
    ),
    "mistral": (
        MISTRAL,
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Turin", "days": 2}}]',
        [WEATHER],
    ),
    "mistral, newer": (
        MISTRAL,
        '[TOOL_CALLS]weather[ARGS]{"city": "Turin", "days": 2}[TOOL_CALLS]time[ARGS]{"zone": "CET"}',
        [WEATHER, TIME],
    ),
    "lfm2": (
        LFM,
        "<|tool_call_start|>[weather(city='Turin', days=2), time(zone=\"CET\")]<|tool_call_end|>Checking.",
        [WEATHER, TIME, Text("Checking.")],
    ),
    "gemma 3": (
        GEMMA_3,
        "<start_function_call>call:weather{city:<escape>Turin<escape>,days:2}<end_function_call>",
        [WEATHER],
    ),
    "gemma 4": (
        GEMMA_4,
        '<|tool_call>call:weather{city:<|"|>Turin<|"|>,days:2}<tool_call|>',
        [WEATHER],
    ),
    "phi": (
        PHI,
        '<|tool_call|>[{"name": "time", "arguments": {"zone": "CET"}}]<|/tool_call|>',
        [TIME],
    ),
    "granite": (GRANITE, '<|tool_call|>[{"name": "time", "arguments": {"zone": "CET"}}]', [TIME]),
    "llama": (LLAMA, '{"name": "weather", "parameters": {"city": "Turin", "days": 2}}', [WEATHER]),
    "llama, tag": (
        LLAMA,
        '<|python_tag|>{"name": "time", "parameters": {"zone": "CET"}}; '
        '{"name": "weather", "parameters": {"city": "Turin", "days": 2}}',
        [TIME, WEATHER],
    ),
    "llama, text": (LLAMA, "The set {1, 2} is small.", [Text("The set {1, 2} is small.")]),
    "llama, json that is no call": (LLAMA, '{"answer": 42}\n', [Text('{"answer": 42}\n')]),
    "unknown tool": (
        HERMES,
        'a <tool_call>{"name": "rm", "arguments": {}}</tool_call> b',
        [Text('a <tool_call>{"name": "rm", "arguments": {}}</tool_call> b')],
    ),
    "no JSON": (HERMES, "<tool_call>{oops</tool_call>", [Text("<tool_call>{oops</tool_call>")]),
    "cut short": (HERMES, '<tool_call>{"name": "ti', [Text('<tool_call>{"name": "ti')]),
    "marker begins only": (HERMES, "a <tool_cal", [Text("a <tool_cal")]),
    "plain": (HERMES, "  Hello,\n world \n", [Text("  Hello,\n world \n")]),
    "empty": (HERMES, "", []),
    "reasoning": (
        HERMES,
        "<think>\nHm, <tool_call> is a tag.\n</think>\n\nYes.\n"
        '<tool_call>{"name": "time", "arguments": {"zone": "CET"}}</tool_call>',
        [Reasoning("\nHm, <tool_call> is a tag.\n"), Text("Yes."), TIME],
    ),
    "reasoning, cut short": (HERMES, "<think>Hm </thi", [Reasoning("Hm </thi")]),
    "late think is text": (HERMES, "Use <think> tags.", [Text("Use <think> tags.")]),
}


def joined(parts):
    """Neighbors of one kind joined, as a client would."""
    result = []
    for part in parts:
        if result and not isinstance(part, Call) and type(part) is type(result[-1]):
            result[-1] = type(part)(result[-1].text + part.text)
        else:
            result.append(part)
    return result


def read(call_format, pieces, tools=("weather", "time"), **options):
    reader = PartReader(Markup("", call_format, True, {}), tools, **options)
    parts = [part for piece in pieces for part in reader.push(piece)]
    return joined([*parts, *reader.finish()])


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_split_at_every_cut(name):
    call_format, text, expected = ANSWERS[name]
    assert read(call_format, [text]) == expected
    assert read(call_format, list(text)) == expected
    for cut in range(1, len(text)):
        assert read(call_format, [text[:cut], text[cut:]]) == expected


def test_text_passes_at_once_where_no_tool_may_be_called():
    reader = PartReader(Markup("", HERMES, False, {}), ())
    assert reader.push("a <tool_call> b \n") == [Text("a <tool_call> b \n")]
    assert reader.finish() == []


def test_open_reasoning_of_the_prompt_goes_on():
    assert read(None, ["I think", " so</think>", "\nYes"], (), reasoning=True) == [
        Reasoning("I think so"),
        Text("Yes"),
    ]


def test_values_of_gemma_calls():
    text = 'call:f{a:<|"|>x, {y}<|"|>,b:[1,true,<|"|>c<|"|>],<|"|>d<|"|>:{e:null,f:-1.5}}'
    expected = {"a": "x, {y}", "b": [1, True, "c"], "d": {"e": None, "f": -1.5}}
    assert gemma_calls(text) == [Call("f", expected)]


def test_values_of_python_calls():
    text = "[a.b(x=[1, {'k': true}], y=null, z=-1)]"
    assert python_calls(text) == [Call("a.b", {"x": [1, {"k": True}], "y": None, "z": -1})]


def test_arguments_as_json_text():
    assert json_calls('{"name": "f", "arguments": "{\\"a\\": 1}"}') == [Call("f", {"a": 1})]
    nested = '{"type": "function", "function": {"name": "f", "parameters": {}}}'
    assert json_calls(nested) == [Call("f", {})]


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (json_calls, ""),
        (json_calls, "7"),
        (json_calls, '{"name": 3, "arguments": {}}'),
        (json_calls, '{"name": "f", "arguments": [1]}'),
        (json_calls, '{"name": "f", "arguments": {}} and more'),
        (json_calls, "[" * 100_000),
        (python_calls, "f(1)"),
        (python_calls, "f(**x)"),
        (python_calls, "f(x=open('a'))"),
        (python_calls, "(" * 100_000),
        (gemma_calls, "call:f{a:"),
        (gemma_calls, "call:f{a:1"),
        (gemma_calls, "call:f" + "{a:" * 100_000),
        (gemma_calls, "f{}"),
    ],
    ids=range(14),
)
def test_what_is_no_call_is_refused(reader, text):
    with pytest.raises(NotACall):
        read_calls(reader, text)
