"""Starts the reference server: ``python -m servematrix.engines.reference --model-path NAME``.

The port is taken before anything else, so that a second server on it fails at once. The ready
line is logged last, after a token has come out.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator

import uvicorn

from servematrix.engines.reference import arguments, language
from servematrix.engines.reference.app import build
from servematrix.engines.reference.arguments import StartError
from servematrix.engines.reference.faults.starting import before_listening
from servematrix.engines.reference.information import ENGINE, VERSION
from servematrix.engines.reference.service import Service

READY = "The server is fired up and ready to roll!"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAFT_ORDER = 3  # tokens of memory of the draft model; the target has 32
KEEP_ALIVE_SECONDS = 75  # longer than a client pauses, so that it meets no closing connection
BACKLOG = 2_048  # connections that wait to be accepted

logger = logging.getLogger("servematrix.engines.reference")


def main() -> int:
    """Runs the server until a signal; 0 after a clean stop, 1 if it cannot start."""
    started = time.perf_counter()
    options = arguments.parse()
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level.upper(),
        format="[%(asctime)s] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    shown = {name: value for name, value in sorted(vars(options).items()) if name != "api_key"}
    logger.info("%s %s, server_args=%s", ENGINE, VERSION, shown)
    try:
        arguments.check_model(options)
        held = before_listening(options.fault)
        listener = _listen(options.host, options.port)
    except StartError as error:
        logger.error("Cannot start: %s", error)
        return 1
    with listener, held or contextlib.nullcontext():
        model = language.load()
        logger.info(
            "Load weight end. A language model of %d tokens of memory instead of %s.",
            model.order, options.model_path,
        )  # fmt: skip
        draft = None
        if options.speculative_algorithm is not None:
            same = options.speculative_draft_model_path == options.model_path
            draft = language.load(model.order if same else DRAFT_ORDER)
            logger.info("Draft model of %d tokens of memory.", draft.order)
        # The model is some 100,000 dictionaries that live as long as the process: a collection
        # that visits them stops the simulated device for 30 ms and finds nothing.
        gc.collect()
        gc.freeze()
        service = Service(options, model, draft)
        if service.telemetry is not None:
            for rank in service.telemetry.ranks:
                rank.set("engine_load_weights_time", time.perf_counter() - started)
        return asyncio.run(_serve(service, listener, started))


async def _serve(service: Service, listener: socket.socket, started: float) -> int:
    """Serves until a signal, status 0, or until a scheduler dies, status 1."""
    server = uvicorn.Server(
        uvicorn.Config(
            build(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
    )
    # Its own handlers would raise the signal again at the end: a clean stop is status 0 here.
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    service.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announcing = asyncio.create_task(_announce(service, server, listener, started))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, waiting, *service.tasks}, return_when=asyncio.FIRST_COMPLETED)
    failed = not service.alive or not stopping.is_set()
    logger.info("Stopping.")
    announcing.cancel()
    waiting.cancel()
    server.should_exit = True
    failures = await service.stop()
    for failure in failures:
        logger.error("A scheduler died.", exc_info=failure)
    await serving
    return int(failed)


async def _announce(
    service: Service, server: uvicorn.Server, listener: socket.socket, started: float
) -> None:
    """Logs that the server is ready once it listens and a token has come out."""
    while not server.started:
        await asyncio.sleep(0)
    if not await service.probe():
        logger.error("Cannot start: no token came out of the warm-up request.")
        server.should_exit = True
        return
    seconds = time.perf_counter() - started
    if service.telemetry is not None:
        for rank in service.telemetry.ranks:
            rank.set("engine_startup_time", seconds)
    host, port = listener.getsockname()[:2]
    logger.info("Serving %s on %s port %d.", service.options.served_model_name, host, port)
    logger.info(READY)


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the port, not yet listening; raises StartError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio sets TCP_NODELAY only where the protocol is known to be TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


if __name__ == "__main__":
    sys.exit(main())
