"""google-genai through the proxy. Without `api_version` it would call /v1/models/... below its base URL."""

from google import genai
from google.genai import errors, types

from stage import ANSWER, KEY, NO_WAIT, URL, check_local_429, main, one_by_one, raises

HELLO = {"model": "gemini-2.5-flash", "contents": "Hello"}


def connect(key=KEY, headers=None):
    options = types.HttpOptions(base_url=f"{URL}/llm/gemini", api_version="v1beta", headers=headers)
    return genai.Client(api_key=key, http_options=options)


client = connect()


def answers():
    answer = client.models.generate_content(**HELLO)
    assert answer.text == ANSWER, answer

    stream = client.models.generate_content_stream(**HELLO)
    text = one_by_one(chunk.text for chunk in stream)
    assert text == ANSWER, text


def refusals():
    # Kept by name: a client that nobody holds closes itself in the middle of a call.
    nobody, hasty = connect(key="nobody"), connect(headers=NO_WAIT)
    with raises(errors.ClientError) as stranger:
        nobody.models.generate_content(**HELLO)
    assert (stranger.error.code, stranger.error.status) == (401, "UNAUTHENTICATED"), stranger.error

    client.models.generate_content(**HELLO)
    with raises(errors.ClientError) as full:
        hasty.models.generate_content(**HELLO)
    assert (full.error.code, full.error.status) == (429, "RESOURCE_EXHAUSTED"), full.error
    check_local_429(full.error.response.headers)


def retries():
    with raises(errors.ServerError) as tried:
        client.models.generate_content(**HELLO)
    assert tried.error.code == 503, tried.error
    with raises(errors.ServerError) as unknown:
        client.models.generate_content(**HELLO)
    assert (unknown.error.code, unknown.error.status) == (502, "UNAVAILABLE"), unknown.error
    assert unknown.error.details["code"] == "outcome_unknown", unknown.error
    client.models.generate_content(**HELLO)


main(answers=answers, refusals=refusals, retries=retries)
