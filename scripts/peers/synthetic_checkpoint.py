#!/usr/bin/env python3
"""Writes a checkpoint of a known shape with random bf16 weights, shard by shard, to measure with.

The sizes are those of the models' config.json; the tokenizer is the demo's, whose tokens are the first of
the vocabulary. Needs torch and safetensors.

Usage: synthetic_checkpoint.py SHAPE DIR   (SHAPE: llama-1b, qwen2.5-0.5b or qwen2.5-7b; from the root of the
repository)
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LLAMA = dict(architectures=["LlamaForCausalLM"], model_type="llama", max_position_embeddings=2048)
QWEN = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    max_position_embeddings=32768,
    rope_theta=1000000.0,
    rms_norm_eps=1e-06,
)
# Hidden size, inner size, layers, query heads, key heads, vocabulary, tied, shards.
SHAPES = {
    "llama-1b": (LLAMA, 2048, 5632, 20, 16, 4, 32000, False, 8),
    "qwen2.5-0.5b": (QWEN, 896, 4864, 24, 14, 2, 151936, True, 1),
    "qwen2.5-7b": (QWEN, 3584, 18944, 28, 28, 4, 152064, False, 4),
}


def shapes_of(config: dict) -> dict[str, tuple]:
    """Returns names and shapes of all tensors."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def make(shape: str, directory: Path) -> list[str]:
    """Writes the checkpoint unless it is there, and returns the paths of its shards."""
    family, hidden, inner, layers, heads, key_heads, vocab, tied, num_shards = SHAPES[shape]
    config = family | dict(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        eos_token_id=1,
    )
    files = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        # Weights are pieces of these numbers: drawing each anew would take minutes.
        pool = (torch.randn(1 << 26) * 0.02).to(torch.bfloat16)
        shapes = shapes_of(config)
        total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
        weight_map, done = {}, 0
        for number, file in enumerate(files):
            shard = {}
            while shapes and done * num_shards < total * (number + 1):
                key = next(iter(shapes))
                size = torch.Size(shapes.pop(key))
                start = int(torch.randint(1 << 20, ()))
                repeats = -(-(start + size.numel()) // len(pool))
                shard[key] = pool.repeat(repeats)[start : start + size.numel()].view(size).clone()
                done += 2 * size.numel()
            save_file(shard, directory / file, {"format": "pt"})
            weight_map |= {key: file for key in shard}
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
        (directory / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path("data/demo/tokenizer") / name, directory)
    return [str(directory / file) for file in files]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    make(sys.argv[1], Path(sys.argv[2]))
