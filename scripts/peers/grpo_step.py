#!/usr/bin/env python3
"""Seconds of a GRPO step against TRL's GRPOTrainer: the demo's model after SFT, 24 prompts with 8 rollouts
each of at most 320 tokens, one update, f32, alternating runs.

Both see the same 24 problems in every step and learn at a rate of nearly nothing, so that responses keep
their lengths. Ours is `train grpo` as it is, always judged. TRL's reward looks at lengths only; what judging
would add is measured after its run, on the last responses: each program in a Python process of its own, two
at a time, without limits. TRL runs with its defaults (batches of 8, here accumulated to 192, activation
checkpointing), and once more `tuned`: no activation checkpointing, batches of 48. In a run of several steps
the first does not count.

Needs torch, transformers and trl; build ours first: cargo build --release
Usage: grpo_step.py --model DIR [--binary target/release/train] [--rounds 3] [--steps 3] [--peer-steps 1]
       [--prompts 24] [--threads 2] [--out FILE.json]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from generate import machine
from train_step import run, tuned

ROLLOUTS, MAX_PROMPT, MAX_NEW = 8, 256, 320
RATE = 1e-12
# Settings over TRL's defaults.
PEERS = {
    "trl": {"per_device_train_batch_size": 8},
    "trl tuned": {"per_device_train_batch_size": 48, "activation_checkpointing": False},
}
# Runs a program on each input and prints its outputs; no limits and no isolation.
HARNESS = """
import contextlib, io, json, sys
job, outputs = json.load(sys.stdin), []
for text in job["inputs"]:
    sys.stdin, printed = io.StringIO(text), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(job["code"], {"__name__": "__main__"})
        outputs.append(printed.getvalue().strip())
    except BaseException:
        outputs.append(None)
json.dump(outputs, sys.__stdout__)
"""


def problems(count: int) -> list:
    """Returns the demo's first problems whose prompts are short enough, with their prompts."""
    from jinja2 import Template
    from transformers import AutoTokenizer

    template = Template(Path("data/prompts/gtg.txt").read_text().rstrip())
    tokenizer = AutoTokenizer.from_pretrained("data/demo/base")
    chosen = []
    for line in Path("data/demo/rl.jsonl").read_text().splitlines():
        problem = json.loads(line)
        prompt = [{"role": "user", "content": template.render(problem=problem)}]
        tokens = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        if len(tokens["input_ids"]) <= MAX_PROMPT:
            chosen.append({"line": line, "prompt": prompt, "tests": problem["tests"]})
    return chosen[:count]


def passes(text: str, tests: list) -> bool:
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if not blocks:
        return False
    job = {"code": blocks[-1], "inputs": [test["input"] for test in tests]}
    command = [sys.executable, "-I", "-S", "-c", HARNESS]
    try:
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=5)
        return json.loads(done.stdout) == [test["output"] for test in tests]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return False


def judging_seconds(texts: list, tests: list) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(passes, texts, tests))
    return time.perf_counter() - start


