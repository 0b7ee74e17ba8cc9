#!/usr/bin/env python3
"""Time and peak memory of tokenising many samples into the cache, and of a start that finds them there.

The samples are made up: conversations of one turn, of random words of the demo's samples, their lengths
log-normal as in Tülu 3, but short (about 300 bytes), so that the number of samples counts. Needs nothing
but Python and GNU time.

Usage: token_cache.py TRAIN [--dir DIR] [--samples N]   (TRAIN: the binary; from the root of the repository)
"""

import argparse
import json
import random
import re
import subprocess
import time
from pathlib import Path

CONFIG = "configs/demo/sft.toml"


def make(path: Path, count: int) -> None:
    """Writes the samples unless they are there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    lines = Path("data/demo/sft.jsonl").read_text().splitlines()[:500]
    words = [word for line in lines for m in json.loads(line)["messages"] for word in m["content"].split()]

    def text(mean: float) -> str:
        start = draw.randrange(len(words))
        return " ".join(words[start : start + 1 + int(draw.lognormvariate(mean, 0.8))])

    with path.open("w") as file:
        for number in range(count):
            turns = [("user", text(2.3)), ("assistant", text(3.2))]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")


def measure(train: str, data: Path, cache: Path) -> dict:
    settings = {
        "data.files": f"['{data}']",
        "data.max_length": "640",
        "data.cache_dir": f"'{cache}'",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run = ["/usr/bin/time", "-f", "%M", train, "-q", "data", "stats", "--config", CONFIG, *words]
    start = time.perf_counter()
    result = subprocess.run(run, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    memory = int(re.findall(r"\d+", result.stderr)[-1]) / 1024
    return {"seconds": round(seconds, 1), "peak_mib": round(memory), "says": result.stdout.split("\n\n")[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("--dir", type=Path, default=Path("target/token-cache"))
    parser.add_argument("--samples", type=int, default=900_000)
    args = parser.parse_args()
    data, cache = args.dir / f"{args.samples}.jsonl", args.dir / "cache"
    make(data, args.samples)
    for old in cache.glob("*"):
        old.unlink()
    print(f"{data.stat().st_size / 1e6:.0f} MB")
    for name in ("made", "found"):
        print(name, json.dumps(measure(args.train, data, cache)))
    print(f"cache: {sum(file.stat().st_size for file in cache.glob('*')) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
