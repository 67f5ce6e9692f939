"""What a server's log says of its start, line by line as SGLang writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from malforming import LOUD
from servematrix.engines.phases import NOTHING, Phase, StartLog, phase_of

BAR = "Capturing batches (bs=4 avail_mem=18.72 GB):  33%|███▎      | 1/3 [00:03<00:07,  3.93s/it]"


@pytest.mark.parametrize(
    ("told", "name", "detail"),
    [
        # SGLang 0.5.16 on a CPU
        ("server_args=ServerArgs(model_path='m', tokenizer_path='m')", "reads its arguments", ""),
        ("Init torch distributed begin.", "sets up torch.distributed", ""),
        ("Init torch distributed ends. elapsed=0.03 s", "torch.distributed is set up", ""),
        ("Load weight begin. avail mem=20.54 GB", "loads weights", ""),
        (
            "Multi-thread loading shards: 100% Completed | 3/4 [00:00<00:00,  5.51it/s]",
            "loads weights",
            "3 of 4 shards",
        ),
        ("Load weight end. elapsed=0.24 s, type=LlamaForCausalLM", "weights are loaded", ""),
        (
            "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 65536, K size: 0.70 GB",
            "allocates memory pools",
            "KV cache of 65536 tokens",
        ),
        ("Memory pool end. avail mem=18.35 GB", "memory pools are allocated", ""),
        ("INFO:     Uvicorn running on http://127.0.0.1:31000", "listens", ""),
        ("Prefill batch, #new-seq: 1, #new-token: 6", "generates its first tokens", ""),
        ("The server is fired up and ready to roll!", "says that it is ready", ""),
        # on GPUs, of this and of older versions
        (
            "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03,  1.1s/it]",
            "loads weights",
            "1 of 4 shards",
        ),
        ("KV Cache is allocated. #tokens: 15387, K size: 0.82 GB", "allocates memory pools", "KV "),
        ("Capture cuda graph begin. This can take up to", "captures graphs", "cuda graph"),
        (
            "Capture target verify CUDA graph begin. backend=full",
            "captures graphs",
            "target verify CUDA graph",
        ),
        (BAR, "captures graphs", "1 of 3, batch size 4"),
        (
            "Capturing batches (avail_mem=12.55 GB):   0%|      | 0/23 [00:00<?, ?it/s]",
            "captures graphs",
            "0 of 23",
        ),
        (
            "Capturing num tokens (num_tokens=64 avail_mem=9.1 GB): 50%|██ | 2/4 [00:00<?, ?it/s]",
            "captures graphs",
            "2 of 4, 64 tokens",
        ),
        (
            "Compiling num tokens (num_tokens=64): 50%|██ | 2/4 [00:00<?, ?it/s]",
            "compiles graphs",
            "2 of 4, 64 tokens",
        ),
        ("Capture cuda graph end. Time elapsed: 5.37 s.", "graphs are captured", "cuda graph"),
        ("Running FlashInfer autotune with cache: /x", "tunes FlashInfer kernels", ""),
    ],
)
def test_a_line_tells_its_phase(told: str, name: str, detail: str) -> None:
    found = phase_of(f"[2026-11-22 16:30:14 TP0] {told}")
    assert found is not None
    assert found.name == name
    assert found.detail.startswith(detail)
    assert bool(found.detail) == bool(detail)


def test_other_lines_tell_none() -> None:
    for told in ("Ignore import error when loading sglang.srt.models", "", "graph", "1/3 [00:00"):
        assert phase_of(told) is None


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def test_a_log_that_grows(log: Path) -> None:
    start = StartLog(log)
    assert start.phase() == NOTHING
    with log.open("ab", buffering=0) as file:
        file.write(b"[2026-11-22 16:30:14] Load weight begin. avail mem=2")
        assert start.phase() == Phase("loads weights")
        file.write(b"0.54 GB\nsomething else\n")
        assert start.phase() == Phase("loads weights"), "until another line tells of another"
        bar = BAR.encode()
        file.write(b"\r" + bar[:30])
        assert start.phase() == Phase("loads weights"), "half a bar tells nothing"
        file.write(bar[30:])
        assert start.phase() == Phase("captures graphs", "1 of 3, batch size 4")
        file.write(b"\r" + bar.replace(b"1/3", b"2/3").replace(b"bs=4", b"bs=2"))
        assert start.phase() == Phase("captures graphs", "2 of 3, batch size 2")
        file.write(b"\n[2026-11-22 16:30:15] Capture cuda graph end. Time elapsed: 5.37 s\n")
        assert start.phase() == Phase("graphs are captured", "cuda graph")


def test_what_no_line_tells_is_the_last_line_as_it_stands(log: Path) -> None:
    start = StartLog(log)
    log.write_text(f"[2026-11-22 16:30:14] first\n[2026-11-22 16:30:14] then {LOUD}{'x' * 99}\n\n")
    told = start.phase().name
    assert told.startswith("then ")
    assert told.isprintable()
    assert "x" * 99 not in told, "it is shortened"


def test_a_log_that_is_written_anew_is_read_anew(log: Path) -> None:
    start = StartLog(log)
    log.write_text("Load weight begin\n" * 100)
    start.phase()
    log.with_name("other").write_text("Memory pool end\n")
    log.with_name("other").replace(log)
    assert start.phase() == Phase("memory pools are allocated")


def test_the_end_of_a_huge_log_is_enough(log: Path) -> None:
    log.write_bytes(b"x" * 3_000_000 + b"\nLoad weight begin\n")
    start = StartLog(log)
    assert start.phase() == Phase("loads weights")
    with log.open("ab") as file:
        file.write(b"\n" + b"y" * 100_000)
    start.phase()
    assert len(start._unended) <= 4096


def test_the_beginning_of_a_huge_line_is_enough(log: Path) -> None:
    log.write_bytes(b"Memory pool end " + b"x" * 5000 + b" Load weight begin\n")
    assert StartLog(log).phase() == Phase("memory pools are allocated")
    log.write_bytes(b"x" * 5000 + b" Load weight begin\n")
    assert StartLog(log).phase().name.startswith("xxx"), "what is not looked at tells nothing"
