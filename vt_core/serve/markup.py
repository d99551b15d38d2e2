"""How a model's answers mark reasoning and tool calls, and the parts of an answer as it streams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from vt_core.serve.calls import (
    Call,
    NotACall,
    Reader,
    gemma_calls,
    hermes_calls,
    json_calls,
    mistral_calls,
    python_calls,
    read_calls,
)
from vt_core.vocab.tokenizer import Tokenizer


@dataclass(frozen=True)
class CallFormat:
    """How a family of models writes tool calls."""

    start: str  #: marker before calls; empty: an answer that begins with ``{`` is a call
    end: str  #: marker after calls; empty: they end with the answer
    read: Reader  #: reads what stands between
    signs: tuple[str, ...]  #: texts of a chat template that show the format
    extra: tuple[str, ...] = ()  #: further markers that may be special tokens
    alternative: str = ""  #: another marker before calls
    id_length: int = 24  #: length of the ids of calls: Mistral's templates refuse others than 9
    #: How an answer that must be a call begins; None: such answers cannot be demanded.
    forced: str | None = None
    forced_key: str = "arguments"  #: of the arguments in the JSON that follows
    forced_list: bool = False  #: whether that JSON is a list of calls


#: In the order in which they are looked for.
FORMATS = (
    CallFormat("<|tool_call>", "<tool_call|>", gemma_calls, ("<|tool_call>",), ('<|"|>',)),
    CallFormat(
        "<start_function_call>", "<end_function_call>", gemma_calls, ("<start_function_call>",), ("<escape>",)
    ),
    CallFormat("<|tool_call_start|>", "<|tool_call_end|>", python_calls, ("<|tool_call_start|>",)),
    CallFormat(
        "[TOOL_CALLS]", "", mistral_calls, ("[TOOL_CALLS]", "[ARGS]"), ("[ARGS]", "[CALL_ID]"), id_length=9
    ),
    CallFormat(
        "[TOOL_CALLS]",
        "",
        mistral_calls,
        ("[TOOL_CALLS]",),
        id_length=9,
        forced="[TOOL_CALLS]",
        forced_list=True,
    ),
    CallFormat(
        "<|tool_call|>",
        "<|/tool_call|>",
        json_calls,
        ("<|tool_call|>", "<|/tool_call|>"),
        forced="<|tool_call|>",
        forced_list=True,
    ),
    CallFormat("<|tool_call|>", "", json_calls, ("<|tool_call|>",), forced="<|tool_call|>", forced_list=True),
    CallFormat("<tool_call>", "</tool_call>", hermes_calls, ("<tool_call>", "<function=")),
    CallFormat("<tool_call>", "</tool_call>", hermes_calls, ("<tool_call>",), forced="<tool_call>\n"),
    *(
        CallFormat(
            "", "", json_calls, signs, alternative="<|python_tag|>", forced="", forced_key="parameters"
        )
        for signs in (("ipython", '"parameters"'), ("<|python_tag|>",))
    ),
)

THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class Markup:
    """What the answers of one model may hold besides text."""

    template: str | None  #: the chat template of a conversation with tools
    calls: CallFormat | None  #: how it writes tool calls, where the template shows a known way
    thinks: bool  #: whether it marks reasoning
    special: Mapping[int, str]  #: markers that are special tokens, by id: texts leave these out otherwise

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Markup:
        """Look at a model's chat template and tokens."""
        templates = tokenizer.templates
        template = templates.by_name.get("tool_use", templates.default)
        every = "".join(templates.by_name.values())
        calls = None
        if template is not None and "tools" in template:
            calls = next((each for each in FORMATS if all(sign in template for sign in each.signs)), None)
        thinks = THINK[1] in every or tokenizer.id_of(THINK[1]) is not None
        markers = list(THINK) if thinks else []
        if calls is not None:
            markers += [calls.start, calls.end, calls.alternative, *calls.extra]
        found = {marker: tokenizer.id_of(marker) for marker in markers if marker}
        special = tokenizer.special_ids(found)
        shown = {token: marker for marker, token in found.items() if token is not None and token in special}
        return cls(template, calls, thinks, shown)


