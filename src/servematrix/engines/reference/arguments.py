"""The command line: those of SGLang's flags that configurations use, with SGLang's names.

An argument that this server does not know ends it with a usage error, as SGLang does; one that
it knows but cannot simulate ends it with a sentence. Some flags (backends, data types) are
taken and reported in /server_info and have no effect on a simulated device.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from servematrix.engines.reference.device import DEFAULT_TIME_SCALE
from servematrix.engines.reference.faults.catalogue import UnknownFaultError
from servematrix.engines.reference.faults.catalogue import parse as parse_faults

API_KEY_VARIABLE = "SERVEMATRIX_API_KEY"
DEVICE_TIMER_VARIABLE = "SGLANG_ENABLE_METRICS_DEVICE_TIMER"
HIDDEN = "***"
OWN = ("time_scale", "fault")
"""Arguments that SGLang does not have; a server does not tell its faults."""
DEFAULT_CONTEXT = 16_384
DEFAULT_CAPACITY = 262_144
DEFAULT_RUNNING = 256
DEFAULT_GRAPH_BATCH = 256
SPECULATIVE_ALGORITHMS = ("EAGLE", "EAGLE3", "STANDALONE")


class StartError(Exception):
    """The server cannot start; the message says why and what to change. Exit status 1."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line; a usage error ends the process with status 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        loopback = options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        parser.error(
            f"--host {options.host}: the reference server listens on loopback only; "
            "use 127.0.0.1, ::1 or localhost"
        )
    if options.speculative_algorithm is not None:
        _check_speculation(parser, options)
    try:
        options.fault = parse_faults(options.fault)
    except UnknownFaultError as error:
        parser.error(f"--fault: {error}")
    if options.api_key is None:
        options.api_key = os.environ.get(API_KEY_VARIABLE) or None
    options.served_model_name = options.served_model_name or options.model_path
    return options


def check_model(options: argparse.Namespace) -> None:
    """Raises StartError for a model path that names a place on disk where nothing is."""
    flags = {
        "--model-path": options.model_path,
        "--speculative-draft-model-path": options.speculative_draft_model_path,
    }
    for flag, path in flags.items():
        if path and path.startswith(("/", "./", "../", "~")) and not Path(path).exists():
            raise StartError(f"{flag} {path}: there is no such file or folder")


def device_timer(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for device timing, read as SGLang reads booleans."""
    return environment.get(DEVICE_TIMER_VARIABLE, "").lower() in ("1", "true", "yes", "y")


def as_server_info(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments under SGLang's names: the recorded defaults with what was given on top."""
    recorded = resources.files(__package__).joinpath("server_arguments.json")
    info: dict[str, Any] = json.loads(recorded.read_text(encoding="utf-8"))
    given = {name: value for name, value in vars(options).items() if name not in OWN}
    batch = options.cuda_graph_max_bs_decode
    given["tokenizer_path"] = options.model_path
    given["api_key"] = HIDDEN if options.api_key else None
    given["device"] = "simulated"
    given["cuda_graph_config"] = {
        "decode": _graphs(not options.disable_cuda_graph, batch),
        "prefill": _graphs(not options.disable_cuda_graph, options.chunked_prefill_size),
    }
    return info | given


def _graphs(enabled: bool, largest: int) -> dict[str, Any]:
    sizes = [size for size in (2**power for power in range(14)) if size <= largest]
    return {
        "backend": "simulated" if enabled else "disabled",
        "max_bs": largest,
        "bs": sizes if enabled else [],
        "tc_compiler": "none",
        "full_prefill_max_req": None,
    }


def _check_speculation(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.speculative_draft_model_path is None:
        parser.error("--speculative-algorithm needs --speculative-draft-model-path")
    steps = 3 if options.speculative_num_steps is None else options.speculative_num_steps
    topk = 1 if options.speculative_eagle_topk is None else options.speculative_eagle_topk
    tokens = options.speculative_num_draft_tokens
    tokens = steps + 1 if tokens is None else tokens
    if topk != 1 or tokens != steps + 1:
        parser.error(
            "the reference server drafts one chain: --speculative-eagle-topk must be 1 and "
            "--speculative-num-draft-tokens one more than --speculative-num-steps"
        )
    options.speculative_num_steps = steps
    options.speculative_eagle_topk = topk
    options.speculative_num_draft_tokens = tokens


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m servematrix.engines.reference",
        description="Servematrix's embedded server: SGLang's HTTP interface, a small language "
        "model, a simulated GPU.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-path", "--model", required=True, help="the name to serve under; no weights")
    add("--served-model-name")
    add("--host", default="127.0.0.1", help="a loopback address")
    add("--port", type=_port, default=30_000)
    add("--api-key", help=f"better: the environment variable {API_KEY_VARIABLE}")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error", "critical"))
    add("--random-seed", type=int, default=0)
    add("--trust-remote-code", action="store_true")
    add("--watchdog-timeout", type=float, default=300)
    _add_memory(parser)
    _add_device(parser)
    add("--enable-metrics", action="store_true")
    add("--decode-log-interval", type=_positive, default=40)
    add("--stream-interval", type=_positive, default=1)
    add("--speculative-algorithm", choices=SPECULATIVE_ALGORITHMS)
    add("--speculative-draft-model-path", "--speculative-draft-model")
    add("--speculative-num-steps", type=_positive)
    add("--speculative-eagle-topk", type=_positive)
    add("--speculative-num-draft-tokens", type=_positive)
    add(
        "--time-scale",
        type=_positive_number,
        default=DEFAULT_TIME_SCALE,
        help="simulated seconds per real second; not a flag of SGLang",
    )
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="be wrong in this way (`servematrix faults` lists them); several with commas; not a "
        "flag of SGLang",
    )
    return parser


def _add_memory(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--mem-fraction-static", type=_fraction, default=0.9)
    add("--context-length", type=_positive, help=f"default: {DEFAULT_CONTEXT}")
    add("--max-running-requests", type=_positive, help=f"default: {DEFAULT_RUNNING}")
    add("--max-total-tokens", type=_positive, help=f"default: {DEFAULT_CAPACITY}")
    add("--chunked-prefill-size", type=int, default=8_192, help="-1: no chunks")
    add("--disable-radix-cache", action="store_true")
    add("--load-format", default="auto")
    add("--dtype", default="auto")
    add("--kv-cache-dtype", default="auto")
    add("--quantization")


def _add_device(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--cuda-graph-max-bs-decode",
        "--cuda-graph-max-bs",
        type=_positive,
        default=DEFAULT_GRAPH_BATCH,
    )
    add("--disable-cuda-graph", action="store_true")
    add("--disable-overlap-schedule", action="store_true")
    add("--attention-backend")
    add("--sampling-backend")
    add("--tp-size", "--tp", "--tensor-parallel-size", type=_positive, default=1)
    add("--dp-size", "--dp", "--data-parallel-size", type=_positive, default=1)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65_535:
        raise argparse.ArgumentTypeError(f"{value} is no port")
    return value
