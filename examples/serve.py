"""An HTTP server around the embedded model: a queue, progress as server-sent events, cancellation, metrics, a page.

pip install "sdesamplers[serve]"                             # Python 3.11 or later
python examples/serve.py                                     # then open http://127.0.0.1:8000
python examples/serve.py --port 8080 --rows 32 --queue 200

Whoever reaches the port may use it. For others than yourself, put a proxy in front that authenticates them and limits
the time that a client may take to send its request.
"""

import argparse
import asyncio
import io
import json
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
from safetensors.torch import save

import sdesamplers as sds
from sdesamplers.io.images import to_images

try:
    import uvicorn
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from fastapi.sse import EventSourceResponse
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from pydantic import BaseModel, ConfigDict, Field
    from serve_worker import ENDS, Job, Limits, Refused, Status, Worker, log, message_of
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; it is installed by: pip install 'sdesamplers[serve]' (Python 3.11 or later)") from None

MODEL = "fashion-mnist"
PAGE = Path(__file__).with_name("serve.html")
STEPS, SAMPLES, SEED = 100, 16, 2**53 - 1  # the largest; a browser's numbers are exact up to this seed
INTERVAL = 0.05
"""Seconds between two looks at a request's progress, so that streams cost the same whatever the network's speed."""


class SampleRequest(BaseModel):
    """What a client sends; `sds.sample(model, sampler, steps=, seed=, num_samples=)` has the same samples."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sampler: str = Field("dpmpp-2m", max_length=64)
    steps: int = Field(20, ge=1, le=STEPS)
    seed: int = Field(0, ge=0, le=SEED)
    num_samples: int = Field(1, ge=1, le=SAMPLES)


async def get_worker(request: Request) -> Worker:
    """The worker of the application."""
    return request.app.state.worker


WorkerOf = Annotated[Worker, Depends(get_worker)]


async def get_job(id: str, worker: WorkerOf) -> Job:
    """The request that a path names."""
    job = worker.find(id)
    if job is None:
        raise HTTPException(404, "there is no such request, or it is no longer kept")
    return job


JobOf = Annotated[Job, Depends(get_job)]


async def get_result(job: JobOf) -> sds.Result:
    """The result of the request that a path names."""
    if job.result is None:
        raise HTTPException(409, f"this request has no samples: it is {job.status.state}")
    return job.result


ResultOf = Annotated[sds.Result, Depends(get_result)]


async def take_stream(request: Request, worker: WorkerOf) -> AsyncIterator[None]:
    """A place for a stream of events, until it ends."""
    places: asyncio.Semaphore = request.app.state.streams
    if places.locked():
        worker.metrics.refused.labels("streams").inc()
        raise later(f"{worker.limits.streams} streams are open, and more are not accepted; read the request itself")
    async with places:
        with worker.metrics.streams.track_inprogress():
            yield


def later(message: str) -> HTTPException:
    """The response to a request that may be repeated."""
    return HTTPException(503, message, headers={"Retry-After": "1"})


async def invalid(request: Request, error: Exception) -> JSONResponse:
    """The response to a request of another form: its faults, without what was sent."""
    assert isinstance(error, RequestValidationError)
    named = [
        ([str(place) for place in each["loc"][1:] if isinstance(place, str)], each["msg"]) for each in error.errors()
    ]
    faults = [f"{'.'.join(places) or 'the body'}: {message}" for places, message in named]
    return JSONResponse({"detail": "; ".join(faults)}, 422)


def new_app(worker: Worker, hosts: Sequence[str] = ("127.0.0.1", "localhost")) -> FastAPI:
    """The application.

    Args:
        worker: has the model and the queue.
        hosts: the names under which browsers may reach it. Others are refused, since a page of another site can let
            its own name refer to this machine.
    """
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="sdesamplers", docs_url=None, redoc_url=None, max_body_size=worker.limits.body)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_exception_handler(RequestValidationError, invalid)
    app.state.worker, app.state.streams = worker, asyncio.Semaphore(worker.limits.streams)
    app.include_router(routes)
    return app


routes = APIRouter()


@routes.get("/")
async def page() -> HTMLResponse:
    """The page for a browser; it takes nothing from other servers, and runs no script but its own."""
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
    policy += "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return HTMLResponse(PAGE.read_text("utf-8").replace("{nonce}", nonce), headers={"Content-Security-Policy": policy})


@routes.get("/api/info")
async def info(worker: WorkerOf) -> dict[str, Any]:
    """The model, the limits, and the samplers that are offered."""
    samplers = [
        {"name": name, "summary": spec.summary, "stochastic": spec.stochastic, "limits": spec.limits}
        for name, spec in sorted(worker.samplers.items())
    ]
    limits = {"steps": STEPS, "num_samples": SAMPLES, "seed": SEED, **asdict(worker.limits)}
    return {"model": worker.model.name, "shape": worker.model.shape, "limits": limits, "samplers": samplers}


@routes.post("/api/requests", status_code=202)
def add(wanted: SampleRequest, worker: WorkerOf, response: Response) -> Status:
    """Accept a request for samples."""
    try:
        job = worker.add(**wanted.model_dump())
    except Refused as error:
        raise later(str(error)) from None
    except Exception as error:  # of a sampler, whoever wrote it
        raise HTTPException(422, message_of(error)) from None
    response.headers["Location"] = f"/api/requests/{job.id}"
    return job.status


@routes.get("/api/requests/{id}")
async def read(job: JobOf) -> Status:
    """The state of a request."""
    return job.status


@routes.delete("/api/requests/{id}")
def cancel(job: JobOf, worker: WorkerOf) -> Status:
    """Cancel a request, and return its state; if it has ended, it stays as it is."""
    worker.cancel(job)
    return job.status


@routes.get("/api/requests/{id}/events", response_class=EventSourceResponse)
async def events(job: JobOf, place: Annotated[None, Depends(take_stream)]) -> AsyncIterator[Status]:
    """The states of a request until it ends. A client that loses the stream may open another; nothing depends on it."""
    last = None
    while True:  # FastAPI ends this when the client is gone
        status = job.status
        if status != last:
            yield status
        if status.state in ENDS:
            break
        last = status
        await asyncio.sleep(INTERVAL)


@routes.get("/api/requests/{id}/samples/{number}.png")
def picture(number: int, job: JobOf, result: ResultOf, worker: WorkerOf) -> Response:
    """A sample as a picture."""
    if not 0 <= number < job.num_samples:
        raise HTTPException(404, f"this request has the samples 0 to {job.num_samples - 1}")
    file = io.BytesIO()
    to_images(result.samples[number : number + 1], worker.model.data_range)[0].save(file, "PNG")
    job.unread.discard(number)
    return Response(file.getvalue(), media_type="image/png")


@routes.get("/api/requests/{id}/samples.safetensors")
def samples(job: JobOf, result: ResultOf, worker: WorkerOf) -> Response:
    """All samples, in the model's numbers, with the recipe that made them."""
    facts = {"model": worker.model.name, "seed": result.seed, "recipe": result.recipe.as_dict()}
    # A single key: safetensors writes several in an order that changes from run to run.
    data = save({"samples": result.samples.contiguous()}, {"sdesamplers": json.dumps(facts)})
    job.unread.clear()
    return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": "attachment"})


