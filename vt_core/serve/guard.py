"""What every request passes before it reaches an endpoint: names of the server, origins, the key, the log."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vt_core.serve.errors import ApiError, internal_error, stopping
from vt_core.serve.metrics import Metrics
from vt_core.serve.settings import Settings
from vt_core.serve.streams import ClientLeft, json_error

_LOG = logging.getLogger("vt.serve")

#: Names of this machine for itself.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: Paths that need no key.
OPEN = frozenset({"/", "/page.css", "/page.js", "/health"})

#: The other paths.
PATHS = frozenset({"/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Middleware that checks a request, gives it an id, and logs and counts its response."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        # Another site's page can reach a loopback server through a name of its own that resolves to
        # 127.0.0.1; the browser sends that name.
        self._hosts = (
            LOOPBACK | {settings.host, *settings.hosts} if is_loopback(settings.host) else frozenset()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                self._allow_origin(scope, headers)
            await send(message)

        outcome = "answered"
        try:
            await self._checked(scope, receive, send_with_headers)
        except ClientLeft:
            outcome = "left"
            self._metrics.cancelled()
        except asyncio.CancelledError:  # the time that requests have at the server's end is over
            outcome = "cut"
            if not status:
                await json_error(stopping())(scope, receive, send_with_headers)
        except Exception:
            _LOG.exception("failed", extra={"fields": {"request": request_id}})
            if not status:
                await json_error(internal_error(request_id))(scope, receive, send_with_headers)
        finally:
            self._metrics.response(_route(scope["path"]), status or 499)
            fields = {
                "request": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.perf_counter() - started, 4),
                **scope["state"].get("log", {}),
            }
            _LOG.info(outcome, extra={"fields": fields})

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        error = self._check_host(headers) or self._check_origin(headers)
        if error is None and self._is_preflight(scope, headers):
            await _preflight(scope, receive, send)
            return
        error = error or self._check_key(scope, headers)
        if error is not None:
            await json_error(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> ApiError | None:
        if not self._hosts or _host_name(headers.get("host", "")) in self._hosts:
            return None
        return ApiError(
            "this server answers to its own name only; start it with --allow-host to add one",
            status=403,
            code="wrong_host",
        )

    def _check_origin(self, headers: Headers) -> ApiError | None:
        """Refuse pages of other sites: a browser would let them use the server, though not read it."""
        origin = headers.get("origin")
        if origin is None or self._origin_allowed(origin):
            return None
        if origin != "null" and urlsplit(origin).netloc == headers.get("host"):
            return None
        return ApiError(
            "web pages of other origins may not use this server; start it with --allow-origin to allow one",
            status=403,
            code="wrong_origin",
        )

    def _check_key(self, scope: Scope, headers: Headers) -> ApiError | None:
        key = self._settings.api_key
        if key is None or scope["path"] in OPEN:
            return None
        # Headers are decoded as Latin-1: encoding them so gives the bytes that were sent.
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if scheme.lower() == "bearer" and same:
            return None
        return ApiError(
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _origin_allowed(self, origin: str) -> bool:
        return origin in self._settings.origins or "*" in self._settings.origins

    def _allow_origin(self, scope: Scope, headers: MutableHeaders) -> None:
        origin = Headers(scope=scope).get("origin")
        if origin is not None and self._origin_allowed(origin):
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")

    def _is_preflight(self, scope: Scope, headers: Headers) -> bool:
        return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.responses import Response

    allowed = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }
    await Response(status_code=204, headers=allowed)(scope, receive, send)


def _route(path: str) -> str:
    """A path as metrics show it: clients cannot invent more."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in OPEN or path in PATHS else "other"


def _host_name(host: str) -> str:
    """A ``Host`` header without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
