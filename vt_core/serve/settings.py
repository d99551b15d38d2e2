"""What the server was started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Limits and defaults. Sizes are in bytes and times in seconds."""

    host: str = "127.0.0.1"  #: address to listen on
    port: int = 8080  #: port to listen on; 0 takes a free one
    batch: int = 8  #: requests of a model that run at once
    queue: int = 64  #: requests of a model that may wait
    max_tokens: int = 1024  #: most tokens of a chat answer whose request gives no limit
    max_prompt: int | None = None  #: most tokens of a prompt; None: the model's context
    max_body: int = 4 << 20  #: most bytes of a request's body
    client_seconds: float = 30.0  #: most seconds to send a request's headers, then its body, or to read on
    timeout: float = 600.0  #: most seconds of a request, waiting included
    drain: float = 30.0  #: seconds that running requests have to end after SIGTERM
    keep_alive: float = 15.0  #: seconds without data after which a stream sends a comment
    cache_bytes: int = 1 << 30  #: most bytes of cached prompts of a model
    idle: float | None = None  #: seconds after which an unused model is unloaded; None: never
    lazy: bool = False  #: whether models are loaded on first use
    api_key: str | None = None  #: key that clients must send
    origins: tuple[str, ...] = ()  #: origins of web pages that may use the server, or ``*``
    hosts: tuple[str, ...] = ()  #: further names of the server, as clients write them in ``Host``
    #: Options of :meth:`vt_core.Model.stream` that hold where a request says nothing.
    defaults: Mapping[str, Any] = field(default_factory=dict)
