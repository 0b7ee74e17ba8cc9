#!/usr/bin/env python3
"""The step of `train bench decode` in PyTorch: transformers with a static cache, SDPA and torch.compile.

The same work: `batch` sequences that hold `context` tokens get one more each: a forward pass in bf16
from a filled cache, then a drawn token that comes to the host. torch.compile records CUDA graphs
("reduce-overhead"). Needs torch with CUDA and transformers. Prints one JSON object.
Usage: gpu_decode.py [--model llama3-8b] [--batch 64,256] [--context 1024,2048] [--repeats 10]
"""

import argparse
import json
import statistics
import time

from gpu_step import SHAPES, build, machine


def numbers(text):
    return [int(number) for number in text.split(",")]


def step_milliseconds(model, compiled, batch, context, repeats):
    import torch
    from transformers import StaticCache

    # Every step makes the context one longer, by a hundredth at most.
    cache = StaticCache(config=model.config, max_cache_len=context + repeats + 4)
    device, vocab = model.device, model.config.vocab_size
    with torch.no_grad():
        # Filled in pieces: the logits of a whole prompt would not fit.
        for start in range(0, context, 256):
            tokens = torch.randint(0, vocab, (batch, min(256, context - start)), device=device)
            model.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        token = torch.randint(0, vocab, (batch, 1), device=device)
        times = []
        for repeat in range(repeats + 4):
            start = time.perf_counter()
            logits = compiled(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
            torch.multinomial(torch.softmax(logits.float(), -1), 1).cpu()
            if repeat >= 4:
                times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--batch", type=numbers, default=[64, 256])
    parser.add_argument("--context", type=numbers, default=[1024, 2048])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    about = machine()
    import torch

    model = build(args.model).eval()
    compiled = torch.compile(model, mode="reduce-overhead")
    lines = []
    for batch in args.batch:
        for context in args.context:
            line = {"batch": batch, "context": context}
            try:
                milliseconds = step_milliseconds(model, compiled, batch, context, args.repeats)
                line |= {"milliseconds": milliseconds, "tokens_per_second": batch / milliseconds * 1e3}
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                line["error"] = "out of memory"
            lines.append(line)
    print(json.dumps({"model": args.model, **about, "lines": lines}))


if __name__ == "__main__":
    main()
