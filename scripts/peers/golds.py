#!/usr/bin/env python3
"""Writes the right answers of a benchmark as responses for `train eval TASK --responses`, or wrong ones.

    python3 scripts/peers/golds.py mmlu DATA [--broken] > responses.jsonl

It reads the published files by itself, so that it checks our readers too. Needs nothing but Python. TASK is mmlu, bbh,
gaokao, arc, humaneval, mbpp (DATA is a file for the last two). Right answers have the form that presets `ours` ask for;
`--bare` gives the letter, the text or the grid alone.
"""

import csv
import gzip
import json
import pathlib
import sys


def mmlu(data):
    for path in sorted((data / "data" / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        with open(path, newline="", encoding="utf-8") as file:
            for row, (*_, letter) in enumerate(csv.reader(file)):
                wrong = "ABCD"[("ABCD".index(letter) + 1) % 4]
                yield f"{subject}/{row}", letter, wrong, "Answer: %s"


def bbh(data):
    for path in sorted((data / "bbh").glob("*.json")):
        for row, example in enumerate(json.load(open(path, encoding="utf-8"))["examples"]):
            target = example["target"]
            wrong = "(Z)" if target.startswith("(") and len(target) == 3 else "zzz"
            yield f"{path.stem}/{row}", target, wrong, "So the answer is %s."


def gaokao(data):
    for path in sorted((data / "Data" / "Objective_Questions").glob("*.json")):
        content = json.load(open(path, encoding="utf-8"))
        for row, example in enumerate(content["example"]):
            right = "\n".join("【答案】" + letters for letters in example["answer"])
            others = ["".join(x for x in "ABCDEFG" if x not in letters)[:1] for letters in example["answer"]]
            wrong = "\n".join("【答案】" + letter for letter in others)
            yield f"{content['keywords']}/{row}", right, wrong, "。%s"


def arc(data):
    folder = data / "data" / "evaluation"
    for path in sorted(folder.glob("*.json")):
        for number, pair in enumerate(json.load(open(path))["test"]):
            grid = pair["output"]
            wrong = [[(cell + 1) % 10 for cell in row] for row in grid]
            yield f"{path.stem}/{number}", json.dumps(grid), json.dumps(wrong), "So:\n%s"


def humaneval(data):
    for line in gzip.open(data, "rt", encoding="utf-8"):
        item = json.loads(line)
        right = item["prompt"] + item["canonical_solution"]
        wrong = item["prompt"] + "    return object()\n"
        yield item["task_id"], right, wrong, "```python\n%s\n```"


def mbpp(data):
    text = open(data, encoding="utf-8").read()
    items = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    for item in items:
        code = item["code"].replace("\r\n", "\n")
        yield str(item["task_id"]), code, code + "\ndel " + first_name(code), "```python\n%s\n```"


def first_name(code):
    import ast

    return next(n.name for n in ast.parse(code).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))


def main():
    task, data, *options = sys.argv[1:]
    tasks = {f.__name__: f for f in (mmlu, bbh, gaokao, arc, humaneval, mbpp)}
    for id, right, wrong, form in tasks[task](pathlib.Path(data)):
        answer = wrong if "--broken" in options else right
        response = answer if "--bare" in options else form % answer
        print(json.dumps({"id": id, "response": response}, ensure_ascii=False))


main()
