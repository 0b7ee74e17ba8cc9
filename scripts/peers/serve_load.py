#!/usr/bin/env python3
"""Measures servers of OpenAI's protocol under load: output tokens a second, time to the first token, and time between
tokens.

    pip install aiohttp
    python scripts/peers/serve_load.py NAME=http://127.0.0.1:8000/v1 OTHER=http://127.0.0.1:8001/v1

Every client sends one streamed chat after the other. Servers take turns, so that the machine's other work falls on all
of them. Each answer has TOKENS tokens, whatever the model would say: `ignore_eos` asks servers that follow vLLM for that,
and `generation_config` asks `transformers serve`. The questions are problems of the demo's test set. Tokens are those that
the server counts in `usage`, or else its chunks. The time between tokens is that between chunks with text.
"""
import argparse
import asyncio
import json
import statistics
import time

import aiohttp

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("servers", nargs="+", metavar="NAME=URL")
parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
parser.add_argument("--requests", type=int, default=64, help="for each server, number of clients and round")
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--model", help="the model's name, where a server lists several")
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
prompts = [json.loads(line)["description"] for line in open("data/demo/test.jsonl")]


async def ask(session, url, model, number, is_transformers):
    settings = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": True, "temperature": 0.7}
    body = {"model": model, "messages": [{"role": "user", "content": prompts[number % len(prompts)]}],
            "max_tokens": args.tokens, "temperature": 0.7, "seed": number, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True}
    if is_transformers:
        body["generation_config"] = json.dumps(settings)
    started, times, tokens = time.perf_counter(), [], 0
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{url}: {answer.status} {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            if chunk.get("choices") and chunk["choices"][0]["delta"].get("content"):
                times.append(time.perf_counter())
    return started, times, tokens or len(times)


async def measure(name, url, clients, first):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None),
                                     connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(f"{url}/models") as answer:
            model = args.model or (await answer.json())["data"][0]["id"]
        numbers, done = iter(range(first, first + max(args.requests, clients))), []

        async def client():
            for number in numbers:
                done.append(await ask(session, url, model, number, "transformers" in name))

        started = time.perf_counter()
        await asyncio.gather(*[client() for _ in range(clients)])
        return done, time.perf_counter() - started


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def main():
    servers = [server.split("=", 1) for server in args.servers]
    for name, url in servers:
        # The first requests also load and compile.
        await measure(name, url, 1, 0)
    print(f"{'server':<24}{'clients':>8}{'tokens/s':>10}{'TTFT p50':>10}{'p99':>8}{'ITL p50':>10}{'p99':>8}   (ms)")
    for clients in args.clients:
        found = {name: ([], []) for name, _ in servers}
        for turn in range(args.rounds):
            for name, url in servers:
                done, elapsed = await measure(name, url, clients, 1000 * turn)
                found[name][0].append(sum(tokens for _, _, tokens in done) / elapsed)
                found[name][1].extend(done)
        for name, (rates, done) in found.items():
            first = [1e3 * (times[0] - started) for started, times, _ in done if times]
            gaps = [1e3 * (b - a) for _, times, _ in done for a, b in zip(times, times[1:])]
            print(f"{name:<24}{clients:>8}{statistics.median(rates):>10.0f}{percentile(first, .5):>10.1f}"
                  f"{percentile(first, .99):>8.1f}{percentile(gaps, .5):>10.2f}{percentile(gaps, .99):>8.2f}")


asyncio.run(main())
