#!/usr/bin/env python3
"""Makes tests/golden/advantages.json: advantages of given rewards, as verl's own functions compute them.

Needs torch, numpy, and verl's sources (`pip download --no-deps verl==0.9.1`, unpacked): what else verl imports is
replaced by stand-ins, since its estimators need none of it. Usage: advantages.py DIR_OF_VERL (from the repository root)
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch

OUT = Path("tests/golden/advantages.json")


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def estimators(verl: Path):
    for name in [
        "omegaconf",
        "tensordict",
        "verl",
        "verl.trainer",
        "verl.trainer.config",
        "verl.utils",
        "verl.utils.device",
        "verl.utils.import_utils",
        "verl.workers",
        "verl.workers.config",
    ]:
        sys.modules[name] = MagicMock()
    sys.modules["verl.utils.import_utils"].deprecated = lambda *_: lambda function: function
    sys.modules["verl"].utils = sys.modules["verl.utils"]
    functional = load("verl.utils.torch_functional", verl / "utils/torch_functional.py")
    sys.modules["verl.utils"].torch_functional = functional
    groupwise = load("verl.utils.groupwise", verl / "utils/groupwise.py")
    sys.modules["verl.utils"].as_torch_index = groupwise.as_torch_index
    sys.modules["verl.utils"].group_mean_std = groupwise.group_mean_std
    return load("verl.trainer.ppo.core_algos", verl / "trainer/ppo/core_algos.py")


def make_groups(seed: int, sizes: list) -> list:
    """For each response of each group its reward and its length."""
    generator = torch.Generator().manual_seed(seed)
    number = lambda least, most: torch.randint(least, most + 1, (1,), generator=generator).item()
    return [[(number(-2, 6) / 2, number(1, 9)) for _ in range(size)] for size in sizes]


def advantages(core, estimator: str, norm_by_std: bool, groups: list) -> list:
    responses = [response for group in groups for response in group]
    longest = max(length for _, length in responses)
    mask = torch.zeros(len(responses), longest, dtype=torch.float64)
    rewards = torch.zeros_like(mask)
    for row, (reward, length) in enumerate(responses):
        mask[row, :length] = 1
        rewards[row, length - 1] = reward
    index = np.array([g for g, group in enumerate(groups) for _ in group])
    arguments = dict(token_level_rewards=rewards, response_mask=mask, index=index)
    match estimator:
        case "grpo":
            found = core.compute_grpo_outcome_advantage(**arguments, norm_adv_by_std_in_grpo=norm_by_std)
        case "rloo":
            found = core.compute_rloo_outcome_advantage(**arguments)
        case "reinforce++":
            config = SimpleNamespace(gamma=1.0)
            found = core.compute_reinforce_plus_plus_outcome_advantage(**arguments, config=config)
    of_responses = found[0]
    for row, (_, length) in enumerate(responses):
        assert (of_responses[row, :length] == of_responses[row, 0]).all(), "one for all tokens"
    values = iter(of_responses[:, 0].tolist())
    return [[float(f"{next(values):.9g}") for _ in group] for group in groups]


def main() -> None:
    core = estimators(Path(sys.argv[1]))
    cases = []
    for seed, sizes in enumerate([[4, 4, 4], [2, 8], [1, 5, 3], [6]], 1):
        groups = make_groups(seed, sizes)
        for estimator, norm_by_std in [("grpo", True), ("grpo", False), ("rloo", True), ("reinforce++", True)]:
            found = advantages(core, estimator, norm_by_std, groups)
            cases.append(dict(estimator=estimator, norm_by_std=norm_by_std, groups=groups, advantages=found))
    OUT.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


main()
