"""Options of a run: what pytest takes, and what `servematrix` says of those that it shares."""

from __future__ import annotations

from typing import Any

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--config",
        {
            "action": "append",
            "default": [],
            "metavar": "NAME",
            "dest": "servematrix_config",
            "help": "configuration to run: NAME, 'NAME(axis=value)' or all; may be repeated",
        },
    ),
    (
        "--engine",
        {
            "choices": ("auto", "sglang", "sglang-cpu", "reference"),
            "default": "auto",
            "help": "what serves; auto: SGLang where a GPU and SGLang are found, else reference",
        },
    ),
    ("--base-url", {"metavar": "URL", "help": "use the server that already runs there"}),
    (
        "--server-python",
        {
            "metavar": "PATH",
            "help": "Python of an environment that has SGLang (never this one)",
        },
    ),
    (
        "--sglang",
        {
            "metavar": "VERSION",
            "help": "SGLang version; its environment is made if it is not there",
        },
    ),
    ("--model", {"metavar": "PATH_OR_ID", "help": "serve this model instead"}),
    ("--draft-model", {"metavar": "PATH_OR_ID", "help": "speculate with this draft instead"}),
    (
        "--set",
        {
            "action": "append",
            "default": [],
            "metavar": "KEY=VALUE",
            "dest": "servematrix_set",
            "help": "change a key of the configuration, e.g. gates.fwd_occupancy.threshold=96;"
            " KEY@=VARIABLE takes a secret from the environment",
        },
    ),
    (
        "--shard",
        {
            "metavar": "N/M",
            "help": "run the cells of one shard of M, dealt by recorded durations, such as 2/4",
        },
    ),
    (
        "--cell-durations",
        {
            "metavar": "FILE",
            "help": "recorded durations of cells (configs/durations.json)",
        },
    ),
    (
        "--results",
        {
            "metavar": "DIR",
            "default": "results",
            "help": "root of the run folders (results/)",
        },
    ),
    (
        "--resume",
        {
            "metavar": "RUN",
            "help": "take up a run that was cut short: its folder, its name, or latest",
        },
    ),
    (
        "--gpus",
        {
            "metavar": "LIST",
            "help": "GPUs for the server: positions or UUIDs, counted within CUDA_VISIBLE_DEVICES",
        },
    ),
    (
        "--executor",
        {
            "choices": ("local", "ray"),
            "default": "local",
            "help": "where cells run: here, or as tasks of a Ray cluster (docs/cluster.md)",
        },
    ),
    (
        "--ray-address",
        {
            "metavar": "HOST:PORT",
            "help": "the Ray cluster (RAY_ADDRESS, else a Ray of this run's own); auto: the one"
            " that this machine is a node of",
        },
    ),
    (
        "--ray-wait",
        {
            "type": float,
            "default": 0.0,
            "metavar": "SECONDS",
            "help": "how long a cell waits for a node that could take it, where an autoscaler"
            " adds nodes (0)",
        },
    ),
    ("--port", {"type": int, "default": 0, "help": "port of the server (0: a free one)"}),
    (
        "--start-deadline",
        {
            "type": float,
            "metavar": "SECONDS",
            "help": "how long a server may take to start (900; reference: 30)",
        },
    ),
    (
        "--gpu-deadline",
        {
            "type": float,
            "default": 3600.0,
            "metavar": "SECONDS",
            "help": "how long a cell may wait for its GPUs (3600; 0: not at all)",
        },
    ),
    (
        "--retry-errors",
        {
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": "launch again, up to N times, where the machine was at fault: no free GPU, a "
            "stranger on it, a download that was cut; a failed gate is never run again",
        },
    ),
    (
        "--api-key-env",
        {
            "metavar": "NAME",
            "help": "environment variable that holds the server's API key",
        },
    ),
    (
        "--hellaswag",
        {
            "metavar": "PATH",
            "help": "HellaSwag items from a local .jsonl or .jsonl.gz file",
        },
    ),
    (
        "--configs",
        {
            "metavar": "DIR",
            "dest": "servematrix_configs",
            "help": "folder of configurations (the nearest configs/)",
        },
    ),
    (
        "--baselines",
        {
            "metavar": "DIR",
            "help": "folder of the baselines that runs are held to (baselines/ beside configs/)",
        },
    ),
    (
        "--no-baseline",
        {"action": "store_true", "help": "hold this run to no baseline"},
    ),
    (
        "--waivers",
        {
            "metavar": "FILE",
            "dest": "servematrix_waivers",
            "help": "known failures (waivers.toml among the configurations)",
        },
    ),
    (
        "--no-report",
        {"action": "store_true", "help": "write no report.html at the end of the run"},
    ),
    (
        "--no-waivers",
        {"action": "store_true", "help": "let known failures fail this run too"},
    ),
)
"""Name and settings of each, as `argparse` takes them."""
