#!/usr/bin/env python3
"""Makes tests/golden/parity: a tiny random model of every family as a Hugging Face directory, and what
transformers and PyTorch make of it in f32 on the CPU.

In common: sequences.jsonl (to score), packed.jsonl (one row, for the gradient), samples.jsonl (for 20
steps of SFT, whose settings the loop below reads from sft.toml as `train sft` does).
For each family: model/, expected.json (log-probabilities, greedy tokens, losses of the steps) and
expected.safetensors (the gradient and the final weight of every tensor).

Needs torch and transformers. Usage: parity.py [FAMILY ...] (from the repository root)
"""

import copy
import json
import math
import shutil
import sys
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

OUT = Path("tests/golden/parity")
TOKENIZER = Path("tests/golden/chat/tokenizer")
TOKENS = 270  # of the tokenizer; models have as many rows or more
NEW_TOKENS = 128
SMALLEST_MARGIN = 1e-3
# Where the rotation hardly turns, the gradient of a bias on keys is 0 but for rounding, and AdamW makes
# steps of it; a seed counts only if rounding moves the final weights by less than this.
LARGEST_NOISE = 1e-5
PROMPTS = ["The sequence begins 1, 1, 2, 3, 5, 8", "n = int(input())\nprint("]
# Up to the `max_position_embeddings` of InternLM2.5, beyond which dynamic rope begins to scale.
LENGTHS = [2, 33, 96, 150, 200]
PACKED_LENGTHS = [5, 31, 48, 12, 40]

SHAPE = dict(
    hidden_act="silu",
    hidden_size=24,
    initializer_range=0.2,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    bos_token_id=0,
    eos_token_id=1,
    vocab_size=TOKENS,
    torch_dtype="float32",
    use_cache=True,
)
LLAMA = SHAPE | dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    attention_bias=False,
    attention_dropout=0.0,
    pretraining_tp=1,
    max_position_embeddings=512,
    rms_norm_eps=1e-05,
    rope_scaling=None,
    rope_theta=500000.0,
    tie_word_embeddings=False,
)
QWEN = SHAPE | dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    attention_dropout=0.0,
    max_position_embeddings=512,
    max_window_layers=2,
    rms_norm_eps=1e-06,
    rope_theta=1000000.0,
    sliding_window=512,
    tie_word_embeddings=False,
    use_sliding_window=False,
)
MISTRAL = SHAPE | dict(
    architectures=["MistralForCausalLM"],
    model_type="mistral",
    attention_dropout=0.0,
    head_dim=8,
    max_position_embeddings=512,
    num_attention_heads=4,
    rms_norm_eps=1e-05,
    rope_theta=1000000.0,
    sliding_window=None,
    tie_word_embeddings=False,
)
# The keys of the published config.json of each family, in their published layout.
CONFIGS = {
    "llama3": LLAMA,
    "llama3.2": LLAMA
    | dict(
        head_dim=8,
        num_attention_heads=4,
        mlp_bias=False,
        tie_word_embeddings=True,
        eos_token_id=[1, 2],
        # One frequency of the four stays, one is blended, two are divided by the factor.
        rope_scaling=dict(
            factor=8.0,
            high_freq_factor=4.0,
            low_freq_factor=1.0,
            original_max_position_embeddings=256,
            rope_type="llama3",
        ),
    ),
    "qwen2.5-tied": QWEN
    | dict(
        tie_word_embeddings=True,
        torch_dtype="bfloat16",
        # So much that layers matter beside the embedding: tied, it asks for the same token again.
        initializer_range=0.4,
    ),
    "qwen2.5-untied": QWEN | dict(vocab_size=TOKENS + 10),
    "r1-distill-qwen": QWEN
    | dict(
        rope_theta=10000,
        num_attention_heads=3,
        num_key_value_heads=1,
        eos_token_id=0,
        use_mrope=False,
    ),
    "mistral": MISTRAL,
    "qwen3": QWEN
    | dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        attention_bias=False,
        head_dim=8,
        num_attention_heads=4,
        rope_scaling=None,
        sliding_window=None,
    ),
    "internlm2.5": SHAPE
    | dict(
        architectures=["InternLM2ForCausalLM"],
        model_type="internlm2",
        attn_implementation="eager",
        bias=False,
        max_position_embeddings=200,
        pad_token_id=0,
        pretraining_tp=1,
        rms_norm_eps=1e-05,
        rope_scaling=dict(type="dynamic", factor=2.0),
        rope_theta=1000000,
        tie_word_embeddings=False,
    ),
}
SHARDS = {"llama3.2": 2, "qwen2.5-untied": 3}
ADDS_BOS = ["llama3", "llama3.2", "mistral", "r1-distill-qwen"]
# How Llama 3, InternLM2.5 and Qwen2.5 cut text; they differ in the length of numbers.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen's generation settings hold a penalty, which neither side may apply here.
GENERATION = {"qwen2.5-tied": dict(do_sample=True, repetition_penalty=1.5, top_k=20)}