@routes.get("/metrics")
def metrics(worker: WorkerOf) -> Response:
    """The counters, in the text format of Prometheus."""
    return Response(generate_latest(worker.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@routes.get("/health")
async def health(worker: WorkerOf) -> dict[str, str]:
    """200 if requests are accepted, else 503."""
    if worker.is_closing or not worker.is_alive:
        raise later("the server is shutting down" if worker.is_closing else "the worker has stopped")
    return {"status": "ok"}


class Server(uvicorn.Server):
    """A server that finishes what it has accepted before it exits on Ctrl-C or SIGTERM; a second signal cancels it.

    Args:
        worker: as in `new_app`.
        hosts: as in `new_app`.
        grace: seconds for requests that have been accepted to finish and to be fetched.
    """

    def __init__(self, worker: Worker, hosts: Sequence[str] = ("127.0.0.1", "localhost"), grace: float = 30.0) -> None:
        self.worker, self.grace = worker, grace
        super().__init__(
            uvicorn.Config(
                new_app(worker, hosts),
                http="h11",  # which limits headers to 64 KiB
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                limit_concurrency=worker.limits.connections,
                timeout_graceful_shutdown=5,
                headers=[("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")],
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to close, in a thread, since the server has to serve meanwhile."""
        threading.Thread(target=self.close, daemon=True).start()

    def close(self) -> None:
        """Close the worker, then the server."""
        log.info("shutting down: requests have %g seconds to finish; a second signal cancels them", self.grace)
        log.info("shutting down: %s", self.worker.close(self.grace))
        self.should_exit = not self.worker.is_alive


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def host_name(text: str) -> str:
    """A name, or a pattern that begins with `*.`, for argparse."""
    if text != "*" and (not text or "*" in text.removeprefix("*.")):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a name, such as example.org or *.example.org, nor *")
    return text


def main() -> None:
    """Load the model, listen, and serve until a signal."""
    usual = Limits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default only this machine has it")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    parser.add_argument(
        "--allow-host",
        type=host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which browsers reach this server, such as its own or a proxy's; * for any",
    )
    parser.add_argument("--threads", type=positive, help="threads of the network; by default torch's")
    parser.add_argument("--rows", type=positive, default=usual.rows, help="rows of a batch of the network")
    parser.add_argument("--queue", type=positive, default=usual.queue, help="accepted requests that are not finished")
    parser.add_argument("--keep", type=positive, default=600, help="seconds for which finished samples are kept")
    parser.add_argument("--kept", type=positive, default=usual.kept, help="finished requests that are kept")
    parser.add_argument("--streams", type=positive, default=usual.streams, help="open streams of events")
    parser.add_argument("--grace", type=positive, default=30, help="seconds for requests to finish after a signal")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("uvicorn", "sdesamplers"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        listening = socket.create_server((args.host, args.port))
    except (OSError, OverflowError) as error:
        place = f"{args.host}:{args.port}"
        raise SystemExit(f"cannot listen on {place}: {error}; choose another --host or --port") from None
    if args.threads:
        torch.set_num_threads(args.threads)
    limits = Limits(queue=args.queue, rows=args.rows, kept=args.kept, keep_seconds=args.keep, streams=args.streams)
    hosts = [args.host, "127.0.0.1", "localhost", *args.allow_host]
    worker = Worker(sds.load(MODEL), limits)
    worker.planned(worker.samplers["dpmpp-2m"], 20)  # torch loads some of its parts late: now, and not for a client
    server = Server(worker, hosts, args.grace)
    log.info("%s is served at http://%s:%d", MODEL, *listening.getsockname()[:2])
    server.run(sockets=[listening])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # while the model is loaded; afterwards the server takes the signal
        raise SystemExit(130) from None
