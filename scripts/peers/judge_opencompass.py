#!/usr/bin/env python3
"""The evaluator of OpenCompass (its copy of LiveCodeBench's) on the same programs as `train judge`.

It is the real code: two files of the package `opencompass` from PyPI, fetched without its
dependencies; only the parts of OpenCompass that they import for registration and logging are
replaced by stand-ins, and `pyext`, which no longer installs, by the one function used of it. Needs
numpy and tqdm.

    cargo bench --bench judge -- --export DIR
    python3 scripts/peers/judge_opencompass.py DIR [--limit N] [--processes N]

Prints programs a second, CPU time a program (all processes) and how many passed.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from pathlib import Path

VERSION = "0.5.4"


def fetch(directory):
    """Unpacks the evaluator's files into `directory`."""
    wheel = f"opencompass=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, wheel]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(Path(directory).glob("opencompass-*.whl"))) as archive:
        for name in archive.namelist():
            if "/livecodebench/" in name and name.endswith(".py") or name.endswith("utils/code_execution.py"):
                archive.extract(name, directory)


def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def load(directory):
    """Imports the evaluator without the rest of OpenCompass."""
    root = Path(directory) / "opencompass"

    class Registry:
        def register_module(self, *args, **kwargs):
            return lambda cls: cls

    class RuntimeModule:
        @staticmethod
        def from_string(name, doc, source):
            module = types.ModuleType(name, doc)
            exec(source, module.__dict__)
            return module

    class Logger:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    packages = {
        "opencompass": root,
        "opencompass.datasets": root / "datasets",
        "opencompass.datasets.livecodebench": root / "datasets/livecodebench",
        "opencompass.utils": root / "utils",
    }
    for name, path in packages.items():
        stand_in(name, __path__=[str(path)])
    sys.modules["opencompass.utils"].get_logger = Logger
    stand_in("pyext", RuntimeModule=RuntimeModule)
    stand_in("opencompass.openicl")
    stand_in("opencompass.openicl.icl_evaluator", BaseEvaluator=object)
    stand_in("opencompass.registry", ICL_EVALUATORS=Registry(), LOAD_DATASET=Registry(), TEXT_POSTPROCESSORS=Registry())
    stand_in("opencompass.datasets.livecodebench.livecodebench", LCBCodeGenerationDataset=object)
    return importlib.import_module("opencompass.datasets.livecodebench.evaluator")


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def cpu_secs():
    """Returns the CPU time of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="with problems.jsonl and solutions.jsonl")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    problems = {row["problem_id"]: row["tests"] for row in read(f"{args.directory}/problems.jsonl")}
    solutions = read(f"{args.directory}/solutions.jsonl")[: args.limit]
    samples = [
        {
            "input_output": json.dumps(
                {
                    "inputs": [case["input"] for case in problems[row["problem_id"]]],
                    "outputs": [case["output"] for case in problems[row["problem_id"]]],
                    "fn_name": None,
                }
            )
        }
        for row in solutions
    ]
    with tempfile.TemporaryDirectory(prefix="codeseq-") as directory:
        fetch(directory)
        evaluator = load(directory)
        began, cpu_before = time.monotonic(), cpu_secs()
        results, _ = evaluator.evaluate_generations(
            samples,
            [[row["code"]] for row in solutions],
            num_process_evaluate=args.processes,
        )
        elapsed = time.monotonic() - began
        cpu = cpu_secs() - cpu_before
    passed = sum(all(r is True or r == 1 for r in result[0]) for result in results.values())
    count = len(solutions)
    # It reads `open(0)` as a file named 0, so a sixteenth of these right programs fails.
    if passed * 10 < count * 9:
        sys.exit(f"only {passed} of {count} right programs passed: the evaluator does not work here")
    load_average = os.getloadavg()[0]
    print(
        f"OpenCompass {VERSION}: {count / elapsed:.1f} programs/s with {args.processes} processes, "
        f"{cpu / count * 1e3:.1f} ms CPU a program, {passed} of {count} passed, load average {load_average:.1f}"
    )


if __name__ == "__main__":
    main()
