#!/usr/bin/env python3
"""Seconds of a DPO step against TRL's DPOTrainer: the demo's base model, pairs of the demo's answers, f32,
alternating runs.

A pair is a sample of the demo with its own answer, and with the next sample's as the rejected one. Both learn
from the same pairs, 16 a step, at a rate of nearly nothing. Ours is `train dpo` as it is. TRL runs with its
defaults (batches of 8, accumulated; activation checkpointing; the reference model scores in every step), and
once more `tuned`: the reference model's scores computed before, no activation checkpointing, batches of 16. A
step's time is without the scores computed before. Of a run the first step does not count.

Needs torch, transformers and trl; build ours first: cargo build --release
Usage: dpo_step.py [--binary target/release/train] [--rounds 5] [--steps 4] [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_step import run, tuned

MODEL, SAMPLES, MAX_LENGTH, BATCH = "data/demo/base", "data/demo/sft.jsonl", 640, 16
RATE = 1e-12
# Settings over TRL's defaults.
PEERS = {
    "trl": {"per_device_train_batch_size": 8},
    "trl tuned": {
        "per_device_train_batch_size": BATCH,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
    },
}


def pairs(count: int) -> list:
    lines = Path(SAMPLES).read_text().splitlines()[: count + 1]
    messages = [json.loads(line)["messages"] for line in lines]
    return [
        {"prompt": own[:-1], "chosen": own[-1:], "rejected": other[-1:]}
        for own, other in zip(messages, messages[1:])
    ]


def peer(args: argparse.Namespace) -> dict:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(args.threads)
    settings, times = PEERS[args.peer], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as scratch:
        config = DPOConfig(
            output_dir=scratch, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_steps=1, learning_rate=RATE, max_steps=args.steps,
            max_length=MAX_LENGTH, optim="adamw_torch_fused",
            gradient_accumulation_steps=BATCH // settings["per_device_train_batch_size"], **settings,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        trainer = DPOTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(pairs(args.steps * BATCH)),
            processing_class=AutoTokenizer.from_pretrained(MODEL), callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(times) == args.steps, times
    return {"step": statistics.median(times[1:]), "loss": losses[0]}


def ours(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "pairs.jsonl"), Path(scratch, "run")
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(args.steps * BATCH)))
        config = Path(scratch, "dpo.toml")
        config.write_text(
            f"model.path = '{MODEL}'\ndata = {{ files = ['{data}'], max_length = {MAX_LENGTH} }}\n"
            f"optim.lr = {RATE:.12f}\n[train]\ntotal_steps = {args.steps}\npairs_per_step = {BATCH}\n"
            "seq_len = 4096\n"
        )
        command = [args.binary, "--quiet", "dpo", "--config", config, "--out", out]
        subprocess.run(command, env=tuned(args.threads), check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    step = statistics.median(row["time/step_secs"] for row in rows[1:])
    return {"step": step, "loss": rows[0]["loss/preference"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a run, at least 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", choices=PEERS, help="one run of a peer")
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer(args)))
        return
    runs = {name: [] for name in ("ours", *PEERS)}
    for number in range(1, args.rounds + 1):
        for name, results in runs.items():
            command = [sys.executable, *sys.argv, "--peer", name]
            results.append(ours(args) if name == "ours" else run(command, args.threads))
        parts = ", ".join(f"{name} {of_name[-1]['step']:.2f} s" for name, of_name in runs.items())
        losses = ", ".join(f"{of_name[-1]['loss']:.4f}" for of_name in runs.values())
        print(f"round {number}: {parts} (first losses {losses})", flush=True)
    for name in PEERS:
        ratios = [theirs["step"] / mine["step"] for mine, theirs in zip(runs["ours"], runs[name])]
        print(f"{name} / ours: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
