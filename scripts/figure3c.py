#!/usr/bin/env python3
"""The paper's Figure 3c in small: GTG pass@1 of the demo's model after GRPO under four rewards, each with
and without division by the group's standard deviation, over several seeds.

`run` trains (configs/demo/grpo.toml, a group's prompt computed once) and scores one variant after the
other, all from the SFT checkpoint of `train demo`, and writes
benches/results/figure3c/REWARD-NORM-seedN.json. What has a result is skipped, what was stopped goes on from
its last checkpoint, so the command can be given again at any time. Equal seeds see the same problems in the same order with the same draws; all are scored on the same draws.
`table` prints a Markdown table and writes docs/figure3c.svg.

Intervals are 95 % bootstraps. That of a mean resamples problems, that of a difference resamples seeds and,
within them, problems: how runs with other seeds would differ is part of it, as far as so few can tell.
Left out: other step counts, learning rates and models; all are the demo's.

Needs runs/demo/sft (`train demo`) and nothing but Python's own library.
Usage: figure3c.py run [--binary target/release/train] [--seeds 1 2 3] [--threads 2]
       figure3c.py table
"""

import argparse
import collections
import json
import os
import random
import shutil
import statistics
import subprocess
from pathlib import Path

REWARDS = {"cssr": "CSSR", "binary": "Binary", "pass-rate": "PassRate", "no-log": "NoLog"}
NORMS = {"std": True, "plain": False}
RESULTS = Path("benches/results/figure3c")
RUNS = Path("runs/figure3c")
SFT = Path("runs/demo/sft/checkpoints/step-000400")
TEST = "data/demo/test.jsonl"
ROLLOUTS = 8
JUDGE = ["--cpu-ms-per-case", "200", "--cpu-ms-per-program", "400"]
SAMPLING = ["--max-new-tokens", "320", "--max-sequences", "128"]
RESAMPLES = 10_000


def name_of(reward: str, norm: str, seed: int) -> str:
    return f"{reward}-{norm}-seed{seed}"


def call(binary: str, arguments: list, threads: int) -> None:
    """Runs `train`, and exits with its exit code if it fails (130: stopped, to continue later)."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    command = [binary, "--quiet", *arguments]
    code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    if code:
        raise SystemExit(code)


def train(binary: str, reward: str, norm: str, seed: int, threads: int) -> Path:
    """Trains, or finishes what was begun, and returns the run's directory."""
    out = RUNS / name_of(reward, norm, seed)
    values = [
        f"seed={seed}",
        f"model.path='{SFT}'",
        f"reward.kind='{reward}'",
        f"advantage.norm_by_std={str(NORMS[norm]).lower()}",
        "train.share_prompts=true",
        "checkpoint.every=10",
        "checkpoint.keep_last=1",
    ]
    settings = [word for value in values for word in ("--set", value)]
    begun = any((out / "checkpoints").glob("step-*"))
    how = "--resume" if begun else "--overwrite"
    call(binary, ["grpo", "--config", "configs/demo/grpo.toml", *settings, "--out", out, how], threads)
    return out


def score(binary: str, model: Path, out: Path, threads: int) -> dict:
    """Scores a checkpoint on GTG, or reads the score that `out` has."""
    if not out.exists():
        begun = ["--resume"] if out.with_suffix(".partial.jsonl").exists() else []
        arguments = ["eval", "gtg", "--model", model, "--data", TEST, "--rollouts", str(ROLLOUTS)]
        call(binary, [*arguments, *SAMPLING, *JUDGE, "--out", out, *begun], threads)
    return json.loads(out.read_text())


def summary(score: dict) -> dict:
    """Returns what the table needs of a score, with problems in the order of the file."""
    kept = ["pass_at_1", "mean_response_tokens", "format_errors", "num_infra", "num_rollouts"]
    return {key: score[key] for key in kept} | {
        "passed": [problem["num_passed"] for problem in score["problems"]],
        "judged": [problem["num_judged"] for problem in score["problems"]],
    }


def curves(run: Path) -> dict:
    keys = ["reward/mean", "reward/pass_rate", "reward/zero_variance_groups", "response/mean_tokens",
            "optim/grad_norm"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: [round(row[key], 5) for row in rows] for key in keys}


def verdicts(run: Path) -> dict:
    """Counts the judge's verdicts in training, and how often a use reached half a limit or more."""
    counts = collections.Counter()
    for file in sorted((run / "samples").glob("step-*.jsonl")):
        for line in file.read_text().splitlines():
            verdict = json.loads(line)["verdict"]
            counts[verdict.get("reason", verdict["verdict"])] += 1
            counts["near_limit"] += verdict.get("near_limit", False)
    return dict(counts)


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(value) + "\n")
    unfinished.replace(path)