def peer(args: argparse.Namespace) -> dict:
    """Returns the seconds of a step and its parts, and the responses' mean length."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(args.threads)
    settings = PEERS[args.peer]
    rows = [{"prompt": p["prompt"], "tests": p["tests"]} for p in problems(args.prompts)]
    times, last = {"step": [], "generation": []}, {}

    def length(completions: list, tests: list, **_) -> list:
        texts = [completion[0]["content"] for completion in completions]
        last.update(texts=texts, tests=tests)
        return [-float(len(text)) for text in texts]

    class Timed(GRPOTrainer):
        def _generate(self, *args, **kwargs):
            start = time.perf_counter()
            result = super()._generate(*args, **kwargs)
            times["generation"].append(time.perf_counter() - start)
            return result

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            times["step"].append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as scratch:
        batch = settings["per_device_train_batch_size"]
        config = GRPOConfig(
            output_dir=scratch, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_steps=1, learning_rate=RATE, max_steps=args.peer_steps,
            num_generations=ROLLOUTS, max_completion_length=MAX_NEW,
            gradient_accumulation_steps=args.prompts * ROLLOUTS // batch,
            model_init_kwargs={"dtype": "float32"}, **settings,
        )  # fmt: skip
        trainer = Timed(
            model=args.model, args=config, train_dataset=Dataset.from_list(rows),
            reward_funcs=length, callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history[:-1]]
    assert [len(values) for values in times.values()] == [args.peer_steps] * 2, times
    assert len(last["texts"]) == args.prompts * ROLLOUTS
    seconds = {what: statistics.median(counted(values)) for what, values in times.items()}
    update = seconds["step"] - seconds["generation"]
    judging = judging_seconds(last["texts"], last["tests"])
    return seconds | {"update": update, "judging": judging, "tokens": statistics.fmean(counted(lengths))}


def counted(steps: list) -> list:
    """Returns the steps of a run that count: all but the first, which warms up, if there are several."""
    return steps[1:] or steps


def ours(args: argparse.Namespace) -> dict:
    """Returns what `peer` returns, for us. Judging counts after the last response; before, it runs beside generation."""
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "problems.jsonl"), Path(scratch, "run")
        data.write_text("".join(problem["line"] + "\n" for problem in problems(args.prompts)))
        values = [
            f"model.path='{args.model}'",
            f"data.files=['{data}']",
            f"data.max_prompt_tokens={MAX_PROMPT}",
            f"rollout.num_prompts={args.prompts}",
            f"rollout.n={ROLLOUTS}",
            f"rollout.max_new_tokens={MAX_NEW}",
            f"optim.lr={RATE:.12f}",
            f"train.total_steps={args.steps}",
        ]
        settings = [word for value in values for word in ("--set", value)]
        command = [args.binary, "--quiet", "grpo", "--config", "configs/demo/grpo.toml", *settings]
        environment = tuned(args.threads)
        subprocess.run([*command, "--out", out], env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ends = [row["time/unix_secs"] for row in rows]
    parts = {
        what: statistics.median(row[f"time/{what}_secs"] for row in counted(rows))
        for what in ("generation", "judging", "update")
    }
    step = statistics.median(end - start for start, end in zip(ends, ends[1:]))
    tokens = statistics.fmean(row["response/mean_tokens"] for row in counted(rows))
    return {"step": step} | parts | {"tokens": tokens}


def describe(name: str, result: dict) -> str:
    parts = ", ".join(f"{what} {result[what]:.2f}" for what in ("generation", "judging", "update"))
    return f"{name}: {result['step']:.2f} s ({parts}), {result['tokens']:.0f} tokens a response"


def compare(runs: dict, name: str) -> str:
    """Returns how many of our steps a peer's step takes, without judging on its side and with it."""
    pairs = list(zip(runs["ours"], runs[name]))
    results = []
    for extra in (0, 1):
        ratios = [(theirs["step"] + extra * theirs["judging"]) / mine["step"] for mine, theirs in pairs]
        results.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"{name} / ours: {results[0]} without judging, {results[1]} with it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", default="target/release/train")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a run of ours, at least 2")
    parser.add_argument("--peer-steps", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=24, help="a multiple of 6")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", choices=PEERS, help="one run of a peer")
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer(args)))
        return
    report = {"date": time.strftime("%Y-%m-%d"), "threads": args.threads, "machine": machine()}
    report["runs"] = {name: [] for name in ("ours", *PEERS)}
    for _ in range(args.rounds):
        for name, results in report["runs"].items():
            command = [sys.executable, *sys.argv, "--peer", name]
            results.append(ours(args) if name == "ours" else run(command, args.threads))
            print(describe(name, results[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    for name in PEERS:
        print(compare(report["runs"], name))


if __name__ == "__main__":
    main()
