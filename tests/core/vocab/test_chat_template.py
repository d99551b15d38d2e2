"""Which chat template a conversation takes, its rendering as in transformers, and its limits."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from tests.tiny import write_tokenizer
from vt_core.errors import PromptError, TokenizerError
from vt_core.vocab import template_sandbox
from vt_core.vocab.chat_template import render
from vt_core.vocab.tokenizer import Tokenizer

MESSAGES = [
    {"role": "user", "content": "hi <|im_end|> é"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "so ", "reasoning": "think"},
    {"role": "user", "content": [{"type": "text", "text": "why? "}]},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def temperature(city: str) -> int:
    """The temperature of a city.

    Args:
        city: its name
    """
    return len(city)


def tokenizer_with(path, config=None, files=None):
    """A tokenizer directory with chat templates in its configuration, in files, or in neither."""
    write_tokenizer(path)
    written = json.loads((path / "tokenizer_config.json").read_text())
    del written["chat_template"]
    if config is not None:
        written["chat_template"] = config
    (path / "tokenizer_config.json").write_text(json.dumps(written))
    for name, template in (files or {}).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(template)
    return Tokenizer(path)


def theirs(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


NAMED = [
    {"name": "default", "template": "D"},
    {"name": "tool_use", "template": "T"},
    {"name": "rag", "template": "R"},
]
EXTRA = "additional_chat_templates/"
LAYOUTS = {
    "text": ("D", None),
    "list": (NAMED, None),
    "dictionary": ({entry["name"]: entry["template"] for entry in NAMED}, None),
    "file": (NAMED, {"chat_template.jinja": "F"}),
    "files": ("D", {"chat_template.jinja": "F", f"{EXTRA}tool_use.jinja": "T", f"{EXTRA}rag.jinja": "R"}),
    "only an additional file": ("D", {f"{EXTRA}tool_use.jinja": "T"}),
    "list without default": (NAMED[1:], None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arguments", [{}, {"tools": TOOLS}, {"tools": []}, {"chat_template": "rag"}])
def test_template_chosen_as_in_transformers(tmp_path, layout, arguments):
    ours = tokenizer_with(tmp_path, *LAYOUTS[layout])
    try:
        expected = theirs(tmp_path).apply_chat_template(MESSAGES, tokenize=False, **arguments)
    except ValueError:
        with pytest.raises(PromptError, match=r"no default chat template; choose .*: (rag, )?tool_use"):
            ours.render_chat(MESSAGES, **arguments)
    else:
        assert ours.render_chat(MESSAGES, **arguments) == expected


@pytest.mark.parametrize(
    "config",
    [5, [{"name": "default"}], ["x"], {"default": 5}, [{"name": [], "template": "x"}], "x" * (2 << 20)],
)
def test_wrong_type_of_template_is_refused(tmp_path, config):
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        tokenizer_with(tmp_path, config)


FIELDS = (
    "{{ bos_token }}{%- for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{{ m.content[0].text | trim }}{% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{% if m.reasoning_content is defined %}[{{ m.reasoning_content ~ m.thinking }}]{% endif %}"
    "{% if loop.last or loop.length > 9 %}{{ loop.index0 * 2 + 1 }}{% endif %}{% endfor %}"
    "{% for tool in tools or [] %}{{ tool | tojson(indent=2) }}{% endfor %}"
    "{% set ns = namespace(seen='') %}{% for k, v in (flags or {}).items() %}"
    "{% set ns.seen = ns.seen ~ k ~ v %}{% endfor %}{{ ns.seen }}"
    "{{ 'x' * 3 + '%s' % 5 }}{{ ['a', 'b'] | join(', ') }}{{ messages[1:] | length }}"
    "{% macro wrap(text) %}({{ text }}){% endmacro %}{{ wrap('in') }}"
    "{% generation %}answer{% endgeneration %}{% if add_generation_prompt %}<answer>{% endif %}"
)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tools": TOOLS},
        {"tools": [temperature]},
        {"add_generation_prompt": False},
        {"flags": {"b": True, "n": None, "f": 0.5}},
        {"flags": {"i": np.int64(3), "no": np.bool_(False), "object": object()}},
        {"bos_token": "<mine>"},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
)
def test_rendered_as_in_transformers(tmp_path, arguments):
    ours = tokenizer_with(tmp_path, FIELDS)
    expected = theirs(tmp_path).apply_chat_template(
        MESSAGES, tokenize=False, **{"add_generation_prompt": True} | arguments
    )
    assert ours.render_chat(MESSAGES, **arguments) == expected
    assert "None" not in expected.partition("<answer>")[0] or "flags" in arguments


def test_messages_are_not_changed(tmp_path):
    before = json.dumps(MESSAGES)
    tokenizer_with(tmp_path, FIELDS).render_chat(
        MESSAGES, add_generation_prompt=False, continue_final_message=True
    )
    assert json.dumps(MESSAGES) == before


@pytest.mark.parametrize(
    ("messages", "arguments", "sentence"),
    [
        ([], {}, "conversation is empty"),
        (["hi"], {}, "a chat message is a dictionary"),
        (MESSAGES, {"tools": ["weather"]}, "a tool is a JSON schema or a function"),
        (MESSAGES, {"continue_final_message": True}, "needs add_generation_prompt to be False"),
        (
            MESSAGES[:2],
            {"continue_final_message": True, "add_generation_prompt": False},
            "no text to continue",
        ),
    ],
)
def test_wrong_type_of_conversation_is_refused(messages, arguments, sentence):
    with pytest.raises(PromptError, match=sentence):
        render("{{ messages }}", messages, **arguments)


GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
BLOCK = "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "endless calls": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "sum": GROW.replace("START", "'a'").replace("STEP", "ns.x + ns.x"),
    "concatenation": GROW.replace("START", "'a'").replace("STEP", "ns.x ~ ns.x"),
    "nested lists": GROW.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]"),
    "block": GROW.replace("START", "'a'").replace("STEP", "y").replace("{% set ns.x", BLOCK + "{% set ns.x"),
    "product": "{{ 'a' * 10000000000 }}",
    "list product": "{{ [0] * 10000000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "filter": "{{ 'a' | center(10000000000) }}",
    "method": "{{ 'a'.ljust(10000000000) }}",
    "width": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "replacement": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "join": "{{ (['a'] * 100000) | join('b' * 1000000) }}",
    "join method": "{{ ('b' * 1000000).join(['a'] * 100000) }}",
    "indent lines": "{{ ('\n' * 1000000) | indent(1000000, true, true) }}",
    "map": "{{ ([range(99999)] * 100000) | map('list') | list | length }}",
    "output": "{% set x = 'a' * 10000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "indent": "{{ messages | tojson(indent=100000000000) }}",
}  # fmt: skip


def test_large_conversation_is_rendered():
    text = "a line of text with <think> in it\n" * 30_000
    template = (
        "{% for m in messages %}{% set text = m.content | replace('<think>', '') | trim %}"
        "{{ '%s: %s' | format(m.role, text) + '.' }}{{ m.content.split('</think>') | join(' ') }}{% endfor %}"
    )
    messages = [{"role": "user", "content": text}] * 3
    assert len(render(template, messages)) > 2 * len(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_stopped(tmp_path, monkeypatch, name):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.3)
    tokenizer = tokenizer_with(tmp_path, HOSTILE[name])
    start = time.monotonic()
    with pytest.raises(PromptError, match="chat template"):
        tokenizer.encode_chat(MESSAGES)
    assert time.monotonic() - start < 10
