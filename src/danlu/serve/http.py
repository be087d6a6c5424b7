"""The HTTP service: answers, health, metrics, and a small page to try it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from danlu import __version__
from danlu.errors import DataError, InputError
from danlu.serve.engine import Engine

MAX_BODY = 4 << 20
"""Largest request, in bytes."""
MAX_TEXTS = 256
"""Most texts in one request."""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Names of this machine to itself."""


_AT_ONCE = 2  # a prediction uses every core by itself; more at once only wait on each other
_log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A request that cannot be answered, with its status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def application(engine: Engine, hosts: Sequence[str] = ("*",)) -> Starlette:
    """Return the service of one model.

    Parameters
    ----------
    engine : Engine
    hosts : sequence of str
        Names under which it may be asked for. A service for this machine alone
        answers to no other, so that no web page can reach it by a name that
        its owner has pointed here.

    Routes
    ------
    ``POST /v1/predict``
        ``{"texts": ["…"]}`` (or ``{"text": "…"}``) gives ``{"model", "predictions"}``. Of
        tables ``rows`` and ``row`` are objects, in which an image is a file in base64; of
        images and sounds ``images`` and ``image``, ``clips`` and ``clip`` are files in base64;
        of series ``histories`` and ``history`` are lists of rows, of events lists of items.
        400 malformed, 413 too large, 422 empty, too many or too long.
    ``GET /healthz``, ``GET /metrics``, ``GET /``
        Health, Prometheus metrics, a page.
    """
    registry = CollectorRegistry()
    requests = Counter("danlu_requests", "Requests by status", ["status"], registry=registry)
    answered = Counter("danlu_texts", "Texts answered", registry=registry)
    seconds = Histogram("danlu_request_seconds", "Time to answer, in seconds", registry=registry)
    at_once = CapacityLimiter(_AT_ONCE)
    page = files("danlu.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def predict(request: Request) -> Response:
        began = time.perf_counter()
        try:
            records = _records(await _body(request), engine)
            try:
                predictions = await to_thread.run_sync(engine.predict, records, limiter=at_once)
            except DataError as error:  # what shows only when a table is read as a whole
                raise _RefusedError(422, error.what) from None
            response = JSONResponse({"model": engine.name, "predictions": predictions})
            answered.inc(len(records))
        except _RefusedError as refused:
            response = JSONResponse({"error": refused.reason}, refused.status)
        except Exception as error:
            _log.exception("a prediction failed")
            response = JSONResponse({"error": f"the model failed: {type(error).__name__}"}, 500)
        requests.labels(str(response.status_code)).inc()
        seconds.observe(time.perf_counter() - began)
        return response

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": engine.name, "danlu": __version__})

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def index(_: Request) -> Response:
        images = json.dumps(engine.images).replace("<", "\\u003c")
        shown = page.replace("{{modality}}", engine.modality).replace("{{images}}", images)
        shown = shown.replace("{{several}}", _NAMES[engine.modality][1])
        return HTMLResponse(shown.replace("{{name}}", _escape(engine.name)))

    return Starlette(
        routes=[
            Route("/v1/predict", predict, methods=["POST"]),
            Route("/healthz", health),
            Route("/metrics", metrics),
            Route("/", index),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


async def _body(request: Request) -> Any:
    """Return a request's JSON, reading no more than is allowed."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise _RefusedError(413, f"the request is larger than {MAX_BODY:,} bytes")
    except ClientDisconnect:
        raise _RefusedError(400, "the request was cut off") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "the request is not valid JSON") from None


_NAMES = {
    "text": ("text", "texts"),
    "table": ("row", "rows"),
    "image": ("image", "images"),
    "audio": ("clip", "clips"),
    "series": ("history", "histories"),
    "events": ("history", "histories"),
}
"""How a request calls what a model is asked about: one, and several."""


def _records(content: Any, engine: Engine) -> list[Any]:
    """Return what a request asks about, or refuse it with the reason."""
    one, several = _NAMES[engine.modality]
    if not isinstance(content, dict) or set(content) not in ({several}, {one}):
        raise _RefusedError(400, f'send {{"{several}": […]}} or {{"{one}": …}}, and nothing else')
    questions = content[several] if several in content else [content[one]]
    if not isinstance(questions, list):
        raise _RefusedError(400, f"{several} must be a list")
    if not 1 <= len(questions) <= MAX_TEXTS:
        raise _RefusedError(422, f"send 1 to {MAX_TEXTS} {several}, not {len(questions)}")
    records = []
    for number, question in enumerate(questions):
        try:
            record = engine.reader.parse(question)
        except InputError as error:
            status = 422 if isinstance(error, DataError) else 400
            raise _RefusedError(status, f"{one} {number}: {error.what}") from None
        if not engine.reader.clean(record):
            raise _RefusedError(422, f"{one} {number} is empty")
        records.append(record)
    return records


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def serve_forever(engine: Engine, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    engine : Engine
    host, port : str, int
        Port 0 takes a free one.
    ready : callable
        Told the address once requests are taken.
    """
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    service = application(engine, hosts)
    config = uvicorn.Config(service, host=host, port=port, log_level="warning", lifespan="off")
    with config.bind_socket() as listener:
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        listener.listen()
        ready(f"http://{shown}:{number}")
        uvicorn.Server(config).run(sockets=[listener])