@dataclass(frozen=True)
class Text:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of the reasoning before the answer."""

    text: str


Part = Text | Reasoning | Call


@dataclass
class PartReader:
    """Splits an answer that streams into text, reasoning, and calls of known tools. Text that may turn out to
    be a marker is held back.
    """

    markup: Markup
    tools: Collection[str]  #: names of the tools that may be called; none: calls are text
    reasoning: bool = False  #: whether the text read now is reasoning
    in_call: bool = False  #: whether the prompt ends within the beginning of a call
    _held: str = field(init=False, default="")
    _space: str = field(init=False, default="")  # white space that is dropped if a call follows
    _marker: str | None = field(init=False, default=None)  # of the call that is read now
    _begun: bool = field(init=False, default=False)  # whether text came, apart from white space
    _trims: bool = field(init=False, default=False)  # whether white space that comes next is dropped
    _after_call: bool = field(init=False, default=False)  # whether a call came after the last text

    def __post_init__(self) -> None:
        if self.in_call:
            self._marker = ""

    def push(self, text: str) -> list[Part]:
        """The parts that more text completes."""
        self._held += text
        parts: list[Part] = []
        while self._take(parts):
            pass
        return joined(parts)

    def finish(self) -> list[Part]:
        """The parts that were held back until the end."""
        parts: list[Part] = []
        if self._marker is not None:
            self._end_call(parts, self._held, "")
        else:
            self._add(parts, self._held)
        self._held = ""
        if not self._after_call:
            parts.append(Text(self._space))
        return joined(parts)

    def _take(self, parts: list[Part]) -> bool:
        """Take what is certain from the held text; returns whether to go on."""
        if self._marker is not None:
            return self._take_call(parts)
        actions = self._actions()
        if self._starts_bare_call():
            self._marker = ""
            return True
        found = [(at, marker) for marker in actions if (at := self._find(marker)) >= 0]
        if found:
            at, marker = min(found)
            before, self._held = self._held[:at], self._held[at + len(marker) :]
            self._add(parts, before)
            actions[marker]()
            return True
        keep = max((_overlap(self._held, marker) for marker in actions), default=0)
        cut = len(self._held) - keep
        before, self._held = self._held[:cut], self._held[cut:]
        self._add(parts, before)
        return False

    def _find(self, marker: str) -> int:
        at = self._held.find(marker)
        # Reasoning comes before any text.
        return -1 if marker == THINK[0] and self._held[: max(at, 0)].strip() else at

    def _take_call(self, parts: list[Part]) -> bool:
        assert self._marker is not None and self.markup.calls is not None
        end = self.markup.calls.end
        at = self._held.find(end) if end else -1
        if at < 0:
            return False
        body, self._held = self._held[:at], self._held[at + len(end) :]
        self._end_call(parts, body, end)
        return True

    def _actions(self) -> dict[str, Callable[[], None]]:
        """The markers to look for now, and what each does."""

        def call(marker: str) -> Callable[[], None]:
            def begin() -> None:
                self._marker = marker

            return begin

        if self.reasoning:
            return {THINK[1]: self._end_reasoning}
        actions: dict[str, Callable[[], None]] = {}
        if self.markup.thinks and not self._begun:
            actions[THINK[0]] = self._begin_reasoning
        calls = self.markup.calls
        if self.tools and calls is not None:
            actions |= {marker: call(marker) for marker in (calls.start, calls.alternative) if marker}
        return actions

    def _starts_bare_call(self) -> bool:
        calls = self.markup.calls
        return (
            bool(self.tools)
            and calls is not None
            and not calls.start
            and not self.reasoning
            and not self._begun
            and self._held.lstrip().startswith("{")
        )

    def _begin_reasoning(self) -> None:
        self.reasoning = True

    def _end_reasoning(self) -> None:
        self.reasoning, self._trims = False, True

    def _end_call(self, parts: list[Part], body: str, end: str) -> None:
        assert self._marker is not None and self.markup.calls is not None
        marker, self._marker = self._marker, None
        try:
            calls = read_calls(self.markup.calls.read, body)
            if any(call.name not in self.tools for call in calls):
                raise NotACall
        except NotACall:
            self._add_text(parts, marker + body + end)  # the client sees what the model wrote
            return
        self._space, self._after_call, self._trims = "", True, True
        parts += calls

    def _add(self, parts: list[Part], text: str) -> None:
        if self.reasoning:
            parts.append(Reasoning(text))
        else:
            self._add_text(parts, text)

    def _add_text(self, parts: list[Part], text: str) -> None:
        if self._trims:
            text = text.lstrip()
        if not text:
            return
        self._trims = False
        if self.tools:  # a call may follow
            whole = self._space + text
            text = whole.rstrip()
            self._space = whole[len(text) :]
        if text.strip():
            self._begun, self._after_call = True, False
        parts.append(Text(text))


def joined(parts: Sequence[Part]) -> list[Part]:
    """Parts without empty ones, neighbors of one kind joined."""
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(part, Call):
            whole.append(part)
        elif not part.text:
            continue
        elif isinstance(part, Text) and isinstance(last, Text):
            whole[-1] = Text(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            whole[-1] = Reasoning(last.text + part.text)
        else:
            whole.append(part)
    return whole


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of a marker that a text ends with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
