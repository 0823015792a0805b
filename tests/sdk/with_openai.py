"""openai through the proxy."""

import asyncio

import openai

from stage import ANSWER, KEY, NO_WAIT, URL, check_local_429, main, one_by_one, raises

BASE_URL = f"{URL}/llm/openai/v1"
HELLO = {"model": "gpt-4.1-nano", "messages": [{"role": "user", "content": "Hello"}]}

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)


def answers():
    chat = client.chat.completions.create(**HELLO)
    assert chat.choices[0].message.content == ANSWER, chat

    stream = client.chat.completions.create(**HELLO, stream=True)
    text = one_by_one(chunk.choices[0].delta.content for chunk in stream if chunk.choices)
    assert text == ANSWER, text

    # Left in the middle: nothing of it may stay behind.
    with client.chat.completions.create(**HELLO, stream=True) as stream:
        next(iter(stream))

    models = [model.id for model in client.models.list()]
    assert "gpt-4.1-nano" in models, models

    raw = client.chat.completions.with_raw_response.create(**HELLO)
    assert raw.headers["x-request-id"] and raw.headers["x-ratelimit-limit"] == "60", raw.headers


def refusals():
    with raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="nobody").chat.completions.create(**HELLO)
    assert stranger.error.code == "unauthorized", stranger.error

    client.chat.completions.create(**HELLO)
    with raises(openai.RateLimitError) as full:
        client.with_options(max_retries=0).chat.completions.create(**HELLO, extra_headers=NO_WAIT)
    assert (full.error.code, full.error.type) == ("rate_limited", "rate_limit_error"), full.error
    check_local_429(full.error.response.headers)


def retries():
    with raises(openai.InternalServerError) as tried:
        client.chat.completions.create(**HELLO)
    assert tried.error.status_code == 503, tried.error
    with raises(openai.InternalServerError) as unknown:
        client.chat.completions.create(**HELLO)
    assert unknown.error.code == "outcome_unknown", unknown.error
    client.chat.completions.create(**HELLO)


def patience():
    async def at_once(calls):
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as many:
            return await asyncio.gather(*(many.chat.completions.create(**HELLO) for _ in range(calls)))

    chats = asyncio.run(at_once(7))
    assert all(chat.choices[0].message.content == ANSWER for chat in chats)
    # Refused instead of queued, the SDK waits as long as it is told and is then served.
    client.chat.completions.create(**HELLO, extra_headers=NO_WAIT)


main(answers=answers, refusals=refusals, retries=retries, patience=patience)
