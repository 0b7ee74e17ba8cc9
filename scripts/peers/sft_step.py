#!/usr/bin/env python3
"""SFT speed against transformers and PyTorch eager: the demo's model and samples, in alternating runs.

Ours is `train sft` as it is: configs/demo/sft.toml, packed rows of 4096 tokens, a step a row. The peer is
made as fast as eager transformers goes on a CPU: SDPA, fused AdamW, logits of learnt tokens only, rows
made before the clock runs; and it may lay out the samples of a row as it likes: in one packed row, where
transformers finds the borders by the positions, or as a batch padded on the right, which needs no mask
(padding does not count as tokens). The faster layout counts. On both sides the best step of a run counts.

Needs torch and transformers; build ours first: cargo build --release
Usage: sft_step.py [--binary target/release/train] [--rounds 5] [--steps 12] [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from train_step import run, tuned

CONFIG = Path("configs/demo/sft.toml")
SETTINGS = tomllib.loads(CONFIG.read_text())
SAMPLES = 600  # of the demo's file: enough for all steps
LAYOUTS = ["packed", "padded"]


def write_samples(path: Path) -> None:
    lines = Path(SETTINGS["data"]["files"][0]).read_text().splitlines()[:SAMPLES]
    path.write_text("\n".join(lines) + "\n")


def rows(path: Path) -> list:
    """Returns packed rows: lists of samples, each with its tokens and which of them are learnt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SETTINGS["model"]["path"])
    result, used = [[]], 0
    for line in path.read_text().splitlines():
        encoded = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
        if len(ids) > SETTINGS["data"]["max_length"]:
            continue
        if used + len(ids) > SETTINGS["train"]["seq_len"]:
            result.append([])
            used = 0
        result[-1].append((ids, mask))
        used += len(ids)
    return result[:-1]


def batch(row: list, layout: str) -> dict:
    """The samples of a row as tensors; `predicting` are the places, all rows after one another, whose
    prediction is learnt, and `learnt` the tokens they should predict."""
    import torch

    width = sum(len(ids) for ids, _ in row) if layout == "packed" else max(len(i) for i, _ in row)
    shape = (1 if layout == "packed" else len(row), width)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    predicting, learnt, start = [], [], 0
    for number, (tokens, mask) in enumerate(row):
        first = start if layout == "packed" else number * width
        ids.view(-1)[first : first + len(tokens)] = torch.tensor(tokens)
        positions.view(-1)[first : first + len(tokens)] = torch.arange(len(tokens))
        places = [i for i in range(1, len(tokens)) if mask[i]]
        predicting += [first + i - 1 for i in places]
        learnt += [tokens[i] for i in places]
        start += len(tokens)
    inputs = {"input_ids": ids} | ({"position_ids": positions} if layout == "packed" else {})
    return dict(
        inputs=inputs,
        predicting=torch.tensor(predicting),
        learnt=torch.tensor(learnt),
        tokens=sum(len(tokens) for tokens, _ in row),
    )


def peer(samples: Path, layout: str, steps: int, threads: int) -> dict:
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        SETTINGS["model"]["path"], dtype=torch.float32, attn_implementation="sdpa"
    )

    def loss_of(batch: dict):
        hidden = model.model(**batch["inputs"], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[batch["predicting"]])
        return F.cross_entropy(logits, batch["learnt"])

    packed_rows = rows(samples)
    with torch.no_grad():
        losses = [loss_of(batch(packed_rows[0], layout)).item() for layout in LAYOUTS]
    assert abs(losses[0] - losses[1]) < 1e-4, f"the layouts differ: {losses}"
    optim = SETTINGS["optim"]
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim["weight_decay"]},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=optim["lr"], betas=optim["betas"], fused=True)
    assert len(packed_rows) >= steps, "too few samples"
    best = 0.0
    for data in [batch(row, layout) for row in packed_rows[:steps]]:
        start = time.perf_counter()
        loss = loss_of(data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, optim["max_grad_norm"])
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        best = max(best, data["tokens"] / (time.perf_counter() - start))
    return {"tokens_per_second": best, "loss": loss.item()}


def ours(binary: str, samples: Path, steps: int, threads: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "run")
        values = [f"data.files=['{samples}']", f"train.total_steps={steps}"]
        settings = [word for value in values for word in ("--set", value)]
        command = [binary, "--quiet", "sft", "--config", CONFIG, *settings, "--out", out]
        subprocess.run(command, env=tuned(threads), check=True, stdout=subprocess.DEVNULL)
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = max(row["time/tokens_per_sec"] for row in metrics)
    return {"tokens_per_second": best, "loss": metrics[-1]["loss/nll"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", nargs=2, metavar=("LAYOUT", "SAMPLES"), help="one run of the peer")
    args = parser.parse_args()
    if args.peer:
        layout, samples = args.peer
        print(json.dumps(peer(Path(samples), layout, args.steps, args.threads)))
        return
    limits = ["--steps", str(args.steps), "--threads", str(args.threads)]
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        samples = Path(scratch, "samples.jsonl")
        write_samples(samples)
        for number in range(1, args.rounds + 1):
            mine = ours(args.binary, samples, args.steps, args.threads)
            peers = [[sys.executable, __file__, "--peer", name, samples, *limits] for name in LAYOUTS]
            theirs = {name: run(peer, args.threads) for name, peer in zip(LAYOUTS, peers)}
            speeds = {name: result["tokens_per_second"] for name, result in theirs.items()}
            ratios.append(mine["tokens_per_second"] / max(speeds.values()))
            parts = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
            print(
                f"round {number}: ours {mine['tokens_per_second']:.0f} tokens/s, transformers {parts}, "
                f"{ratios[-1]:.2f}x (losses {mine['loss']:.2f}, {theirs['packed']['loss']:.2f})"
            )
    print(f"median ratio {statistics.median(ratios):.2f}x, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
