"""Running the application with uvicorn: the socket, the models, and the end."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import closing

import uvicorn

from vt_core.errors import OptionError
from vt_core.serve.app import Server
from vt_core.serve.connections import limited
from vt_core.serve.guard import is_loopback
from vt_core.serve.metrics import Metrics
from vt_core.serve.registry import Registry, Served
from vt_core.serve.settings import Settings

_LOG = logging.getLogger("vt.serve")


def serve(
    models: Sequence[Served], settings: Settings, started: Callable[[uvicorn.Server, str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; running requests are finished first, within a time.

    Args:
        models: to offer, at least one.
        settings: limits and defaults.
        started: called with the server and its URL when the models are loaded.

    Raises:
        OptionError: the address cannot be used, or two models have one name.
        VtError: a model cannot be loaded.
    """
    metrics = Metrics()
    registry = Registry(models, settings, metrics)
    # Before the models are loaded: a port in use should not cost that time.
    with closing(_bind(settings.host, settings.port)) as listener:
        host, port = listener.getsockname()[:2]
        if not is_loopback(settings.host) and settings.api_key is None:
            _LOG.warning("anyone who reaches this address can use the models: no API key is set")
        if not settings.lazy:
            registry.load_all()
        config = uvicorn.Config(
            Server(settings, registry, metrics).app(),
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            # Proxies' headers are not used, and nobody is believed who sends them.
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(settings.drain)),
            http=limited(settings.client_seconds),
            ws="none",
        )
        server = uvicorn.Server(config)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        listener.listen(config.backlog)  # clients that come before the loop runs wait
        _LOG.info("listening", extra={"fields": {"url": url}})
        started(server, url)
        server.run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"the server cannot listen on {host} port {port} ({reason})") from error
