"""The server as an ASGI application: paths, limits, streams, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from intaglio.dialects.json_file import JSON
from intaglio.runtime.serve.answers import Writer
from intaglio.runtime.serve.engine import Engine, Event, Finish, Job, Piece
from intaglio.runtime.serve.errors import RequestError
from intaglio.runtime.serve.metrics import Metrics
from intaglio.runtime.serve.models import Models
from intaglio.runtime.serve.requests import read_request
from intaglio.runtime.terminal import say

BODY_SECONDS = 30.0
"""In which a body must be there."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_METRICS = "text/plain; version=0.0.4; charset=utf-8"

Handler = Callable[[Request], Awaitable[Response]]


class App:
    """Answers requests.

    Args:
        models: what is served.
        engine: what runs it; started and stopped with the application.
        metrics: what is counted.
        largest_body: bytes of a request.
        only_local: whether requests must name this machine, as those do that are not made by a
            page of somebody else's in a browser here.
    """

    def __init__(
        self,
        models: Models,
        engine: Engine,
        metrics: Metrics,
        *,
        largest_body: int,
        only_local: bool = True,
    ) -> None:
        self._models, self._engine, self._metrics = models, engine, metrics
        self._largest, self._only_local = largest_body, only_local

    def asgi(self) -> Starlette:
        """The application."""
        routes = [
            ("/health", self._health, "GET"),
            ("/metrics", self._show_metrics, "GET"),
            ("/v1/models", self._list, "GET"),
            ("/v1/models/{name:path}", self._one, "GET"),
            ("/v1/completions", self._complete, "POST"),
            ("/v1/chat/completions", self._chat, "POST"),
        ]

        async def unknown(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            what = f"there is no {request.url.path[:200]} here"
            if error.status_code == 405:
                what = f"{request.url.path[:200]} takes no {request.method}"
            self._metrics.add("requests_total", path="other", status=str(error.status_code))
            code = "unknown_url" if error.status_code == 404 else None
            return _error(RequestError(error.status_code, what, code=code))

        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            self._engine.start()
            try:
                yield
            finally:
                await run_in_threadpool(self._engine.stop)

        return Starlette(
            routes=[
                Route(path, self._guarded(path, handler), methods=[method])
                for path, handler, method in routes
            ],
            exception_handlers={404: unknown, 405: unknown},
            lifespan=life,
        )

    def _guarded(self, path: str, handler: Handler) -> Handler:
        """A handler whose errors are answers, and whose answers are counted."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_host(request)
                response = await handler(request)
            except RequestError as error:
                response = _error(error)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as error:
                say(f"{path} failed: {type(error).__name__}: {error}\n")
                response = _error(RequestError(500, "the server failed; its log says more"))
            self._metrics.add("requests_total", path=path, status=str(response.status_code))
            return response

        return guarded

    def _check_host(self, request: Request) -> None:
        if self._only_local and (request.url.hostname or "") not in _LOOPBACK:
            raise RequestError(
                400, "the server is for this machine: ask it as localhost", code="invalid_host"
            )

    # What there is

    async def _health(self, request: Request) -> Response:
        if self._engine.failed is not None:
            return _json({"status": "failed"}, 503)
        return _json({"status": "ok", "engine": self._engine.name, "model": self._models.name})

    async def _show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._metrics.text(), media_type=_METRICS)

    async def _list(self, request: Request) -> Response:
        entries: list[JSON] = [self._models.entry(name) for name in self._models]
        return _json({"object": "list", "data": entries})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._models.check(name)
        return _json(self._models.entry(name))

    # Completions

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(400, "the content type is not application/json")
        wanted = read_request(await self._body(request), chat=chat)
        task = await run_in_threadpool(self._models.task, wanted)
        writer = Writer(
            name=f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            model=wanted.model,
            chat=chat,
            created=int(time.time()),
            about=self._models.about(task),
            word=self._models.word,
            fingerprint=self._models.fingerprint,
            logprobs=wanted.logprobs is not None,
            token_ids=wanted.token_ids,
            usage=wanted.usage,
        )
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:
                # The loop has ended, and nobody is left to be told.
                job.gone.set()

        job = Job(task, tell)
        self._engine.submit(job)
        if wanted.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            parts = _stream(job, events, writer)
            return StreamingResponse(parts, media_type="text/event-stream", headers=headers)
        return await _whole(request, job, events, writer)

    async def _body(self, request: Request) -> bytes:
        """The body, of which no more is read than is allowed.

        Raises:
            RequestError: it is larger, or does not come.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > self._largest:
                        raise RequestError(
                            413,
                            f"the body has more than {self._largest:,} bytes",
                            code="body_too_large",
                        )
                    parts.append(part)
        except TimeoutError:
            raise RequestError(
                408, f"the body was not there after {BODY_SECONDS:g} s", code="timeout"
            ) from None
        return b"".join(parts)


async def _stream(job: Job, events: asyncio.Queue[Event], writer: Writer) -> AsyncIterator[str]:
    """The parts of an answer. Where the client leaves, the generator is closed."""
    try:
        for line in writer.begin():
            yield line
        while True:
            event = await events.get()
            match event:
                case Piece():
                    lines = writer.part(event)
                case Finish():
                    lines = writer.end(event)
                case RequestError():
                    lines = writer.failed(event)
            for line in lines:
                yield line
            if not isinstance(event, Piece):
                return
    finally:
        job.gone.set()


async def _whole(
    request: Request, job: Job, events: asyncio.Queue[Event], writer: Writer
) -> Response:
    """The answer in one; nothing where the client left before it was there."""

    async def collect() -> Response:
        pieces: list[Piece] = []
        while isinstance(event := await events.get(), Piece):
            pieces.append(event)
        if isinstance(event, RequestError):
            raise event
        return _json(writer.whole(pieces, event))

    async def left() -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response(status_code=499)

    tasks = [asyncio.create_task(collect()), asyncio.create_task(left())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return (tasks[0] if tasks[0] in done else tasks[1]).result()
    finally:
        job.gone.set()
        for task in tasks:
            task.cancel()


def _json(content: JSON, status: int = 200) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")


def _error(error: RequestError) -> Response:
    response = _json(error.content(), error.status)
    if error.status == 429:
        response.headers["Retry-After"] = "1"
    return response
