#!/usr/bin/env python3
"""Makes tests/golden/decoder/*.safetensors: tiny random Llama, Qwen2 and Qwen3 models of transformers, with
the log-probability of every next token, its entropy, and the gradient of every parameter of a loss
on both. Needs torch and transformers. Usage: decoder.py [NAME ...] (from the repository
root)
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

OUT = Path("tests/golden/decoder")
LENGTHS = [1, 9, 40, 17]
TEMPERATURE = 0.8
SHAPE = dict(
    vocab_size=67,
    hidden_size=24,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    eos_token_id=1,
    bos_token_id=None,
    attn_implementation="eager",
)
MODELS = {
    "llama-tied": LlamaConfig(**SHAPE, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-untied": LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_theta=500000.0),
    "qwen2-tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-untied": Qwen2Config(**SHAPE, tie_word_embeddings=False, rope_theta=1000000.0),
    "qwen3": Qwen3Config(**SHAPE, head_dim=6, tie_word_embeddings=False, rope_theta=1000000.0),
}


def make(name: str, config) -> None:
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    # Computed in double precision: the file holds the exact answer for the f32 weights.
    model = model.double()
    tokens = [torch.randint(0, config.vocab_size, (length,)) for length in LENGTHS]
    logps, entropies = [], []
    for sequence in tokens:
        logits = model(sequence[None]).logits[0, :-1] / TEMPERATURE
        log_p = logits.log_softmax(-1)
        logps.append(log_p.gather(1, sequence[1:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    logp, entropy = torch.cat(logps), torch.cat(entropies)
    weights = torch.linspace(-1, 1, len(logp), dtype=torch.float64)
    (weights * logp + 0.3 * weights.flip(0) * entropy).sum().backward()
    tensors = {
        "tokens": torch.cat(tokens),
        "lengths": torch.tensor(LENGTHS),
        "logp": logp.detach(),
        "entropy": entropy.detach(),
    }
    for key, parameter in model.named_parameters():
        tensors[f"parameter.{key}"] = parameter.detach()
        tensors[f"gradient.{key}"] = parameter.grad
    tensors = {
        key: (value.float() if value.is_floating_point() else value).contiguous()
        for key, value in tensors.items()
    }
    OUT.mkdir(parents=True, exist_ok=True)
    # The attention implementation is transformers' own business, not part of a config.json.
    config_json = json.dumps(json.loads(config.to_json_string()))
    metadata = {"config": config_json, "temperature": str(TEMPERATURE)}
    save_file(tensors, OUT / f"{name}.safetensors", metadata)


for model_name in sys.argv[1:] or MODELS:
    make(model_name, MODELS[model_name])
