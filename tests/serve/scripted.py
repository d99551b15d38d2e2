"""A model that says what a test wants, through a chat template of the test's."""

from __future__ import annotations

import copy
from dataclasses import replace

from vt_core.model import Chunk, Model
from vt_core.vocab.chat_template import ChatTemplates

#: Shows tools and calls as Hermes and Qwen do; the prompt is cut into few tokens of the tiny tokenizer.
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}"
    "<tool_call></tool_call>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }} "
    "{{ call.function.arguments.city }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)


class Scripted:
    """Answers with :attr:`text`, in pieces of three characters; keeps the prompts that it was given."""

    def __init__(self, model: Model, template: str = TEMPLATE) -> None:
        self._model = model
        self.tokenizer = copy.copy(model.tokenizer)
        self.tokenizer.templates = ChatTemplates({"default": template})
        self.text, self.reason = "", "stop"
        self.prompts: list[str] = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def encode(self, prompt, **options):
        return Model.encode(self, prompt, **options)

    def run(self, ids, options, slot=None, shown=None):
        # Not decode(), which leaves special tokens out.
        content = b"".join(self.tokenizer.bytes_of(token) for token in ids.tolist())
        self.prompts.append(content.decode())
        result = replace(self._model.generate([5], max_tokens=1), text=self.text, finish_reason=self.reason)
        for at in range(0, len(self.text), 3):
            yield Chunk(self.text[at : at + 3], 5)
        yield Chunk("", None, result)
