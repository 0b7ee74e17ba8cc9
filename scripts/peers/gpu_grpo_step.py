#!/usr/bin/env python3
"""The step of `train bench grpo-step` in PyTorch: transformers' generate, then SDPA, fused AdamW.

The same work: prompts of one length with responses of another, which end there and nowhere else, sampled
at temperature 1 from the weights that are trained; then forward and backward of all of them in micro-batches
and one rank's 1/N of the gradients through a fused AdamW on fp32 weights and moments. The loss is a
policy gradient on the sampled tokens. Nothing is compiled: a step runs once, after a short one. Without
recomputation where that fits the card, else with whole layers computed again, which the output says.
Needs torch with CUDA and transformers. Prints one JSON object.
Usage: gpu_grpo_step.py [--model llama3-8b] [--prompts 8] [--samples 8] [--prompt 512] [--response 1024]
       [--micro-batch 4] [--zero-world 8]
"""

import argparse
import time

from gpu_step import SHAPES, build, report

# Responses have so many tokens in the step that only warms up.
WARM_UP = 4


def seconds(work):
    """Returns the result of `work` and the seconds that the device took for it."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return result, time.perf_counter() - start


class Step:
    """Holds a model, its gradients, and one rank's share of the optimizer."""

    def __init__(self, args):
        import torch

        self.args = args
        self.model = build(args.model)
        self.parameters = list(self.model.parameters())
        count = sum(parameter.numel() for parameter in self.parameters)
        shard = torch.zeros(count // args.zero_world, device="cuda", dtype=torch.float32)
        self.shard = torch.nn.Parameter(shard)
        self.shard.grad = torch.zeros_like(shard)
        self.adamw = torch.optim.AdamW([self.shard], lr=1e-6, fused=True)

    def generate(self, prompts, response):
        import torch

        self.model.eval()
        with torch.no_grad():
            return self.model.generate(
                prompts, do_sample=True, top_k=0, num_return_sequences=self.args.samples, use_cache=True,
                min_new_tokens=response, max_new_tokens=response, pad_token_id=0,
            )  # fmt: skip

    def accumulate(self, rollouts):
        import torch

        self.model.train()
        for parameter in self.parameters:
            parameter.grad = None
        response = rollouts.shape[1] - self.args.prompt
        for rows in rollouts.split(self.args.micro_batch):
            logits = self.model(input_ids=rows, logits_to_keep=response + 1).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, -response:].flatten())
            loss.backward()

    def take(self, prompts, response):
        """Returns the seconds of generation, of the gradients, and of the optimizer."""
        rollouts, generation = seconds(lambda: self.generate(prompts, response))
        _, gradients = seconds(lambda: self.accumulate(rollouts))
        _, optimizer = seconds(self.adamw.step)
        return generation, gradients, optimizer


def measure(args, checkpointing):
    import torch

    torch.manual_seed(0)
    step = Step(args)
    if checkpointing:
        step.model.gradient_checkpointing_enable({"use_reentrant": False})
    prompts = torch.randint(1, SHAPES[args.model][1], (args.prompts, args.prompt), device="cuda")
    step.take(prompts, min(WARM_UP, args.response))
    generation, gradients, optimizer = step.take(prompts, args.response)
    rollouts, update = args.prompts * args.samples, gradients + optimizer
    return {
        "generation_seconds": generation,
        "gradients_seconds": gradients,
        "optimizer_seconds": optimizer,
        "generated_tokens_per_second": rollouts * args.response / generation,
        "trained_tokens_per_second": rollouts * (args.prompt + args.response) / update,
        "rollouts_per_second": rollouts / (generation + update),
        "recompute": "layers" if checkpointing else "none",
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="llama3-8b")
    for name, default in [("prompts", 8), ("samples", 8), ("prompt", 512), ("response", 1024),
                          ("micro-batch", 4), ("zero-world", 8)]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    report(parser.parse_args(), measure)


if __name__ == "__main__":
    main()
