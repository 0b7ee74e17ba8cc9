#!/usr/bin/env python3
"""A GGUF file read by this program and by llama.cpp: the same tokens, perplexity, greedy answers, speed.

`agree` cuts a text into pieces, compares how both tokenise them and the perplexity of all; then it continues
ten prompts with the most likely tokens and says after how many the two part, and how far their
log-probabilities of our token are apart there. `speed` alternates the two: reading a prompt of 512 tokens, and
decoding 1 and 8 samples of 128 tokens; ours is timed as a process, less one that reads a prompt of 1 token.

Needs numpy and llama-cpp-python. Usage:
    gguf_llama.py agree MODEL.gguf TEXT [--other OTHER.gguf]     OTHER is what llama.cpp reads, where not MODEL
    gguf_llama.py speed MODEL.gguf [--other OTHER.gguf] [--rounds 5]
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "How do I boil an egg?",
    "Explain photosynthesis in one sentence.",
    "Name three primary colours.",
    "What is 12 times 12?",
    "Write a Python function that adds two numbers.",
    "Who wrote Romeo and Juliet?",
    "Give me a tip for sleeping better.",
    "Translate 'good morning' into Spanish.",
]
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NEW_TOKENS = 32


def train(*args) -> str:
    command = [str(BINARY), "--quiet", *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Llama:
    """llama.cpp with room for 8 sequences."""

    def __init__(self, path: str):
        llama_cpp.llama_log_set(SILENT, None)
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 8192, 512, 512, 8
        params.n_threads = params.n_threads_batch = 2
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def tokenize(self, text: str) -> list:
        data = text.encode()
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), False, True)
        return list(tokens[:count])

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, rows: list) -> list:
        """Adds rows of (token, position, sequence, whether its logits are wanted); gives those logits."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = wanted
        assert llama_cpp.llama_decode(self.context, self.batch) == 0
        rows = [i for i, row in enumerate(rows) if row[3]]
        pointers = [llama_cpp.llama_get_logits_ith(self.context, i) for i in rows]
        return [numpy.ctypeslib.as_array(p, (self.size,)).copy() for p in pointers]

    def logprobs(self, tokens: list) -> list:
        """Of every token from the second on."""
        self.clear()
        found = []
        for start in range(0, len(tokens) - 1, 512):
            rows = [(t, start + i, 0, 1) for i, t in enumerate(tokens[start : start + 512])]
            for row, logits in enumerate(self.decode(rows)):
                if start + row + 1 < len(tokens):
                    found.append(logprob(logits, tokens[start + row + 1]))
        return found

    def greedy(self, prompts: list, count: int) -> list:
        """Continues prompts of equal length together."""
        self.clear()
        logits = []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            rows = [(t, i, sequence, int(i == last)) for i, t in enumerate(prompt)]
            for start in range(0, len(rows), 512):
                found = self.decode(rows[start : start + 512])
            logits += found
        answers = [[int(l.argmax())] for l in logits]
        for i in range(1, count):
            at = len(prompts[0]) + i - 1
            logits = self.decode([(a[-1], at, s, 1) for s, a in enumerate(answers)])
            for answer, l in zip(answers, logits):
                answer.append(int(l.argmax()))
        return answers


def logprob(logits, token: int) -> float:
    logits = logits.astype(numpy.float64)
    return float(logits[token] - logits.max() - math.log(numpy.exp(logits - logits.max()).sum()))


