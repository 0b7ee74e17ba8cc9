#!/usr/bin/env python3
"""Training speed against PyTorch eager on the demo's model: alternating runs, ratio of best steps.

The peer is made as fast as eager PyTorch goes on a CPU: joined projections, SDPA, F.rms_norm,
fused AdamW, sequences of one length (no padding), no page faults from malloc.
Needs torch; build ours first: cargo build --release --example peer_train_step
Usage: train_step.py [--binary target/release/examples/peer_train_step] [--rounds 5] [--threads 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 1536, 192, 512, 6, 6, 2
SEQUENCES, LENGTH = 14, 292


def torch_run(steps: int, threads: int, compiled: bool) -> dict:
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    head_dim = HIDDEN // HEADS

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1 = nn.Parameter(torch.ones(HIDDEN))
            self.norm2 = nn.Parameter(torch.ones(HIDDEN))
            self.qkv = nn.Linear(HIDDEN, HIDDEN + 2 * KV_HEADS * head_dim, bias=False)
            self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
            self.gate_up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
            self.down = nn.Linear(INNER, HIDDEN, bias=False)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape
            qkv = self.qkv(F.rms_norm(x, (HIDDEN,), self.norm1, 1e-6))
            qk, v = qkv.split([HIDDEN + KV_HEADS * head_dim, KV_HEADS * head_dim], -1)
            qk = qk.view(b, t, HEADS + KV_HEADS, head_dim).transpose(1, 2)
            low, high = qk.chunk(2, -1)
            qk = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
            q, k = qk.split([HEADS, KV_HEADS], 1)
            v = v.view(b, t, KV_HEADS, head_dim).transpose(1, 2)
            group = HEADS // KV_HEADS
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, HIDDEN))
            gate, up = self.gate_up(F.rms_norm(x, (HIDDEN,), self.norm2, 1e-6)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, HIDDEN)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm = nn.Parameter(torch.ones(HIDDEN))
            for p in self.parameters():
                if p.dim() > 1:
                    nn.init.normal_(p, std=0.02)
            angle = torch.outer(
                torch.arange(LENGTH), 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)
            )
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

        def forward(self, ids, labels):
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x, self.cos, self.sin)
            x = F.rms_norm(x, (HIDDEN,), self.norm, 1e-6)
            logits = F.linear(x, self.embed.weight)
            return F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1))

    model = Model()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(0, VOCAB, (SEQUENCES, LENGTH + 1))
    best = float("inf")
    for _ in range(steps):
        start = time.perf_counter()
        loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        best = min(best, time.perf_counter() - start)
    return {"tokens_per_second": SEQUENCES * LENGTH / best, "loss": loss.item()}


def tuned(threads: int) -> dict:
    """Returns an environment in which malloc keeps its pages."""
    return os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "MALLOC_TOP_PAD_": str(64 * 2**20),
        "RAYON_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }


def run(command: list, threads: int) -> dict:
    """Runs a command that prints a JSON object in its last line."""
    output = subprocess.run(
        command, env=tuned(threads), check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/examples/peer_train_step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="peer: torch.compile, not eager")
    parser.add_argument("--torch-only", action="store_true", help="one run of the peer")
    args = parser.parse_args()
    if args.torch_only:
        print(json.dumps(torch_run(args.steps, args.threads, args.compile)))
        return
    peer = [sys.executable, __file__, "--torch-only", "--steps", str(args.steps)]
    peer += ["--threads", str(args.threads)] + (["--compile"] if args.compile else [])
    ratios = []
    for index in range(args.rounds):
        ours = run([args.binary, "train", str(args.steps)], args.threads)["tokens_per_second"]
        torch = run(peer, args.threads)["tokens_per_second"]
        ratios.append(ours / torch)
        print(f"round {index + 1}: ours {ours:.0f} tokens/s, torch {torch:.0f}, {ratios[-1]:.2f}x")
    print(f"median ratio {statistics.median(ratios):.2f}x, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
