"""The application: routes, bodies, and what each endpoint runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vt_core.errors import PromptError
from vt_core.files.json_files import parse_object
from vt_core.serve import page
from vt_core.serve.chat import Chat
from vt_core.serve.common import Common
from vt_core.serve.completions import Completion
from vt_core.serve.engine import Engine
from vt_core.serve.errors import ApiError, api_error, is_client_error, timed_out
from vt_core.serve.guard import Guard
from vt_core.serve.metrics import Metrics
from vt_core.serve.registry import Registry, Served
from vt_core.serve.responses import Responses
from vt_core.serve.settings import Settings
from vt_core.serve.streams import ClientLeft, EventStream, json_error, while_connected

_LOG = logging.getLogger("vt.serve")


class Asked(Protocol):
    """A checked request of an endpoint."""

    @property
    def common(self) -> Common:
        """The common fields."""

    async def reply(self, engine: Engine, name: str, task: str | None) -> dict[str, Any]:
        """The whole response."""

    def events(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[str, None]:
        """The response as server-sent events."""

    def error_event(self, error: ApiError) -> str:
        """How a stream tells of an error."""


class Server:
    """The endpoints over some models."""

    def __init__(self, settings: Settings, registry: Registry, metrics: Metrics) -> None:
        self._settings, self._registry, self._metrics = settings, registry, metrics

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            *page.routes(),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            *(
                Route(path, self._endpoint(parse), methods=["POST"])
                for path, parse in (
                    ("/v1/chat/completions", Chat.parse),
                    ("/v1/completions", Completion.parse),
                    ("/v1/responses", Responses.parse),
                )
            ),
        ]
        app = Starlette(
            routes=routes,
            exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]
            lifespan=self._lifespan,
        )
        app.add_middleware(Guard, settings=self._settings, metrics=self._metrics)
        return app

    async def health(self, request: Request) -> Response:
        """Whether the server answers; it does so while models load and run."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Counters and histograms for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """Every name that a request may ask for."""
        return JSONResponse({"object": "list", "data": [_model(*entry) for entry in self._registry.names()]})

    async def model(self, request: Request) -> Response:
        """One of these names."""
        wanted = request.path_params["name"]
        for name, model in self._registry.names():
            if name == wanted:
                return JSONResponse(_model(name, model))
        try:
            self._registry.find(wanted)
        except ApiError as error:
            return json_error(error)
        raise AssertionError("a name is found that is not listed")

    def _endpoint(self, parse: Callable[[Any, Settings], Asked]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                content = await self._body(request)

                def read() -> Asked:
                    body = parse_object(content, "the body", "request", PromptError)
                    return parse(body, self._settings)

                # Beside the loop: a body can hold a million token ids.
                asked = await asyncio.to_thread(read)
                served, task = self._registry.find(asked.common.model, asked.common.task)
                name = asked.common.model or served.name
                if asked.common.stream:
                    return EventStream(
                        self._events(asked, served, name, task),
                        lambda error: self._describe(error, request),
                        asked.error_event,
                        keep_alive=self._settings.keep_alive,
                        timeout=lambda: timed_out(self._settings.timeout),
                        seconds=self._settings.timeout,
                    )
                reply = self._reply(asked, served, name, task, request)
                return JSONResponse(await while_connected(request.receive, reply))
            except (ClientLeft, ClientDisconnect) as error:
                raise ClientLeft from error
            except Exception as error:
                return json_error(self._describe(error, request))

        return endpoint

    async def _reply(
        self, asked: Asked, served: Served, name: str, task: str | None, request: Request
    ) -> dict[str, Any]:
        async def whole() -> dict[str, Any]:
            async with self._registry.use(served) as engine:
                return await asked.reply(engine, name, task)

        try:
            reply = await asyncio.wait_for(whole(), self._settings.timeout)
        except asyncio.TimeoutError:
            raise timed_out(self._settings.timeout) from None
        request.state.log = {"model": name, **_counts(reply.get("usage", {}))}
        return reply

    async def _events(
        self, asked: Asked, served: Served, name: str, task: str | None
    ) -> AsyncGenerator[str, None]:
        async with self._registry.use(served) as engine, aclosing(asked.events(engine, name, task)) as events:
            async for event in events:
                yield event

    async def _body(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            ApiError: it is too large or too slow.
        """
        limit = self._settings.max_body
        too_large = ApiError(
            f"the body is larger than the server's limit of {limit} bytes", status=413, code="body_too_large"
        )
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or len(declared) > 15 or int(declared) > limit:
            raise too_large

        async def read() -> bytes:
            content = bytearray()
            async for piece in request.stream():
                content += piece
                if len(content) > limit:
                    raise too_large
            return bytes(content)

        try:
            return await asyncio.wait_for(read(), self._settings.client_seconds)
        except asyncio.TimeoutError:
            raise ApiError("the body did not arrive in time", status=408, code="body_timeout") from None

    def _describe(self, error: BaseException, request: Request) -> ApiError:
        request_id = request.state.request_id
        if not is_client_error(error):
            _LOG.error("failed", exc_info=error, extra={"fields": {"request": request_id}})
        described = api_error(error, request_id)
        request.state.log = {"error": str(error)[:500]}
        return described

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        tasks = []
        if self._settings.idle is not None:
            tasks.append(asyncio.create_task(self._registry.unload_idle()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await self._registry.close()


def _counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: usage[name]
        for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
        if name in usage
    }


def _model(name: str, model: Served) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": "vt"}


async def _http_error(request: Request, error: HTTPException) -> Response:
    sentence = {404: "there is nothing at this address", 405: "this address takes other methods only"}
    return json_error(
        ApiError(
            sentence.get(error.status_code, error.detail),
            status=error.status_code,
            headers=error.headers,
            code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code),
        )
    )
