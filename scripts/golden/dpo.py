#!/usr/bin/env python3
"""Makes tests/golden/dpo/{pairs.json,expected.json,expected.safetensors}: ten steps of DPO on a tiny random
Llama in PyTorch, in f32, with given pairs. The loss and its metrics are TRL's DPOTrainer's own.

The cases are the .toml files there. The script fails where f32 and f64 disagree too much, and where slightly
different settings would give the same weights. Needs torch, transformers and trl.
Usage: dpo.py (from the repository root)
"""

import copy
import json
import math
import tomllib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import DPOTrainer

torch.set_num_threads(1)
OUT = Path("tests/golden/dpo")
CASES = ["sigmoid", "ipo"]
CONFIG = LlamaConfig(
    vocab_size=24,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    initializer_range=0.3,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=1,
    attn_implementation="eager",
)
METRICS = {
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "accuracy": "rewards/accuracies",
    "chosen_logp": "logps/chosen",
    "rejected_logp": "logps/rejected",
}
LARGEST_NOISE = 3e-5
SMALLEST_DIFFERENCE = 5e-4


def make_pairs(seed: int, steps: int, pairs: int) -> list:
    """For each step its pairs: a prompt and two answers of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(least: int, most: int) -> list:
        length = torch.randint(least, most + 1, (1,), generator=generator).item()
        return torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()

    def pair() -> dict:
        return {"prompt": tokens(2, 8), "chosen": tokens(1, 12), "rejected": tokens(1, 12)}

    return [[pair() for _ in range(pairs)] for _ in range(steps)]


def scores(model, input_ids, attention_mask, labels) -> SimpleNamespace:
    """What TRL asks of a model: of every token that is learnt its log-probability, of others 0."""
    logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    log_p = logits.log_softmax(-1)
    learnt = labels[:, 1:] != -100
    logp = log_p.gather(2, input_ids[:, 1:, None])[..., 0]
    return SimpleNamespace(
        log_probs=torch.where(learnt, logp, torch.zeros_like(logp)),
        entropy=torch.zeros_like(logp),
        mean_logits=torch.zeros_like(logp),
        is_top1=torch.zeros_like(learnt),
    )


def collate(pairs: list) -> dict:
    """All chosen answers, then all rejected, each behind its prompt, padded on the right."""
    sides = [(pair["prompt"], pair[side]) for side in ("chosen", "rejected") for pair in pairs]
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    return {
        "input_ids": pad([prompt + answer for prompt, answer in sides]),
        "attention_mask": pad([[1] * len(prompt + answer) for prompt, answer in sides]),
        "completion_mask": pad([[0] * len(prompt) + [1] * len(answer) for prompt, answer in sides]),
    }


def loss_of_trl(case: dict, model, reference, inputs: dict) -> tuple:
    """The loss as TRL's trainer computes it, and its metrics."""

    def forward(of):
        def call(input_ids, attention_mask, labels, **_):
            return scores(of, input_ids, attention_mask, labels)

        call.training = True
        return call

    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=forward(model),
        ref_model=forward(reference),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        beta=case["loss"]["beta"],
        f_divergence_type="reverse_kl",
        label_smoothing=0.0,
        ld_alpha=None,
        loss_types=[case["loss"]["kind"]],
        loss_weights=[1.0],
        precompute_ref_logps=False,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.ref_model.is_gradient_checkpointing = False
    trainer.model.is_gradient_checkpointing = False
    loss = DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    return loss, {name: metrics["train"][key][0] for name, key in METRICS.items()}