def agree(model: str, other: str, text: Path) -> None:
    llama, words = Llama(other), text.read_text()
    pieces = [words[i : i + 1500] for i in range(0, min(len(words), 60_000), 1500)]
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "in.jsonl"), Path(scratch, "out.jsonl")
        lines = [json.dumps({"prompt": piece, "completion": ""}) for piece in pieces]
        data.write_text("\n".join(lines))
        train("score", "--model", model, "--data", data, "--out", out)
        scored = [json.loads(line) for line in out.read_text().splitlines()]
    same = sum(s["input_ids"] == llama.tokenize(piece) for s, piece in zip(scored, pieces))
    ours, theirs = [], []
    for line in scored:
        ours += line["logprobs"][1:]
        theirs += llama.logprobs(line["input_ids"])
    ours, theirs = numpy.array(ours), numpy.array(theirs)
    perplexities = [math.exp(-l.mean()) for l in (ours, theirs)]
    print(f"pieces with the same tokens: {same} of {len(pieces)}")
    print(f"perplexity of {len(ours)} tokens: ours {perplexities[0]:.4f}, llama.cpp {perplexities[1]:.4f}, "
          f"{100 * (perplexities[0] / perplexities[1] - 1):+.3f} %")
    print(f"log-probabilities apart: mean {abs(ours - theirs).mean():.5f}, most {abs(ours - theirs).max():.4f}")
    equal = 0
    for question in QUESTIONS:
        prompt = CHAT.format(question)
        line = json.loads(train("generate", "--model", model, "--prompt", prompt, "--temperature", 0,
                                "--max-new-tokens", NEW_TOKENS, "--ignore-eos", "--json"))
        ids, answer = llama.tokenize(prompt), line["output_ids"]
        expected = llama.greedy([ids], NEW_TOKENS)[0]
        first = next((i for i in range(NEW_TOKENS) if answer[i] != expected[i]), NEW_TOKENS)
        equal += first == NEW_TOKENS
        if first < NEW_TOKENS:
            apart = llama.logprobs(ids + answer[: first + 1])[-1] - line["logprobs"][first]
            print(f"parts after {first} tokens, log-probabilities {abs(apart):.4f} apart: {question}")
    print(f"greedy answers equal for {NEW_TOKENS} tokens: {equal} of {len(QUESTIONS)}")


def speed(model: str, other: str, rounds: int) -> None:
    llama = Llama(other)
    words = " ".join(f"word {i} of a long text" for i in range(200))
    ids = llama.tokenize(words)[:512]
    prompt = words
    while len(llama.tokenize(prompt)) > 512:
        prompt = prompt[:-1]
    times = {}

    def timed(name: str, run) -> None:
        started = time.perf_counter()
        run()
        times.setdefault(name, []).append(time.perf_counter() - started)

    def ours(prompt: str, count: int, samples: int):
        return lambda: train("generate", "--model", model, "--prompt", prompt, "--temperature", 0,
                             "--max-new-tokens", count, "-n", samples, "--ignore-eos")

    def theirs(prompt: list, count: int, samples: int):
        return lambda: llama.greedy([prompt] * samples, count)

    one = "word"
    for _ in range(rounds + 1):
        timed("ours start", ours(one, 1, 1))
        timed("ours prompt", ours(prompt, 1, 1))
        timed("llama prompt", theirs(ids, 1, 1))
        for samples in (1, 8):
            timed(f"ours {samples}", ours(one, 129, samples))
            timed(f"llama {samples}", theirs(llama.tokenize(one), 129, samples))
    times = {name: statistics.median(found[1:]) for name, found in times.items()}
    start = times["ours start"]
    print(f"prompt of 512: ours {512 / (times['ours prompt'] - start):.0f}, "
          f"llama.cpp {512 / times['llama prompt']:.0f} tokens/s")
    for samples in (1, 8):
        tokens = 128 * samples
        print(f"decoding {samples}: ours {tokens / (times[f'ours {samples}'] - start):.1f}, "
              f"llama.cpp {tokens / times[f'llama {samples}']:.1f} tokens/s")
    print(f"our process to its first token after a prompt of 1: {start:.2f} s")


SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["agree", "speed"])
    parser.add_argument("model")
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--other")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--binary", type=Path, default=Path("target/release/train"))
    args = parser.parse_args()
    BINARY = args.binary
    other = args.other or args.model
    if args.what == "agree":
        agree(args.model, other, args.text)
    else:
        speed(args.model, other, args.rounds)
