#!/usr/bin/env python3
"""Compares log-likelihoods that lm-evaluation-harness reads from `train serve` with those of `train score`, and runs
generation through both of its clients.

    pip install 'lm_eval[api]'
    train serve --model data/demo/base --port 8000 &
    python scripts/peers/lm_eval_client.py http://127.0.0.1:8000 target/release/train data/demo/base
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

BASE, TRAIN, MODEL = sys.argv[1:]
card = requests.get(f"{BASE}/v1/models").json()["data"][0]
problems = [json.loads(line) for line in open("data/demo/test.jsonl")][:40]
pairs = [(problem["description"], " The answer is " + problem["tests"][0]["output"]) for problem in problems]


def ids(text):
    asked = {"prompt": text, "add_special_tokens": False}
    return requests.post(f"{BASE}/tokenize", json=asked).json()["tokens"]


client = LocalCompletionsAPI(base_url=f"{BASE}/v1/completions", model=card["id"], tokenizer_backend="remote",
                             tokenized_requests=True, max_length=card["max_model_len"], batch_size=4)
request = lambda kind, arguments: Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
through_server = client.loglikelihood([request("loglikelihood", pair) for pair in pairs])

with tempfile.TemporaryDirectory() as directory:
    given, out = (pathlib.Path(directory) / name for name in ("given.jsonl", "out.jsonl"))
    sequences = [(ids(context), ids(context + rest)) for context, rest in pairs]
    given.write_text("".join(json.dumps({"input_ids": whole}) + "\n" for _, whole in sequences))
    subprocess.run([TRAIN, "score", "--model", MODEL, "--data", given, "--out", out], check=True)
    scored = [json.loads(line)["logprobs"] for line in out.read_text().splitlines()]
largest = 0.0
for (context, whole), logprobs, (likelihood, _) in zip(sequences, scored, through_server):
    largest = max(largest, abs(sum(logprobs[len(context):]) - likelihood))
assert largest < 1e-4, largest
print(f"{len(pairs)} log-likelihoods of lm_eval through the server are those of train score to {largest:.1e}")

until = {"until": ["\n"], "max_gen_toks": 24, "temperature": 0}
texts = client.generate_until([request("generate_until", (pairs[i][0], until)) for i in range(8)])
chat = LocalChatCompletion(base_url=f"{BASE}/v1/chat/completions", model=card["id"], tokenizer_backend=None,
                           tokenized_requests=False)
messages = [json.dumps([{"role": "user", "content": pairs[i][0]}]) for i in range(8)]
from lm_eval.models.api_models import JsonChatStr
answers = chat.generate_until([request("generate_until", (JsonChatStr(text), dict(until))) for text in messages])
assert len(texts) == len(answers) == 8 and all(isinstance(text, str) for text in texts + answers)
print("generate_until works through local-completions and local-chat-completions")
