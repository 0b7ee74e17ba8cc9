#!/usr/bin/env python3
"""Makes tests/golden/ops.safetensors: what PyTorch makes of every operation and of its gradient, computed
in double precision from inputs that are exact in f32. Everything is stored in f32. Needs torch and transformers.
Usage: ops.py (from the repository root)
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

OUT = "tests/golden/ops.safetensors"
GENERATOR = torch.Generator().manual_seed(1)
# Widths are no multiples of a vector register, depths and lengths exceed a block.
ROWS, WIDTH = 5, 37


def normal(*shape: int) -> torch.Tensor:
    """Returns random numbers that f32 holds exactly, in double precision, which need a gradient."""
    return torch.randn(shape, generator=GENERATOR).double().requires_grad_()


def upstream(*outputs: torch.Tensor) -> list:
    """Draws random gradients of the outputs and propagates them back."""
    gradients = [normal(*output.shape).detach() for output in outputs]
    torch.autograd.backward(outputs, gradients)
    return gradients


def rms_norm() -> dict:
    x, weight = normal(ROWS, WIDTH), normal(WIDTH)
    y = F.rms_norm(x, (WIDTH,), weight, eps=1e-5)
    (dy,) = upstream(y)
    return dict(x=x, weight=weight, y=y, dy=dy, dx=x.grad, d_weight=weight.grad)


def head_norm() -> dict:
    """Computes the norms of query heads and key heads in rows of queries, keys and values, as Qwen3 does."""
    queries, keys, dim = 3, 2, 13
    qkv, weight = normal(ROWS, (queries + 2 * keys) * dim), normal(2, dim)
    heads = qkv.view(ROWS, -1, dim)
    q, k, v = heads.split([queries, keys, keys], 1)
    q, k = (F.rms_norm(x, (dim,), w, eps=1e-5) for x, w in zip([q, k], weight))
    y = torch.cat([q, k, v], 1).flatten(1)
    (dy,) = upstream(y)
    return dict(qkv=qkv, weight=weight, y=y, dy=dy, d_qkv=qkv.grad, d_weight=weight.grad)


def rope() -> dict:
    """Returns angles, cosines and sines in f32, as transformers computes them."""
    heads, dim, positions = 3, 12, torch.tensor([0, 1, 17, 100, 511, 1000, 2047])
    config = LlamaConfig(
        hidden_size=heads * dim, num_attention_heads=heads, head_dim=dim, rope_theta=500000.0
    )
    x = normal(len(positions), heads * dim)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    split = x.view(1, len(positions), heads, dim).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(split, split, cos.double(), sin.double())
    y = turned.transpose(1, 2).reshape(x.shape)
    (dy,) = upstream(y)
    return dict(x=x, positions=positions, y=y, dy=dy, dx=x.grad)


def attention() -> dict:
    """Computes causal attention of four query heads on two key heads, for three sequences in one row of tokens."""
    queries, keys, dim, lengths = 4, 2, 10, [1, 53, 18]
    qkv = normal(sum(lengths), (queries + 2 * keys) * dim)
    parts = []
    for rows in qkv.split(lengths):
        heads = rows.view(len(rows), queries + 2 * keys, dim).transpose(0, 1)
        q, k, v = heads.split([queries, keys, keys])
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        parts.append(y.transpose(0, 1).flatten(1))
    y = torch.cat(parts)
    (dy,) = upstream(y)
    return dict(qkv=qkv, lengths=torch.tensor(lengths), y=y, dy=dy, d_qkv=qkv.grad)


def swiglu() -> dict:
    gate_up = normal(ROWS, 2 * WIDTH)
    gate, up = gate_up.chunk(2, -1)
    y = F.silu(gate) * up
    (dy,) = upstream(y)
    return dict(gate_up=gate_up, y=y, dy=dy, d_gate_up=gate_up.grad)


def embedding() -> dict:
    table, tokens = normal(7, WIDTH), torch.tensor([3, 0, 6, 3, 3, 1])
    y = F.embedding(tokens, table)
    (dy,) = upstream(y)
    return dict(table=table, tokens=tokens, y=y, dy=dy, d_table=table.grad)


def logprob() -> dict:
    """Returns a token's log-probability and the entropy under softmax(logits / temperature)."""
    tokens, temperature = torch.tensor([5, 0, 82]), torch.tensor([1.0, 0.7, 1.6]).double()
    logits = (4 * normal(len(tokens), 83)).detach().requires_grad_()
    log_p = (logits / temperature[:, None]).log_softmax(-1)
    logp = log_p.gather(1, tokens[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    d_logp, d_entropy = upstream(logp, entropy)
    return dict(
        logits=logits,
        tokens=tokens,
        temperature=temperature,
        logp=logp,
        entropy=entropy,
        d_logp=d_logp,
        d_entropy=d_entropy,
        d_logits=logits.grad,
    )


def matmul() -> dict:
    x, weight, bias = normal(9, 300), normal(21, 300), normal(21)
    y = F.linear(x, weight, bias)
    (dy,) = upstream(y)
    return dict(
        x=x, weight=weight, bias=bias, y=y, dy=dy, dx=x.grad, d_weight=weight.grad, d_bias=bias.grad
    )


def adamw() -> dict:
    """Makes five steps over a matrix, which decays, and a bias, which does not; gradients are clipped to norm 10."""
    start = [normal(20, 10), normal(33)]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in start]
    gradients = [[normal(*p.shape).detach() for p in parameters] for _ in range(5)]
    groups = [dict(params=parameters[:1], weight_decay=0.1), dict(params=parameters[1:], weight_decay=0)]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    norms = []
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = gradient.clone()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 10.0))
        optimizer.step()

    def flat(tensors: list) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])

    states = [optimizer.state[parameter] for parameter in parameters]
    return dict(
        start=flat(start),
        decaying=torch.tensor(parameters[0].numel()),
        gradients=torch.stack([flat(step) for step in gradients]),
        norms=torch.stack(norms),
        parameters=flat(parameters),
        first_moments=flat([state["exp_avg"] for state in states]),
        second_moments=flat([state["exp_avg_sq"] for state in states]),
    )


def main() -> None:
    tensors = {}
    for op in [rms_norm, rope, attention, swiglu, embedding, logprob, matmul, adamw, head_norm]:
        for name, tensor in op().items():
            tensors[f"{op.__name__}.{name}"] = tensor.detach().float().contiguous()
    save_file(tensors, OUT)


main()
