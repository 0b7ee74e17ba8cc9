#!/usr/bin/env python3
"""Makes tests/golden/grpo/{rollouts.json,expected.json,expected.safetensors}: ten steps of GRPO on a
tiny random Llama in plain PyTorch, in f32, with given responses and rewards.

The two cases are the .toml files there over the profiles of configs/profiles. Old log-probabilities
are the policy's at the start of a step, which has two mini-batches. The script fails where f32 and
f64 disagree too much, where no case reaches the clips, where slightly different settings
would give the same weights, and where a loss or its gradient is not that of TRL's GRPOTrainer.
Needs torch, transformers and trl. Usage: grpo.py (from the repository root)
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
from trl import GRPOTrainer

torch.set_num_threads(1)
OUT = Path("tests/golden/grpo")
CASES = ["verl-0.9", "verl-0.5"]
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
# verl's bound of the k3 estimate.
KL_CLAMP = 10.0
LARGEST_NOISE = 3e-5
SMALLEST_DIFFERENCE = 5e-4


def merged(base: dict, over: dict) -> dict:
    """Returns `base` with the values of `over` in their place, table by table."""
    both = base | over
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and "ratio" not in over[key]:
            both[key] = merged(base[key], over[key])
    return both


def read_case(name: str) -> dict:
    case = tomllib.loads((OUT / f"{name}.toml").read_text())
    profile = Path(f"configs/profiles/{case['profile']}.toml")
    return merged(tomllib.loads(profile.read_text()), case)


def make_rollouts(seed: int, steps: int, prompts: int, n: int) -> list:
    """For each step its groups: a prompt, responses of different lengths, and their rewards, which
    are all equal in every fifth group."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(least: int, most: int) -> list:
        length = torch.randint(least, most + 1, (1,), generator=generator).item()
        return torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()

    def group(number: int) -> dict:
        rewards = torch.randint(-2, 7, (n,), generator=generator) / 2
        if number % 5 == 3:
            rewards[:] = rewards[0]
        responses = [tokens(1, 12) for _ in range(n)]
        return {"prompt": tokens(2, 8), "responses": responses, "rewards": rewards.tolist()}

    return [[group(step * prompts + i) for i in range(prompts)] for step in range(steps)]


def advantages(rewards: list, eps: float) -> list:
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return ((rewards - rewards.mean()) / (rewards.std() + eps)).tolist()


