#!/usr/bin/env python3
"""The micro-step of `train bench step` in PyTorch: transformers with SDPA, torch.compile, fused AdamW.

The same work: one sequence of random tokens, each a target of a cross-entropy, forward and backward in
bf16, then one rank's 1/N of the gradients through a fused AdamW on fp32 weights and moments. Without
recomputation where that fits the card, else with whole layers computed again, which the output says.
Needs torch with CUDA and transformers. Prints one JSON object.
Usage: gpu_step.py [--model llama3-8b|qwen2.5-7b|tiny] [--seq 5120] [--zero-world 8] [--repeats 10]
"""

import argparse
import json
import os
import statistics
import sys

SHAPES = {
    "llama3-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 500000.0),
    "qwen2.5-7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 1000000.0),
    "tiny": ("llama", 256, 128, 256, 2, 4, 2, 10000.0),
}


def build(name):
    """Makes the model with random weights on the card."""
    import torch
    import transformers

    kind, vocab, hidden, inner, layers, heads, kv_heads, theta = SHAPES[name]
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    config = config_class(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, rope_theta=theta,
        max_position_embeddings=32768, tie_word_embeddings=False, attn_implementation="sdpa",
        use_cache=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return model_class(config)


def machine():
    """Returns the GPU and the versions of the packages; exits where something is missing."""
    name = os.path.basename(sys.argv[0])
    try:
        import torch
        import transformers
    except ImportError as absent:
        sys.exit(f"{name}: {absent}")
    if not torch.cuda.is_available():
        sys.exit(f"{name}: torch sees no GPU")
    device = torch.cuda.get_device_name()
    return {"torch": torch.__version__, "transformers": transformers.__version__, "device": device}


def report(args, measure):
    """Prints what `measure` finds, with whole layers computed again if nothing else fits the card."""
    about = machine()
    import torch

    try:
        result = measure(args, checkpointing=False)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        torch._dynamo.reset()
        result = measure(args, checkpointing=True)
    print(json.dumps({**vars(args), **about, **result}))


def timed(work, repeats):
    """Returns the median milliseconds of `work`, by events."""
    import torch

    times = []
    for repeat in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure(args, checkpointing):
    import torch

    torch.manual_seed(0)
    model = build(args.model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    step = torch.compile(model)
    tokens = torch.randint(0, SHAPES[args.model][1], (1, args.seq), device="cuda")

    def micro_step():
        for parameter in model.parameters():
            parameter.grad = None
        step(input_ids=tokens, labels=tokens).loss.backward()

    micro_milliseconds = timed(micro_step, args.repeats)
    peak = torch.cuda.max_memory_allocated()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shard = torch.nn.Parameter(
        torch.zeros(parameters // args.zero_world, device="cuda", dtype=torch.float32)
    )
    shard.grad = torch.zeros_like(shard)
    adamw = torch.optim.AdamW([shard], lr=1e-6, fused=True)
    return {
        "micro_step_milliseconds": micro_milliseconds,
        "optimizer_milliseconds": timed(adamw.step, args.repeats),
        "tokens_per_second": args.seq / micro_milliseconds * 1e3,
        "recompute": "layers" if checkpointing else "none",
        "peak_bytes": peak,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--seq", type=int, default=5120)
    parser.add_argument("--zero-world", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    report(parser.parse_args(), measure)


if __name__ == "__main__":
    main()
