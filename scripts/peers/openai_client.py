#!/usr/bin/env python3
"""Checks `train serve` with the official client: sync, async, streams, errors.

    pip install openai
    train serve --model data/demo/base --port 8000 &
    python scripts/peers/openai_client.py http://127.0.0.1:8000/v1
"""
import asyncio
import sys

import openai

BASE = sys.argv[1]
client = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0)
model = client.models.list().data[0].id
asked = dict(model=model, messages=[{"role": "user", "content": "How many bricks has a wall of n rows?"}],
             max_tokens=24, seed=7)

whole = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=3)
assert [choice.index for choice in whole.choices] == [0, 1]
assert whole.usage.completion_tokens == sum(len(c.logprobs.content) for c in whole.choices)
assert client.models.retrieve(model).id == model

texts = {0: "", 1: ""}
reasons = {}
for chunk in client.chat.completions.create(**asked, n=2, stream=True, stream_options={"include_usage": True}):
    for choice in chunk.choices:
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    usage = chunk.usage
assert [texts[i] for i in (0, 1)] == [choice.message.content for choice in whole.choices]
assert usage == whole.usage and all(reasons.values())

completion = client.completions.create(model=model, prompt=["A wall", "A box"], max_tokens=5, logprobs=2, echo=True,
                                       temperature=0)
for choice, prompt in zip(completion.choices, ["A wall", "A box"]):
    assert choice.text.startswith(prompt) and choice.logprobs.token_logprobs[0] is None
    assert "".join(choice.logprobs.tokens).startswith(choice.text)


async def many():
    asynchronous = openai.AsyncOpenAI(base_url=BASE, api_key="none", max_retries=0)
    answers = await asyncio.gather(*[asynchronous.chat.completions.create(**asked) for _ in range(16)])
    assert {answer.choices[0].message.content for answer in answers} == {whole.choices[0].message.content}
    stream = await asynchronous.chat.completions.create(**asked, stream=True)
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == whole.choices[0].message.content
    # Leaves in the middle.
    stream = await asynchronous.chat.completions.create(**{**asked, "max_tokens": 200}, stream=True)
    async for _ in stream:
        break
    await stream.close()


asyncio.run(many())


def error_of(kind, **changes):
    try:
        client.chat.completions.create(**{**asked, **changes})
    except kind as error:
        return error
    raise AssertionError(f"{changes} was not refused as {kind.__name__}")


assert error_of(openai.NotFoundError, model="gpt-4").code == "model_not_found"
assert error_of(openai.BadRequestError, temperature=9).param == "temperature"
assert error_of(openai.BadRequestError, max_tokens=100_000).code == "context_length_exceeded"
tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
assert error_of(openai.BadRequestError, tools=[tool]).code == "unsupported_parameter"
assert error_of(openai.BadRequestError, messages=[]).request_id
print(f"openai {openai.__version__}: sync, async, streams and errors are as the client expects")