def rate(schedule: dict, step: int, total: int) -> float:
    """The share of the peak learning rate: a linear warm-up, then half a cosine."""
    warmup = int(schedule["warmup"]["ratio"] * total)
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train(case: dict, initial, pairs: list, dtype=torch.float32) -> tuple:
    """Loss, metrics, norm of the gradient and learning rate of every update, and the weights after each."""
    model, reference = copy.deepcopy(initial).to(dtype), copy.deepcopy(initial).to(dtype)
    optim = case["optim"]
    assert optim["decayed"] == "all"
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(
        parameters, optim["lr"], optim["betas"], optim["eps"], optim["weight_decay"]
    )
    updates, weights = [], []
    for step, of_step in enumerate(pairs):
        for group in adamw.param_groups:
            group["lr"] = optim["lr"] * rate(case["schedule"], step, len(pairs))
        adamw.zero_grad()
        loss, metrics = loss_of_trl(case, model, reference, collate(of_step))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, optim["max_grad_norm"])
        adamw.step()
        lr = adamw.param_groups[0]["lr"]
        updates.append(dict(loss=loss.item(), grad_norm=norm.item(), lr=lr, **metrics))
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return updates, weights


def distance(a: dict, b: dict) -> float:
    """The largest relative distance of two sets of tensors."""
    ratios = [(a[name].double() - b[name].double()).norm() / b[name].double().norm() for name in b]
    return max(ratios).item()


def check_that_it_could_fail(case: dict, initial, pairs: list, expected: dict) -> None:
    """Slightly different settings must end in other weights."""
    changes = [
        ("loss", "beta", 0.9 * case["loss"]["beta"]),
        ("loss", "kind", "hinge"),
        ("optim", "weight_decay", 0.0),
        ("optim", "betas", [0.8, 0.9]),
    ]
    for table, key, value in changes:
        changed = case | {table: case[table] | {key: value}}
        apart = distance(train(changed, initial, pairs)[1][-1], expected)
        assert apart > SMALLEST_DIFFERENCE, f"{table}.{key} makes no difference: {apart:.1e}"


def attempt(seed: int) -> tuple:
    """A model, pairs, and what becomes of them; None where rounding decides too much."""
    torch.manual_seed(seed)
    initial = AutoModelForCausalLM.from_config(CONFIG).float()
    with torch.no_grad():
        for parameter in initial.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    cases = {name: tomllib.loads((OUT / f"{name}.toml").read_text()) for name in CASES}
    for case in cases.values():
        case["optim"].setdefault("eps", 1e-8)
    of_train = cases[CASES[0]]["train"]
    pairs = make_pairs(seed, of_train["total_steps"], of_train["pairs_per_step"])
    found = {}
    for name, case in cases.items():
        updates, weights = train(case, initial, pairs)
        exact_updates, exact = train(case, initial, pairs, torch.float64)
        noise = max(distance(a, b) for a, b in zip(weights, exact))
        for u, e in zip(updates, exact_updates):
            noise = max(noise, abs(u["grad_norm"] / e["grad_norm"] - 1), abs(u["loss"] / e["loss"] - 1))
        print(f"seed {seed}, {name}: f32 and f64 apart by {noise:.1e}, loss {updates[-1]['loss']:.3f}")
        if noise > LARGEST_NOISE:
            return None
        check_that_it_could_fail(case, initial, pairs, weights[-1])
        found[name] = (updates, weights)
    return initial, pairs, found


def main() -> None:
    initial, pairs, found = next(filter(None, map(attempt, range(1, 100))))
    (OUT / "pairs.json").write_text(json.dumps(pairs) + "\n")
    expected = {
        name: [{key: float(f"{value:.9g}") for key, value in u.items()} for u in updates]
        for name, (updates, _) in found.items()
    }
    (OUT / "expected.json").write_text(json.dumps(expected) + "\n")
    tensors = {f"initial.{name}": p.detach() for name, p in initial.named_parameters()}
    for case, (_, weights) in found.items():
        for step, of_step in enumerate(weights):
            tensors |= {f"{case}.{step}.{name}": tensor for name, tensor in of_step.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    config_json = json.dumps(json.loads(CONFIG.to_json_string()))
    save_file(tensors, OUT / "expected.safetensors", {"config": config_json})


main()
