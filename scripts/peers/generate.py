#!/usr/bin/env python3
"""Generation against transformers' `generate` and llama.cpp: the demo's model and prompts, f32 weights,
alternating runs, always the most likely token, so that all should give the same tokens.

Workloads: 1, 8 and 64 sequences of 128 new tokens each, and 8 and 64 sequences whose number of new tokens
is uniform from 16 to 320. No token ends a response. transformers runs as users run it: one batch, padded on
the left, until the longest is done, of which only wanted tokens count. llama.cpp decodes all sequences
together, each until it has its tokens, with its own defaults (a cache in f16). Ours makes its engine within
the time; the others are warmed up before, llama.cpp with its context made (llama_generate.cpp). Reading a
model's files is in no time. Left out: the continuous batching of transformers.

Each engine is a process that waits for jobs, so that only one works at a time.
Needs torch and transformers; for llama.cpp also to_gguf.py's output and llama_generate, compiled as
docs/comparisons.md says. Build ours first: cargo build --release --example peer_generate
Usage: generate.py --model DIR [--binary target/release/examples/peer_generate] [--rounds 5] [--threads 2]
       [--llama LLAMA_GENERATE MODEL.gguf] [--workloads NAME ...] [--out FILE.json]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from train_step import tuned

# Sequences at a time, how many times with other prompts, and the numbers of new tokens.
WORKLOADS = {
    "1": (1, 2, (128, 128)),
    "8": (8, 2, (128, 128)),
    "64": (64, 1, (128, 128)),
    "8 mixed": (8, 2, (16, 320)),
    "64 mixed": (64, 1, (16, 320)),
}


def prompts(model: str) -> list:
    """Returns the token ids of the first prompts of the demo's SFT file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = Path("data/demo/sft.jsonl").read_text().splitlines()[:64]
    asked = [json.loads(line)["messages"][:1] for line in lines]
    encoded = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    return encoded["input_ids"]


def jobs(model: str) -> dict:
    """Returns the jobs of each workload: prompts, and the number of tokens wanted after each."""
    ids, numbers = prompts(model), random.Random(0)
    result = {}
    for name, (sequences, times, (least, most)) in WORKLOADS.items():
        result[name] = [
            {
                "prompts": ids[number * sequences : (number + 1) * sequences],
                "new_tokens": [numbers.randint(least, most) for _ in range(sequences)],
            }
            for number in range(times)
        ]
    return result


def transformers_worker(args: argparse.Namespace) -> None:
    """Answers jobs on stdin as scripts/peers/generate.rs does."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.generation_config.update(do_sample=False, eos_token_id=None, pad_token_id=0)
    one_batch(model, {"prompts": [[2, 3, 4]], "new_tokens": [8]})
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        tokens = one_batch(model, job)
        print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), flush=True)


def one_batch(model, job: dict) -> list:
    import torch

    width, most = max(map(len, job["prompts"])), max(job["new_tokens"])
    padding = [width - len(prompt) for prompt in job["prompts"]]
    ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, job["prompts"])])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=most)
    assert out.shape[1] == width + most, "a response ended early"
    return [row[width : width + wanted] for row, wanted in zip(out.tolist(), job["new_tokens"])]


class Engine:
    """Runs a process that answers jobs."""

    def __init__(self, command: list, encode, threads: int):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=tuned(threads), **pipes)
        self.encode = encode

    def run(self, jobs: list) -> tuple:
        """Returns the seconds of all jobs together, and their tokens."""
        answers = []
        for job in jobs:
            self.process.stdin.write(self.encode(job))
            self.process.stdin.flush()
            answers.append(json.loads(self.process.stdout.readline()))
        seconds = sum(answer["seconds"] for answer in answers)
        return seconds, [tokens for answer in answers for tokens in answer["tokens"]]


def as_json(job: dict) -> str:
    return json.dumps(job) + "\n"


def as_lines(job: dict) -> str:
    rows = zip(job["new_tokens"], job["prompts"])
    lines = [" ".join(map(str, [wanted, *prompt])) for wanted, prompt in rows]
    return "\n".join([str(len(lines)), *lines]) + "\n"


def measure(engines: dict, args: argparse.Namespace) -> dict:
    """Returns for each workload and engine the tokens per second of each round, and the share of equal sequences."""
    results, work_of = {}, jobs(args.model)
    for name in args.workloads:
        work = work_of[name]
        num_tokens = sum(sum(job["new_tokens"]) for job in work)
        results[name] = {engine: {"tokens_per_second": []} for engine in engines}
        for _ in range(args.rounds):
            tokens = {}
            for engine, process in engines.items():
                seconds, tokens[engine] = process.run(work)
                results[name][engine]["tokens_per_second"].append(round(num_tokens / seconds, 1))
        for engine in engines:
            same = [a == b for a, b in zip(tokens["ours"], tokens[engine])]
            results[name][engine]["same_tokens"] = statistics.fmean(same)
        print(describe(name, results[name]), flush=True)
    return results


def describe(name: str, result: dict) -> str:
    """Returns medians, ranges, and our ratios by round."""
    parts = []
    ours = result["ours"]["tokens_per_second"]
    for engine, numbers in result.items():
        speeds = numbers["tokens_per_second"]
        part = f"{engine} {statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
        if engine != "ours":
            ratios = [mine / theirs for mine, theirs in zip(ours, speeds)]
            part += f", ours {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            part += f", {100 * numbers['same_tokens']:.0f} % of sequences the same"
        parts.append(part)
    return f"{name}: tokens/s: " + "; ".join(parts)


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0], "cores": len(names), "load": os.getloadavg()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", default="target/release/examples/peer_generate")
    parser.add_argument("--llama", nargs=2, metavar=("LLAMA_GENERATE", "GGUF"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--worker", action="store_true", help="be the process of transformers")
    args = parser.parse_args()
    if args.worker:
        transformers_worker(args)
        return
    threads = args.threads
    worker = [sys.executable, *sys.argv, "--worker"]
    engines = {
        "ours": Engine([args.binary, args.model], as_json, threads),
        "transformers": Engine(worker, as_json, threads),
    }
    if args.llama:
        engines["llama.cpp"] = Engine([*args.llama, str(threads)], as_lines, threads)
    report = {"date": time.strftime("%Y-%m-%d"), "threads": threads, "machine": machine()}
    report["workloads"] = measure(engines, args)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
