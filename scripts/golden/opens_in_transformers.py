#!/usr/bin/env python3
"""Checks by hand that model directories, such as the checkpoints of `train sft`, open in transformers as
they lie: no tensor missing or left over, and for the same input the same tokens and log-probabilities
as `train score`.

Needs torch and transformers, and the program: cargo build
Usage: opens_in_transformers.py DIR ... [--binary target/debug/train]
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4
IDS = Path("tests/golden/parity/sequences.jsonl")
TEXT = {"prompt": "The sequence begins 1, 1, 2, 3, 5, 8", "completion": ", 13, 21\n\n  and so on: é 日本"}
CHAT = {
    "messages": [
        {"role": "user", "content": "What follows 1, 2, 4, 8?"},
        {"role": "assistant", "content": "16, since each term doubles the one before."},
    ]
}


def score(binary: str, model_dir: str, inputs: list) -> list:
    """Returns what `train score` prints about each input."""
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "in.jsonl"), Path(scratch, "out.jsonl")
        data.write_text("".join(json.dumps(line) + "\n" for line in inputs))
        command = [binary, "--quiet", "score", "--model", model_dir, "--data", data, "--out", out]
        subprocess.run(command, check=True)
        return [json.loads(line) for line in out.read_text().splitlines()]


def tokens(tokenizer, line: dict) -> list:
    """Returns the tokens that transformers makes of an input."""
    if "input_ids" in line:
        return line["input_ids"]
    if "prompt" in line:
        return tokenizer(line["prompt"] + line["completion"]).input_ids
    return tokenizer.apply_chat_template(line["messages"], return_dict=True)["input_ids"]


def check(model_dir: str, binary: str) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, output_loading_info=True
    )
    faults = {what: names for what, names in info.items() if names}
    assert not faults, f"{model_dir}: {faults}"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    inputs = [json.loads(line) for line in IDS.read_text().splitlines()] + [TEXT]
    inputs += [CHAT] if tokenizer.chat_template else []
    worst = 0.0
    for line, ours in zip(inputs, score(binary, model_dir, inputs), strict=True):
        ids = tokens(tokenizer, line)
        assert ids == ours["input_ids"], f"{model_dir}: {line}: other tokens"
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        theirs = log_p.gather(1, torch.tensor(ids)[1:, None])[:, 0]
        error = (theirs - torch.tensor(ours["logprobs"][1:])).abs().max().item()
        assert error < TOLERANCE, f"{model_dir}: {line}: apart by {error:.1e}"
        worst = max(worst, error)
    print(f"{model_dir}: {len(inputs)} inputs, log-probabilities apart by at most {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dirs", nargs="+", metavar="DIR")
    parser.add_argument("--binary", default="target/debug/train")
    args = parser.parse_args()
    for model_dir in args.dirs:
        check(model_dir, args.binary)


main()