def run_all(binary: str, seeds: list, threads: int) -> None:
    if not SFT.exists():
        raise SystemExit(f"{SFT} is not there: run `train demo` first")
    RUNS.mkdir(parents=True, exist_ok=True)
    base = RESULTS / "sft.json"
    if not base.exists():
        write(base, summary(score(binary, SFT, RUNS / "sft.json", threads)))
    for seed in seeds:
        for norm in NORMS:
            for reward in REWARDS:
                result = RESULTS / f"{name_of(reward, norm, seed)}.json"
                if result.exists():
                    continue
                run = train(binary, reward, norm, seed, threads)
                checkpoint = max((run / "checkpoints").glob("step-*"))
                scored = score(binary, checkpoint, run.with_suffix(".json"), threads)
                parts = {"reward": reward, "norm_by_std": NORMS[norm], "seed": seed}
                parts |= {"score": summary(scored), "verdicts": verdicts(run), "curves": curves(run)}
                write(result, parts)
                shutil.rmtree(run)
                print(f"{result.stem}: pass@1 {scored['pass_at_1']:.3f}", flush=True)


def rates(score: dict) -> list:
    return [passed / judged for passed, judged in zip(score["passed"], score["judged"]) if judged]


def interval(draw) -> tuple:
    """Returns the middle 95 % of what `draw` gives for a fixed stream of random numbers."""
    stream = random.Random(0)
    values = sorted(draw(stream) for _ in range(RESAMPLES))
    return values[RESAMPLES // 40], values[-RESAMPLES // 40]


def mean_interval(by_seed: list) -> tuple:
    """Returns the interval of the mean over seeds and problems; problems are resampled."""
    problems = [statistics.fmean(column) for column in zip(*by_seed)]
    return interval(lambda stream: statistics.fmean(stream.choices(problems, k=len(problems))))


def difference_interval(differences: list) -> tuple:
    """Returns the interval of a mean difference; seeds are resampled, and problems within them."""

    def draw(stream: random.Random) -> float:
        seeds = stream.choices(differences, k=len(differences))
        return statistics.fmean(
            statistics.fmean(stream.choices(problems, k=len(problems))) for problems in seeds
        )

    return interval(draw)


def read_results() -> dict:
    """Returns a map from (reward, norm) to {seed: its problems' pass rates}."""
    results = collections.defaultdict(dict)
    for path in sorted(RESULTS.glob("*-seed*.json")):
        result = json.loads(path.read_text())
        norm = next(name for name, value in NORMS.items() if value == result["norm_by_std"])
        results[result["reward"], norm][result["seed"]] = rates(result["score"])
    return results


def difference(results: dict, one: tuple, other: tuple) -> str:
    """Returns `one` less `other` in points, over the seeds that both have."""
    seeds = sorted(set(results[one]) & set(results[other]))
    differences = [[a - b for a, b in zip(results[one][s], results[other][s])] for s in seeds]
    if one == other or not seeds:
        return ""
    low, high = difference_interval(differences)
    mean = statistics.fmean(statistics.fmean(d) for d in differences)
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table() -> None:
    results = read_results()
    base = rates(json.loads((RESULTS / "sft.json").read_text()))
    low, high = mean_interval([base])
    print("| reward | divided by std | pass@1 (95 %) | by seed | less CSSR | less divided by std |")
    print("|---|---|---|---|---|---|")
    print(f"| none (SFT) | | {points(statistics.fmean(base), low, high)} | | | |")
    rows = []
    for norm in NORMS:
        for reward in REWARDS:
            by_seed = results.get((reward, norm))
            if not by_seed:
                continue
            means = [statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)]
            mean, (low, high) = statistics.fmean(means), mean_interval(list(by_seed.values()))
            rows.append((f"{REWARDS[reward]}{'' if NORMS[norm] else ', not divided'}", means, low, high))
            to_cssr = difference(results, (reward, norm), ("cssr", norm))
            to_std = difference(results, (reward, norm), (reward, "std"))
            seeds = ", ".join(f"{100 * value:.1f}" for value in means)
            print(f"| {REWARDS[reward]} | {'yes' if NORMS[norm] else 'no'} | {points(mean, low, high)} "
                  f"| {seeds} | {to_cssr} | {to_std} |")
    Path("docs/figure3c.svg").write_text(figure(rows, statistics.fmean(base)))


def points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def figure(rows: list, base: float) -> str:
    """Draws means as bars with their intervals, seeds as dots, and the SFT model as a line."""
    left, width, step, top = 150, 420, 26, 40

    def x(value: float) -> float:
        return round(left + width * value, 1)

    height = top + step * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="20">GTG pass@1 after GRPO, by reward (dots: seeds; line: SFT)</text>',
    ]
    bottom = top + step * len(rows)
    for tick in range(0, 101, 20):
        at = x(tick / 100)
        parts.append(f'<path d="M{at} {top}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{tick} %</text>')
    for number, (label, means, low, high) in enumerate(rows):
        y = top + step * number + step / 2
        mean = statistics.fmean(means)
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{left}" y="{y - 7}" width="{x(mean) - left:.1f}" height="14" fill="#9bc1e6"/>')
        parts.append(f'<path d="M{x(low)} {y}H{x(high)}" stroke="#1f4e79" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x(value)}" cy="{y}" r="3" fill="#1f4e79"/>' for value in means]
    parts.append(f'<path d="M{x(base)} {top}V{bottom}" stroke="#b03a2e" stroke-dasharray="4 3"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table", help="print the table and draw the figure")
    runs = commands.add_parser("run", help="train and score what is missing")
    runs.add_argument("--binary", default="target/release/train")
    runs.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    runs.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.command == "run":
        run_all(args.binary, args.seeds, args.threads)
    else:
        table()


if __name__ == "__main__":
    main()
