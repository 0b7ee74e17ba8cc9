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
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, VOCAB, SHARDS = 2048, 5632, 20, 32000, 8
CONFIG = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    eos_token_id=1,
)
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


def make(directory: Path) -> list[str]:
    """Writes the checkpoint unless it is there; the shards' paths."""
    files = [f"model-{i + 1:05}-of-{SHARDS:05}.safetensors" for i in range(SHARDS)]
    if not (directory / "model.safetensors.index.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        queries, keys = HIDDEN, HIDDEN // 4
        shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (HIDDEN,),
                prefix + "self_attn.q_proj.weight": (queries, HIDDEN),
                prefix + "self_attn.k_proj.weight": (keys, HIDDEN),
                prefix + "self_attn.v_proj.weight": (keys, HIDDEN),
                prefix + "self_attn.o_proj.weight": (HIDDEN, queries),
                prefix + "post_attention_layernorm.weight": (HIDDEN,),
                prefix + "mlp.gate_proj.weight": (INNER, HIDDEN),
                prefix + "mlp.up_proj.weight": (INNER, HIDDEN),
                prefix + "mlp.down_proj.weight": (HIDDEN, INNER),
            }
        shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
        torch.manual_seed(0)
        tensors = {k: (torch.randn(s) * 0.02).to(torch.bfloat16) for k, s in shapes.items()}
        total, done, shards = sum(t.nbytes for t in tensors.values()), 0, [{} for _ in files]
        for key, tensor in tensors.items():
            shards[min(SHARDS - 1, done * SHARDS // total)][key] = tensor
            done += tensor.nbytes
        for file, shard in zip(files, shards):
            save_file(shard, directory / file, {"format": "pt"})
        weight_map = {key: file for file, shard in zip(files, shards) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        (directory / "config.json").write_text(json.dumps(CONFIG))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path("data/demo/tokenizer") / name, directory)
    return [str(directory / file) for file in files]


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
    files = make(args.dir)
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
