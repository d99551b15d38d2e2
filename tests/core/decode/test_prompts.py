from __future__ import annotations

import json

import numpy as np
import pytest

from tests.tiny import write_tokenizer
from vt_core.decode.prompts import encode_prompt
from vt_core.errors import PromptError
from vt_core.vocab.tokenizer import Tokenizer

TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


def encode(tokenizer, prompt, *, system=None, raw=False, template_arguments=None):
    arguments = template_arguments or {}
    return encode_prompt(tokenizer, prompt, system=system, raw=raw, template_arguments=arguments)


def tokenizer_with_template(path, template):
    write_tokenizer(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return Tokenizer(path)


def test_text_without_a_template_is_encoded_raw(tmp_path):
    tokenizer = tokenizer_with_template(tmp_path, None)
    assert np.array_equal(encode(tokenizer, "hello"), tokenizer.encode("hello"))


@pytest.mark.parametrize("arguments", [TOOLS, {"enable_thinking": False}])
@pytest.mark.parametrize(
    ("template", "prompt", "raw"),
    [(None, "hello", False), ("{{ messages }}", "hello", True), ("x", [5], False)],
)
def test_template_arguments_without_a_template_are_refused(tmp_path, arguments, template, prompt, raw):
    tokenizer = tokenizer_with_template(tmp_path, template)
    with pytest.raises(PromptError, match="tools and template arguments need the chat template"):
        encode(tokenizer, prompt, raw=raw, template_arguments=arguments)


def test_templates_without_a_default_need_tools_or_a_name(tmp_path):
    tokenizer = tokenizer_with_template(tmp_path, [{"name": "tool_use", "template": "TOOLS"}])
    expected = tokenizer.encode("TOOLS", special=False).tolist()
    assert encode(tokenizer, "hello", template_arguments=TOOLS).tolist() == expected
    assert encode(tokenizer, "hello", template_arguments={"chat_template": "tool_use"}).tolist() == expected
    assert np.array_equal(encode(tokenizer, "hello", raw=True), tokenizer.encode("hello"))
    with pytest.raises(PromptError, match="no default chat template"):
        encode(tokenizer, "hello")
