"""Output items of a response, and the events that tell how they grow."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from vt_core.serve.calls import Call, call_id
from vt_core.serve.markup import Part, Reasoning

Event = dict[str, Any]


class OutputItems:
    """The items of one response. An item is open while parts of its kind come."""

    def __init__(self, id_length: int) -> None:
        """
        Args:
            id_length: length of the ids of tool calls.
        """
        self._id_length = id_length
        self._open: dict[str, Any] | None = None
        self.output: list[dict[str, Any]] = []  #: the items
        self.logprobs: list[dict[str, Any]] = []  #: of the answer's tokens, where they were asked for

    def add(self, parts: Sequence[Part]) -> Iterator[Event]:
        """Add parts of the answer; yields the events of that."""
        for part in parts:
            if isinstance(part, Call):
                yield from self._close("completed")
                yield from self._call(part)
            else:
                kind = "reasoning" if isinstance(part, Reasoning) else "message"
                if self._open is None or self._open["type"] != kind:
                    yield from self._close("completed")
                    yield from self._begin(kind)
                yield from self._grow(part.text)

    def finish(self, cut: bool) -> Iterator[Event]:
        """End the last item; an empty answer gets an empty message. ``cut``: the answer is not whole."""
        if not self.output:
            yield from self._begin("message")
        yield from self._close("incomplete" if cut else "completed")

    def _begin(self, kind: str) -> Iterator[Event]:
        prefix = {"message": "msg", "reasoning": "rs"}[kind]
        item: dict[str, Any] = {
            "id": f"{prefix}_{secrets.token_hex(16)}",
            "type": kind,
            "status": "in_progress",
        }
        item |= {"role": "assistant", "content": []} if kind == "message" else {"summary": [], "content": []}
        self._open = item
        self.output.append(item)
        yield {"type": "response.output_item.added", **self._place(item), "item": {**item, "content": []}}
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"].append(part)
        yield {"type": "response.content_part.added", **self._content_place(item), "part": dict(part)}

    def _grow(self, text: str) -> Iterator[Event]:
        item = self._open
        assert item is not None
        item["content"][0]["text"] += text
        event = {"type": f"response.{self._kind(item)}.delta", **self._content_place(item), "delta": text}
        yield event | self._event_logprobs(item)

    def _close(self, status: str) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is None:
            return
        part = item["content"][0]
        if item["type"] == "message":
            part["logprobs"] = self.logprobs
        place = self._content_place(item)
        yield {
            "type": f"response.{self._kind(item)}.done",
            **place,
            "text": part["text"],
            **self._event_logprobs(item),
        }
        yield {"type": "response.content_part.done", **place, "part": dict(part)}
        item["status"] = status
        yield {"type": "response.output_item.done", **self._place(item), "item": dict(item)}

    def _call(self, call: Call) -> Iterator[Event]:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {
            "id": f"fc_{secrets.token_hex(16)}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call_id(self._id_length),
            "name": call.name,
            "arguments": "",
        }
        self.output.append(item)
        place = {"item_id": item["id"], **self._place(item)}
        yield {"type": "response.output_item.added", **self._place(item), "item": dict(item)}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}
        done = {"type": "response.function_call_arguments.done", **place}
        yield {**done, "name": call.name, "arguments": arguments}
        item |= {"arguments": arguments, "status": "completed"}
        yield {"type": "response.output_item.done", **self._place(item), "item": dict(item)}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"output_index": next(at for at, each in enumerate(self.output) if each is item)}

    def _content_place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], **self._place(item), "content_index": 0}

    def _event_logprobs(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"logprobs": self.logprobs} if item["type"] == "message" else {}

    @staticmethod
    def _kind(item: dict[str, Any]) -> str:
        return "output_text" if item["type"] == "message" else "reasoning_text"
