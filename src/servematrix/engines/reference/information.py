"""Routes that tell about the server: its arguments, model, load, metrics and paths."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from servematrix import __version__
from servematrix.engines.reference import arguments, exchange, telemetry
from servematrix.engines.reference.answers import WEIGHT_VERSION
from servematrix.engines.reference.scheduler import Scheduler
from servematrix.engines.reference.schemas import (
    BadRequestError,
    DetokenizeBody,
    TokenizeBody,
    read,
)
from servematrix.engines.reference.service import Service

ENGINE = "servematrix-reference"
VERSION = f"reference-{__version__}"
MEMORY = {"weight": 0.0, "kvcache": 0.0, "graph": 0.0}  # GB: a simulated device has none


async def root(request: Request) -> Response:
    """GET /."""
    return exchange.json_answer("SGLang is running")


async def model_info(request: Request) -> Response:
    """GET /model_info and /get_model_info."""
    options = exchange.service(request).options
    return exchange.json_answer(
        {
            "model_path": options.model_path,
            "tokenizer_path": options.model_path,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": WEIGHT_VERSION,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": "servematrix-ngram",
            "architectures": ["ServematrixReferenceModel"],
        }
    )


async def server_info(request: Request) -> Response:
    """GET /server_info and /get_server_info."""
    service = exchange.service(request)
    known = arguments.as_server_info(service.options)
    return exchange.json_answer(
        known
        | {
            "status": "ready",
            "max_total_num_tokens": service.limits.capacity,
            "max_req_input_len": service.limits.longest_input,
            "internal_states": [_internal(service, item, known) for item in service.schedulers],
            "version": VERSION,
            "kv_events": None,
            "engine": ENGINE,
            "time_scale": service.options.time_scale,
        }
    )


def _internal(service: Service, scheduler: Scheduler, known: dict[str, Any]) -> dict[str, Any]:
    state = known | {
        "max_speculative_num_draft_tokens": service.options.speculative_num_draft_tokens,
        "pp_max_micro_batch_size": service.limits.running,
        "last_gen_throughput": scheduler.ledger.throughput,
        "memory_usage": MEMORY | {"token_capacity": service.limits.capacity},
        "effective_max_running_requests_per_dp": service.limits.running,
    }
    del state["custom_sigquit_handler"]
    if scheduler.ledger.accept_length is not None:
        state["avg_spec_accept_length"] = round(scheduler.ledger.accept_length, 2)
    return state


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service = exchange.service(request)
    card = {
        "id": service.options.served_model_name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "sglang",
        "root": service.options.served_model_name,
        "parent": None,
        "max_model_len": service.limits.context,
    }
    return exchange.json_answer({"object": "list", "data": [card]})


async def get_load(request: Request) -> Response:
    """GET /get_load, the older form."""
    service = exchange.service(request)
    return exchange.json_answer(
        [
            {
                "dp_rank": rank,
                "num_reqs": len(scheduler.sequences),
                "num_waiting_reqs": len(scheduler.waiting),
                "num_tokens": scheduler.used_tokens,
                "num_pending_tokens": _pending(scheduler),
                "ts_tic": time.perf_counter(),
            }
            for rank, scheduler in enumerate(service.schedulers)
        ]
    )


async def loads(request: Request) -> Response:
    """GET /v1/loads."""
    started = time.perf_counter()
    service = exchange.service(request)
    answer = exchange.json_answer(
        {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": VERSION,
            "loads": [
                _load(service, rank, scheduler) for rank, scheduler in enumerate(service.schedulers)
            ],
        }
    )
    if service.telemetry is not None:
        service.telemetry.observe("get_loads_duration_seconds", time.perf_counter() - started)
    return answer


def _load(service: Service, rank: int, scheduler: Scheduler) -> dict[str, Any]:
    capacity, used = service.limits.capacity, scheduler.used_tokens
    return {
        "timestamp": time.time(),
        "dp_rank": rank,
        "num_running_reqs": len(scheduler.running),
        "num_waiting_reqs": len(scheduler.waiting),
        "num_waiting_uncached_tokens": _pending(scheduler),
        "num_used_tokens": used,
        "num_total_tokens": used + _pending(scheduler),
        "max_total_num_tokens": capacity,
        "max_running_requests": service.limits.running,
        "token_usage": min(1.0, used / capacity),
        "gen_throughput": scheduler.ledger.throughput,
        "cache_hit_rate": scheduler.ledger.cache_hit_rate,
        "utilization": 0.0,
        "memory": {
            "weight_gb": MEMORY["weight"],
            "kv_cache_gb": MEMORY["kvcache"],
            "graph_gb": MEMORY["graph"],
            "token_capacity": capacity,
        },
        "disaggregation": {
            "mode": "null",
            "prefill_bootstrap_queue_reqs": 0,
            "prefill_inflight_queue_reqs": 0,
            "decode_prealloc_queue_reqs": 0,
            "decode_transfer_queue_reqs": 0,
            "decode_retracted_queue_reqs": 0,
            "kv_transfer_speed_gb_s": 0.0,
            "kv_transfer_latency_ms": 0.0,
        },
        "queues": {
            "waiting": len(scheduler.waiting),
            "grammar": 0,
            "paused": 0,
            "retracted": 0,
        },
    }


def _pending(scheduler: Scheduler) -> int:
    return sum(len(item.prompt) - item.prefilled for item in scheduler.waiting)


async def metrics(request: Request) -> Response:
    """GET /metrics; there is no such path without ``--enable-metrics``."""
    found = exchange.service(request).telemetry
    if found is None:
        raise HTTPException(404, "Not Found")
    return Response(found.render(), headers={"content-type": telemetry.CONTENT_TYPE})


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    wanted = read(TokenizeBody, await exchange.body(request))
    service = exchange.service(request)
    tokens: list[int] | list[list[int]]
    count: int | list[int]
    if isinstance(wanted.prompt, str):
        tokens = service.model.tokenizer.encode(wanted.prompt)
        count = len(tokens)
    else:
        tokens = [service.model.tokenizer.encode(text) for text in wanted.prompt]
        count = [len(entry) for entry in tokens]
    content = {"tokens": tokens, "count": count, "max_model_len": service.limits.context}
    return exchange.json_answer(content)


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    tokens = read(DetokenizeBody, await exchange.body(request)).tokens
    tokenizer = exchange.service(request).model.tokenizer
    single = [entry for entry in tokens if isinstance(entry, int)]
    several = [entry for entry in tokens if isinstance(entry, list)]
    for token in [*single, *(token for entry in several for token in entry)]:
        if not 0 <= token < tokenizer.vocabulary_size:
            raise BadRequestError(f"Error decoding tokens: {token} is outside the vocabulary.")
    decoded = [tokenizer.decode(entry) for entry in several]
    return exchange.json_answer({"text": decoded if several else tokenizer.decode(single)})


async def openapi(request: Request) -> Response:
    """GET /openapi.json: the paths and methods, without schemas."""
    paths: dict[str, dict[str, Any]] = {}
    for route in request.app.routes:
        for method in sorted(route.methods - {"HEAD"}):
            summary = (route.endpoint.__doc__ or "").partition(":")[0]
            paths.setdefault(route.path, {})[method.lower()] = {"summary": summary}
    info = {"title": ENGINE, "version": VERSION}
    return exchange.json_answer({"openapi": "3.1.0", "info": info, "paths": paths})
