#!/usr/bin/env python3
"""Load time of a synthetic 8-shard 2 GB bf16 checkpoint: ours against safetensors in Python.

Ours is `train score` on two tokens: the whole start of the program, with the weights packed for
products. Python's is the time within the process to read every tensor, by `load_file` and by
`safe_open`, imports not counted. Runs alternate; cold runs drop the files from the page cache first
(posix_fadvise). Needs torch, numpy and safetensors.

Usage: load_checkpoint.py TRAIN [--dir DIR] [--rounds N]   (TRAIN: the binary; from the repository root)
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from synthetic_checkpoint import make

READ = """
import sys, time, torch
from safetensors import safe_open
from safetensors.torch import load_file
how, files = sys.argv[1], sys.argv[2:]
start = time.perf_counter()
if how == "load_file":
    tensors = [load_file(f) for f in files]
else:
    tensors = []
    for f in files:
        with safe_open(f, "pt") as shard:
            tensors.append({k: shard.get_tensor(k) for k in shard.keys()})
# A map that was never read has not been loaded: touch a number of every page.
total = sum(t.view(torch.int16).flatten()[::2048].sum().item() for d in tensors for t in d.values())
print(time.perf_counter() - start)
"""


def forget(files: list[str]) -> None:
    """Drops files from the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def python(how: str, files: list[str]) -> float:
    run = [sys.executable, "-c", READ, how, *files]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def ours(train: str, directory: Path) -> float:
    data, out = directory / "two.jsonl", directory / "scores.jsonl"
    data.write_text('{"input_ids": [5, 6]}\n')
    start = time.perf_counter()
    run = [train, "-q", "score", "--model", directory, "--data", data, "--out", out]
    subprocess.run(run, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("--dir", type=Path, default=Path("target/load-checkpoint"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    files = make("llama-1b", args.dir)
    gigabytes = sum(os.path.getsize(file) for file in files) / 1e9
    ways = {
        "train": lambda: ours(args.train, args.dir),
        "load_file": lambda: python("load_file", files),
        "safe_open": lambda: python("safe_open", files),
    }
    result = {"gigabytes": round(gigabytes, 2), "seconds": {}}
    for cache in ("warm", "cold"):
        seconds = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, run in ways.items():
                if cache == "cold":
                    forget(files)
                seconds[way].append(run())
        result["seconds"][cache] = {
            way: {"median": round(sorted(all)[len(all) // 2], 2), "best": round(min(all), 2)}
            for way, all in seconds.items()
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
