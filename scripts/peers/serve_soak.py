#!/usr/bin/env python3
"""Soaks `train serve`: requests of random sizes, of which some are cancelled, cut off or malformed. The server's memory
must stay flat, its blocks must come back, and every answer to a request that nothing disturbed must be that of
`train generate` with the same seed.

    pip install aiohttp
    train serve --model data/demo/base --port 8000 &
    python scripts/peers/serve_soak.py http://127.0.0.1:8000 target/release/train data/demo/base --pid $!
"""
import argparse
import asyncio
import collections
import json
import random
import subprocess
import time

import aiohttp

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("base")
parser.add_argument("train")
parser.add_argument("model")
parser.add_argument("--pid", type=int, required=True)
parser.add_argument("--requests", type=int, default=20_000)
parser.add_argument("--clients", type=int, default=48)
args = parser.parse_args()
problems = [json.loads(line)["description"] for line in open("data/demo/test.jsonl")]
# What undisturbed requests ask, so often that answers of `train generate` are computed once: (prompt, seed, n).
KINDS = [(problems[i % len(problems)], i % 7, 1 + i % 3) for i in range(60)]
TOKENS = 24
counts = collections.Counter()


def expected(kind):
    prompt, seed, n = kind
    command = [args.train, "--quiet", "generate", "--model", args.model, "--chat", prompt, "--seed", str(seed),
               "-n", str(n), "--max-new-tokens", str(TOKENS), "--json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line)["output_ids"] for line in lines]


def body(kind, **more):
    prompt, seed, n = kind
    return {"messages": [{"role": "user", "content": prompt}], "seed": seed, "n": n, "max_tokens": TOKENS,
            "return_token_ids": True, **more}


async def undisturbed(session, rng, answers):
    kind = rng.choice(KINDS)
    is_streamed = rng.random() < 0.5
    async with session.post(f"{args.base}/v1/chat/completions", json=body(kind, stream=is_streamed)) as answer:
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) > 0
            counts["refused"] += 1
            return
        assert answer.status == 200, await answer.text()
        text = await answer.text()
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")] if is_streamed \
        else [json.loads(text)]
    ids = [[] for _ in range(kind[2])]
    for part in parts:
        for choice in part["choices"]:
            ids[choice["index"]] += choice.get("token_ids", [])
    assert ids == answers[kind], (kind, ids, answers[kind])
    counts["equal"] += 1


async def cancelled(session, rng):
    kind = rng.choice(KINDS)
    long = body(kind, stream=rng.random() < 0.5, max_tokens=rng.randint(1, 400), ignore_eos=True)
    try:
        async with asyncio.timeout(rng.random() * 0.3):
            async with session.post(f"{args.base}/v1/chat/completions", json=long) as answer:
                async for _ in answer.content:
                    if rng.random() < 0.2:
                        break
    except TimeoutError:
        pass
    counts["cancelled"] += 1


async def malformed(session, rng):
    wrong = rng.choice([b"{", b"[]", b"", b'{"messages": 5}', b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
                        json.dumps(body(KINDS[0], max_tokens=10**6)).encode(), b"\xff\xfe",
                        json.dumps(body(KINDS[0], logit_bias={"99999999": 1})).encode()])
    async with session.post(f"{args.base}/v1/chat/completions", data=wrong,
                            headers={"Content-Type": "application/json"}) as answer:
        assert 400 <= answer.status < 500, (wrong, answer.status)
        await answer.json()
    counts["malformed"] += 1


async def cut_off(rng):
    url = args.base.removeprefix("http://")
    host, port = url.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    text = json.dumps(body(rng.choice(KINDS), stream=True)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text)
    whole = head + text
    writer.write(whole[:rng.randint(1, len(whole))])
    await writer.drain()
    await asyncio.sleep(rng.random() * 0.05)
    writer.transport.abort()
    counts["cut off"] += 1


def resident_mb():
    for line in open(f"/proc/{args.pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024


async def value(session, name):
    async with session.get(f"{args.base}/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith(name):
                return float(line.split()[-1])


async def main():
    answers = {kind: expected(kind) for kind in KINDS}
    rng, numbers, started = random.Random(1), iter(range(args.requests)), time.time()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600), connector=connector) as session:
        memory = []

        async def client():
            for number in numbers:
                draw = rng.random()
                if draw < 0.5:
                    await undisturbed(session, rng, answers)
                elif draw < 0.75:
                    await cancelled(session, rng)
                elif draw < 0.9:
                    await malformed(session, rng)
                else:
                    await cut_off(rng)
                if number % (args.requests // 20) == 0:
                    memory.append(round(resident_mb()))

        await asyncio.gather(*[client() for _ in range(args.clients)])
        for _ in range(200):
            left = [await value(session, f"vllm:{name}") for name in
                    ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]
            if left == [0, 0, 0]:
                break
            await asyncio.sleep(0.05)
    assert left == [0, 0, 0], left
    print(f"{sum(counts.values())} requests in {time.time() - started:.0f} s: {dict(counts)}")
    print(f"resident memory, MB, over the soak: {memory}; nothing runs, waits or holds blocks at the end")


asyncio.run(main())