def llama_of(internlm: dict) -> LlamaConfig:
    """The Llama that an InternLM2 without biases is. With a `pad_token_id`, PyTorch would not train that
    row of the embedding; here rows are not padded, and all are trained."""
    other = ["architectures", "attn_implementation", "bias", "model_type", "pad_token_id"]
    other += ["rope_scaling"]
    config = {key: value for key, value in internlm.items() if key not in other}
    scaling = internlm["rope_scaling"]
    rope = dict(rope_type=scaling["type"], factor=scaling["factor"], rope_theta=config.pop("rope_theta"))
    return LlamaConfig(**config, rope_parameters=rope)


def internlm_names(tensors: dict, config) -> dict:
    """Tensors of a Llama under InternLM2's names: for each key head, `wqkv` holds the rows of its
    query heads, then those of the key, then those of the value."""
    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    result = {}
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            heads = config.num_key_value_heads
            qkv = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            groups = torch.cat([part.reshape(heads, -1, config.hidden_size) for part in qkv], 1)
            name = name.replace("self_attn.q_proj", "attention.wqkv")
            tensor = groups.reshape(-1, config.hidden_size)
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            continue
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        result[name] = tensor
    return result


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, values: list) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def write_tokenizer(family: str, model_dir: Path) -> None:
    """Writes the tokenizer of the chat tests with fewer merges; it cuts and begins text as the family does."""
    definition = json.loads((TOKENIZER / "tokenizer.json").read_text())
    model = definition["model"]
    num_merges = len(model["merges"]) - (len(model["vocab"]) - TOKENS)
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < TOKENS}
    model["merges"] = model["merges"][:num_merges]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    is_qwen = CONFIGS[family]["model_type"] in ["qwen2", "qwen3"]
    pieces = Split(Regex(PIECES % ("" if is_qwen else "{1,3}")), "isolated")
    tokenizer.pre_tokenizer = Sequence([pieces, ByteLevel(add_prefix_space=False, use_regex=False)])
    if is_qwen:
        tokenizer.normalizer = normalizers.NFC()
    settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    if family in ADDS_BOS:
        bos = settings["bos_token"] = "<|endoftext|>"
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 0)]
        )
    tokenizer.save(str(model_dir / "tokenizer.json"), pretty=False)
    write_json(model_dir / "tokenizer_config.json", settings)