def scores(model, prompt: list, response: list, temperature: float) -> tuple:
    """Returns log-probability and entropy of every token of the response."""
    ids = torch.tensor(prompt + response)
    logits = model(ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
    log_p = logits.log_softmax(-1)
    logp = log_p.gather(1, ids[len(prompt) :, None])[:, 0]
    return logp, -(log_p.exp() * log_p).sum(-1)


def token_losses(policy: dict, logp, old, reference, entropy, advantage: float, counts: dict):
    """Returns clipped policy loss, divergence and entropy bonus of every token of a response (verl 0.9)."""
    clamp = policy["log_ratio_clamp"]
    ratio = (logp - old).clamp(-clamp, clamp).exp()
    free = -advantage * ratio
    bounded = -advantage * ratio.clamp(1 - policy["clip_low"], 1 + policy["clip_high"])
    loss = torch.maximum(free, bounded)
    counts["clipped"] += int((bounded > free).sum())
    if advantage < 0:
        limit = torch.full_like(loss, -advantage * policy["clip_dual"])
        counts["clipped_dual"] += int((loss > limit).sum())
        loss = torch.minimum(loss, limit)
    if policy["kl_coef"]:
        distance = (reference - logp).clamp(-clamp, clamp)
        kl = (distance.exp() - distance - 1).clamp(-KL_CLAMP, KL_CLAMP)
        loss = loss + policy["kl_coef"] * kl
    return loss - policy["entropy_coef"] * entropy


def micro_batches(case: dict, samples: list) -> list:
    """Returns groups of samples whose tokens have one mean: the whole mini-batch, or a few samples each."""
    if case["policy"]["aggregation"] == "token-mean":
        return [samples]
    assert case["policy"]["aggregation"] == "micro-token-mean"
    size = case["train"]["micro_batch_size"]
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def loss_of_trl(case: dict, samples: list, rows: list) -> torch.Tensor:
    """The loss of a micro-batch as TRL's trainer computes it from these log-probabilities; its `delta`
    is verl's dual clip. What TRL lacks (clamps of ratios and divergences) is out of reach here."""
    policy, is_global = case["policy"], case["policy"]["aggregation"] == "token-mean"
    pad = torch.nn.utils.rnn.pad_sequence
    columns = [pad([row[i] for row in rows], batch_first=True) for i in range(4)]
    logp, entropy, old, reference = columns
    mask = pad([torch.ones(len(row[0]), dtype=torch.long) for row in rows], batch_first=True)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropy, None),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, **_: x, num_processes=1, sync_gradients=True
        ),
        args=SimpleNamespace(
            delta=policy["clip_dual"], use_bias_correction_kl=False, steps_per_generation=1
        ),
        aux_loss_enabled=False,
        beta=policy["kl_coef"],
        current_gradient_accumulation_steps=1,
        entropy_coef=policy["entropy_coef"],
        _entropy_bonus_enabled=policy["entropy_coef"] != 0,
        epsilon_low=policy["clip_low"],
        epsilon_high=policy["clip_high"],
        importance_sampling_level="token",
        loss_type="dapo" if is_global else "bnpo",
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm=False,
    )
    inputs = {
        "prompt_ids": mask,
        "prompt_mask": mask,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": torch.tensor([sample["advantage"] for sample in samples], dtype=logp.dtype),
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def check_against_trl(case: dict, samples: list, rows: list, loss: torch.Tensor) -> bool:
    """Loss and gradient by every log-probability and entropy, relative to their size. Not where verl
    bounds a divergence, which TRL does not."""
    distances = torch.cat([row[3] - row[0] for row in rows]).detach()
    if case["policy"]["kl_coef"] and (distances.exp() - distances - 1).max() > KL_CLAMP:
        return False
    wanted = [row[i] for row in rows for i in range(2)]
    theirs = loss_of_trl(case, samples, rows)
    assert abs(theirs.item() - loss.item()) < 1e-5 * max(abs(loss.item()), 0.1), (theirs, loss)
    gradients = [
        torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        for value in (loss, theirs)
    ]
    ours, theirs = [torch.cat(gradient) for gradient in gradients]
    assert (ours - theirs).norm() < 1e-5 * ours.norm().clamp(min=1e-3)
    return True


def update(case: dict, model, samples: list, compares: bool) -> dict:
    """Accumulates the gradient of a mini-batch's loss and returns loss and counts."""
    counts, total = {"clipped": 0, "clipped_dual": 0, "as_trl": 0}, 0.0
    temperature = case["rollout"]["temperature"]
    for batch in micro_batches(case, samples):
        rows, losses = [], []
        for sample in batch:
            logp, entropy = scores(model, sample["prompt"], sample["response"], temperature)
            rows.append((logp, entropy, sample["old"], sample["reference"]))
            losses.append(
                token_losses(
                    case["policy"], logp, *rows[-1][2:], entropy, sample["advantage"], counts
                )
            )
        loss = torch.cat(losses).mean()
        if compares:
            counts["as_trl"] += check_against_trl(case, batch, rows, loss)
        loss = loss * len(batch) / len(samples)
        loss.backward()
        total += loss.item()
    return {"loss": total, **counts}


def rate(schedule: dict, step: int, total: int) -> float:
    """Returns the share of the peak learning rate: a linear warm-up, then half a cosine."""
    warmup = int(schedule["warmup"]["ratio"] * total)
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train(case: dict, initial, rollouts: list, dtype=torch.float32, compares=False) -> tuple:
    """Returns loss, norm of the gradient and learning rate of every update, and the weights after each step."""
    model, reference = copy.deepcopy(initial).to(dtype), copy.deepcopy(initial).to(dtype)
    optim, temperature = case["optim"], case["rollout"]["temperature"]
    assert optim["decayed"] == "all" and case["advantage"]["norm_by_std"]
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(
        parameters, optim["lr"], optim["betas"], optim["eps"], optim["weight_decay"]
    )
    mini, epochs = case["train"]["mini_batch_prompts"], case["train"].get("epochs", 1)
    updates, weights = [], []
    for step, groups in enumerate(rollouts):
        mini_batches = []
        with torch.no_grad():
            for first in range(0, len(groups), mini):
                samples = []
                for group in groups[first : first + mini]:
                    values = advantages(group["rewards"], case["advantage"]["eps"])
                    for response, advantage in zip(group["responses"], values):
                        known = [
                            scores(m, group["prompt"], response, temperature)[0]
                            for m in (model, reference)
                        ]
                        sample = dict(old=known[0], reference=known[1], advantage=advantage)
                        samples.append(dict(prompt=group["prompt"], response=response, **sample))
                mini_batches.append(samples)
        for group in adamw.param_groups:
            group["lr"] = optim["lr"] * rate(case["schedule"], step, len(rollouts))
        for samples in mini_batches * epochs:
            adamw.zero_grad()
            done = update(case, model, samples, compares)
            norm = torch.nn.utils.clip_grad_norm_(parameters, optim["max_grad_norm"])
            adamw.step()
            lr = adamw.param_groups[0]["lr"]
            updates.append(dict(step=step, grad_norm=norm.item(), lr=lr, **done))
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return updates, weights


def distance(a: dict, b: dict) -> float:
    """Returns the largest relative distance of two sets of tensors."""
    ratios = [(a[name].double() - b[name].double()).norm() / b[name].double().norm() for name in b]
    return max(ratios).item()


def check_that_it_could_fail(
    case: dict, initial, rollouts: list, expected: dict, clips_dual: bool
) -> None:
    """Checks that slightly different settings end in other weights."""
    changes = [
        ("policy", "clip_high", 0.22),
        ("advantage", "eps", 1e-2),
        ("optim", "weight_decay", 0.0),
        ("optim", "max_grad_norm", 1e9),
        ("optim", "betas", [0.9, 0.99]),
        ("train", "mini_batch_prompts", 4),
    ]
    if clips_dual:
        changes.append(("policy", "clip_dual", 1e9))
    if case["policy"]["kl_coef"]:
        changes += [("policy", "kl_coef", 0.04), ("policy", "entropy_coef", 0.01)]
        changes += [("train", "micro_batch_size", 2), ("policy", "aggregation", "token-mean")]
    for table, key, value in changes:
        changed = case | {table: case[table] | {key: value}}
        apart = distance(train(changed, initial, rollouts)[1][-1], expected)
        assert apart > SMALLEST_DIFFERENCE, f"{table}.{key} makes no difference: {apart:.1e}"


def attempt(seed: int) -> tuple:
    """Returns a model, rollouts and their results, or None where rounding decides too much."""
    torch.manual_seed(seed)
    initial = AutoModelForCausalLM.from_config(CONFIG).float()
    with torch.no_grad():
        for parameter in initial.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    cases = {name: read_case(name) for name in CASES}
    first = cases[CASES[0]]
    shape = [first["train"]["total_steps"], first["rollout"]["num_prompts"], first["rollout"]["n"]]
    rollouts = make_rollouts(seed, *shape)
    found = {}
    for name, case in cases.items():
        updates, weights = train(case, initial, rollouts)
        exact_updates, exact = train(case, initial, rollouts, torch.float64)
        noise = max(distance(a, b) for a, b in zip(weights, exact))
        for u, e in zip(updates, exact_updates):
            noise = max(noise, abs(u["grad_norm"] / e["grad_norm"] - 1))
            noise = max(noise, abs(u["loss"] - e["loss"]) / max(abs(e["loss"]), 0.1))
        clips = {key: sum(u[key] for u in updates) for key in ("clipped", "clipped_dual")}
        print(f"seed {seed}, {name}: f32 and f64 apart by {noise:.1e}, {clips}")
        same = all(u[k] == e[k] for u, e in zip(updates, exact_updates) for k in clips)
        if noise > LARGEST_NOISE or not same or not clips["clipped"]:
            return None
        found[name] = (updates, weights)
    clips_dual = {name: any(u["clipped_dual"] for u in found[name][0]) for name in found}
    if not any(clips_dual.values()):
        return None
    for name, case in cases.items():
        compared, _ = train(case, initial, rollouts, compares=True)
        count = sum(u["as_trl"] for u in compared)
        print(f"seed {seed}, {name}: {count} losses and gradients are those of TRL")
        assert count >= len(compared)
        check_that_it_could_fail(case, initial, rollouts, found[name][1][-1], clips_dual[name])
    return initial, rollouts, found


def main() -> None:
    initial, rollouts, found = next(filter(None, map(attempt, range(1, 100))))
    (OUT / "rollouts.json").write_text(json.dumps(rollouts) + "\n")
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
