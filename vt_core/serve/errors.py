"""What a client is told when its request fails: a status and OpenAI's error object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vt_core.errors import OptionError, PromptError, VtError


class ApiError(Exception):
    """A failed request. Its text is for the client."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            message: one sentence.
            status: of the response.
            kind: OpenAI's ``type``.
            param: the field at fault.
            code: OpenAI's ``code``.
            headers: of the response, besides the usual ones.
        """
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def refused(param: str, sentence: str, code: str | None = None) -> ApiError:
    """The error of a field that cannot be served; ``sentence`` goes on after the field's name."""
    return ApiError(f"{param} {sentence}", param=param, code=code)


def internal_error(request_id: str) -> ApiError:
    """The error of a fault that the client did not cause. What happened is in the log only."""
    return ApiError(
        f"the server failed; its log says why under request {request_id}", status=500, kind="server_error"
    )


def timed_out(seconds: float) -> ApiError:
    """The error of a request that takes too long."""
    return ApiError(
        f"the request took more than the server's limit of {seconds:g} seconds",
        status=504,
        kind="server_error",
        code="timeout",
    )


def stopping() -> ApiError:
    """The error of a request that the server's end cuts off."""
    return ApiError("the server is stopping", status=503, kind="server_error", code="stopping")


def api_error(error: BaseException, request_id: str) -> ApiError:
    """What to tell the client of any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (OptionError, PromptError)):
        # Messages of wrong options begin with the option's name.
        name = re.match(r"[a-z_]+", str(error))
        return ApiError(str(error), param=name[0] if name and isinstance(error, OptionError) else None)
    if isinstance(error, MemoryError):
        return ApiError(
            "the server is out of memory; send a shorter prompt, or fewer requests at once",
            status=503,
            kind="server_error",
            code="out_of_memory",
        )
    return internal_error(request_id)


def is_client_error(error: BaseException) -> bool:
    """Whether the log needs no traceback of this error."""
    return isinstance(error, (ApiError, OptionError, PromptError)) or (
        isinstance(error, VtError) and not isinstance(error, MemoryError)
    )
