"""anthropic through the proxy."""

import anthropic

from stage import ANSWER, KEY, NO_WAIT, URL, check_local_429, main, one_by_one, raises

HELLO = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}

client = anthropic.Anthropic(base_url=f"{URL}/llm/anthropic", api_key=KEY)


def answers():
    message = client.messages.create(**HELLO)
    assert message.content[0].text == ANSWER, message

    with client.messages.stream(**HELLO) as stream:
        text = one_by_one(stream.text_stream)
    assert text == ANSWER, text
    assert stream.get_final_message().stop_reason == "end_turn"

    count = client.messages.count_tokens(model=HELLO["model"], messages=HELLO["messages"])
    assert count.input_tokens > 0, count


def refusals():
    with raises(anthropic.AuthenticationError) as stranger:
        client.with_options(api_key="nobody").messages.create(**HELLO)
    assert stranger.error.body["error"]["type"] == "authentication_error", stranger.error

    client.messages.create(**HELLO)
    with raises(anthropic.RateLimitError) as full:
        client.with_options(max_retries=0).messages.create(**HELLO, extra_headers=NO_WAIT)
    assert full.error.body["error"]["type"] == "rate_limit_error", full.error
    assert full.error.body["code"] == "rate_limited", full.error
    check_local_429(full.error.response.headers)


def retries():
    with raises(anthropic.InternalServerError) as tried:
        client.messages.create(**HELLO)
    assert tried.error.status_code == 503, tried.error
    with raises(anthropic.InternalServerError) as unknown:
        client.messages.create(**HELLO)
    assert unknown.error.body["code"] == "outcome_unknown", unknown.error
    client.messages.create(**HELLO)


def patience():
    for _ in range(4):
        client.messages.create(**HELLO)
    # Refused instead of queued, the SDK waits as long as it is told and is then served.
    client.messages.create(**HELLO, extra_headers=NO_WAIT)


main(answers=answers, refusals=refusals, retries=retries, patience=patience)