def write_weights(tensors: dict, count: int, model_dir: Path) -> None:
    """Writes weights to one file, or to several with an index."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt"}
    if count == 1:
        save_file(tensors, model_dir / "model.safetensors", metadata)
        return
    place = {
        name: f"model-{1 + i * count // len(tensors):05}-of-{count:05}.safetensors"
        for i, name in enumerate(tensors)
    }
    for file in set(place.values()):
        part = {name: tensor for name, tensor in tensors.items() if place[name] == file}
        save_file(part, model_dir / file, metadata)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    write_json(model_dir / "model.safetensors.index.json", index)


class Model:
    """Holds a family's model directory, and the same model in transformers."""

    def __init__(self, family: str, seed: int):
        self.dir = OUT / family / "model"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        config = CONFIGS[family]
        write_json(self.dir / "config.json", config)
        generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": 0}
        write_json(self.dir / "generation_config.json", generation | GENERATION.get(family, {}))
        write_tokenizer(family, self.dir)
        self.tokenizer = AutoTokenizer.from_pretrained(self.dir)
        assert len(self.tokenizer) == TOKENS
        # transformers knows Qwen's way of cutting text and does not read it from the file.
        from_file = Tokenizer.from_file(str(self.dir / "tokenizer.json"))
        for prompt in PROMPTS:
            assert self.tokenizer(prompt).input_ids == from_file.encode(prompt).ids

        # transformers has no InternLM2: it is a Llama with other names.
        self.is_internlm = family.startswith("internlm")
        known = llama_of(config) if self.is_internlm else AutoConfig.from_pretrained(self.dir)
        torch.manual_seed(seed)
        self.hf = AutoModelForCausalLM.from_config(known).float()
        with torch.no_grad():
            for name, parameter in self.hf.named_parameters():
                if parameter.dim() == 1:
                    # As in published models, biases are large.
                    scale = 1.0 if name.endswith("bias") else 0.2
                    parameter.add_(scale * torch.randn_like(parameter))
        dtype = getattr(torch, config["torch_dtype"])
        self.hf.to(dtype)
        write_weights(self.tensors(lambda p: p.detach()), SHARDS.get(family, 1), self.dir)
        if self.is_internlm:
            self.hf.float()
        else:
            self.hf = AutoModelForCausalLM.from_pretrained(self.dir, dtype=torch.float32)
        self.hf.eval()

    def tensors(self, of) -> dict:
        """Returns `of` every parameter, under the names of the family's files."""
        tensors = {name: of(parameter) for name, parameter in self.hf.named_parameters()}
        return internlm_names(tensors, self.hf.config) if self.is_internlm else tensors

    def logp(self, ids: list) -> torch.Tensor:
        """Returns the log-probabilities of all tokens but the first."""
        ids = torch.tensor(ids)
        logits = self.hf(ids[None], use_cache=False).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]

    def greedy(self, prompt: str) -> tuple:
        """The most likely continuation, and the smallest lead over the second most likely token; no
        lead where it stops early, meets a row that is no token, or only repeats itself."""
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        made = self.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = made.sequences[0, ids.shape[1] :].tolist()
        best = torch.cat(made.logits).topk(2).values
        is_useful = len(new) == NEW_TOKENS and max(new) < TOKENS and len(set(new)) >= 5
        return new, (best[:, 0] - best[:, 1]).min().item() if is_useful else 0.0


def targets(sample: dict) -> torch.Tensor:
    """Tells which tokens are learnt; the first never is."""
    return torch.tensor(sample["labels"][1:]) != -100


def backward(model: Model, samples: list) -> float:
    """Accumulates the gradient of the mean loss over the learnt tokens of all samples together."""
    count = sum(int(targets(sample).sum()) for sample in samples)
    total = 0.0
    for sample in samples:
        loss = -model.logp(sample["input_ids"])[targets(sample)].sum() / count
        loss.backward()
        total += loss.item()
    return total


def rate(step: int, schedule: dict, total: int) -> float:
    """Returns the share of the peak learning rate: a linear warm-up, then half a cosine."""
    warmup = int(schedule["warmup"]["ratio"] * total)
    if step < warmup:
        return step / warmup
    fall = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    return schedule["min_lr_ratio"] + (1 - schedule["min_lr_ratio"]) * fall


def fine_tune(model: Model, samples: list, settings: dict) -> dict:
    """Trains `model` and returns loss, norm of the gradient and learning rate of every step."""
    optim, length = settings["optim"], settings["train"]["gradient_accumulation"]
    total = settings["train"]["total_steps"]
    assert len(samples) == total * length, "one epoch"
    parameters = list(model.hf.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim["weight_decay"]},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, optim["lr"], optim["betas"], optim["eps"])
    steps = {"loss": [], "grad_norm": [], "lr": []}
    for step in range(total):
        lr = optim["lr"] * rate(step, settings["schedule"], total)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.zero_grad()
        steps["loss"].append(backward(model, samples[step * length : (step + 1) * length]))
        norm = torch.nn.utils.clip_grad_norm_(parameters, optim["max_grad_norm"])
        steps["grad_norm"].append(norm.item())
        steps["lr"].append(lr)
        adamw.step()
    return steps


def distance(a: dict, b: dict) -> float:
    """Returns the largest relative distance of two sets of tensors."""
    ratios = [(a[name].double() - b[name].double()).norm() / b[name].double().norm() for name in b]
    return max(ratios).item()


def trained(model: Model, samples: list, settings: dict, dtype=torch.float32) -> tuple:
    """Returns the steps of fine-tuning and the final weights, and leaves `model` as it is."""
    trainee = copy.deepcopy(model)
    trainee.hf.to(dtype)
    steps = fine_tune(trainee, samples, settings)
    return steps, trainee.tensors(lambda parameter: parameter.detach())


def check_that_it_could_fail(model: Model, samples: list, settings: dict, weights: dict) -> None:
    """Checks that weights of a slightly different recipe differ by more than the tolerance of the test."""
    for key, value in [("weight_decay", 0.0), ("max_grad_norm", 1e9), ("betas", [0.9, 0.96])]:
        changed = settings | {"optim": settings["optim"] | {key: value}}
        apart = distance(trained(model, samples, changed)[1], weights)
        assert apart > 5e-4, f"{key} makes no difference: {apart:.1e}"


def make(family: str, sequences: list, packed: list, samples: list, settings: dict) -> None:
    for seed in range(100):
        model = Model(family, seed)
        continuations = [model.greedy(prompt) for prompt in PROMPTS]
        margin = min(margin for _, margin in continuations)
        if margin < SMALLEST_MARGIN:
            continue
        steps, weights = trained(model, samples, settings)
        noise = distance(trained(model, samples, settings, torch.float64)[1], weights)
        if noise < LARGEST_NOISE:
            break
    else:
        raise SystemExit(f"{family}: no seed keeps margin and noise")
    check_that_it_could_fail(model, samples, settings, weights)
    with torch.no_grad():
        logps = [model.logp(sequence["input_ids"]).tolist() for sequence in sequences]
    backward(model, packed)
    gradients = model.tensors(lambda parameter: parameter.grad)
    losses = steps["loss"]
    print(
        f"{family}: seed {seed}, loss {losses[0]:.3f} to {losses[-1]:.3f}, margin {margin:.1e}, "
        f"final weights in f32 and f64 apart by {noise:.1e}"
    )

    def short(values: list) -> list:
        return [float(f"{value:.9g}") for value in values]

    expected = {
        "logprobs": [[None] + short(logp) for logp in logps],
        "prompts": PROMPTS,
        "greedy": [tokens for tokens, _ in continuations],
        "steps": {key: short(values) for key, values in steps.items()},
    }
    (OUT / family / "expected.json").write_text(json.dumps(expected) + "\n")
    tensors = {f"gradient.{name}": tensor for name, tensor in gradients.items()}
    tensors |= {f"trained.{name}": tensor for name, tensor in weights.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, OUT / family / "expected.safetensors")


def random_tokens(length: int, generator: torch.Generator) -> list:
    """Draws small ids more often than large ones, so that there is something to learn."""
    return (TOKENS * torch.rand(length, generator=generator) ** 2).long().tolist()


def random_sample(length: int, generator: torch.Generator) -> dict:
    """Makes a sample whose learnt tokens are scattered; some are learnt, but not all."""
    ids = random_tokens(length, generator)
    is_learnt = torch.rand(length, generator=generator) < 0.6
    is_learnt[0], is_learnt[-1] = False, True
    return {"input_ids": ids, "labels": [i if l else -100 for i, l in zip(ids, is_learnt)]}


def main() -> None:
    settings = tomllib.loads((OUT / "sft.toml").read_text())
    generator = torch.Generator().manual_seed(1)
    longest, train = settings["train"]["seq_len"], settings["train"]
    count = train["total_steps"] * train["gradient_accumulation"]
    lengths = torch.randint(longest // 2 + 1, longest + 1, (count,), generator=generator).tolist()
    sequences = [{"input_ids": random_tokens(length, generator)} for length in LENGTHS]
    packed = [random_sample(length, generator) for length in PACKED_LENGTHS]
    samples = [random_sample(length, generator) for length in lengths]
    for name, values in [("sequences", sequences), ("packed", packed), ("samples", samples)]:
        write_lines(OUT / f"{name}.jsonl", values)
    for family in sys.argv[1:] or CONFIGS:
        make(family, sequences, packed, samples, settings)


main()
