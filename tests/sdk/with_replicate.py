"""replicate through the proxy: only the base URL and a placeholder for the token are given."""

import os

# The SDK polls twice a second where this is not set; the mock's jobs are short.
os.environ["REPLICATE_POLL_INTERVAL"] = "0.1"

import replicate
from replicate.exceptions import ModelError, ReplicateError

from stage import KEY, NO_WAIT, URL, main, raises

MODEL, VERSIONED = "acme/boats", "acme/boats:5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
BOAT = {"prompt": "a paper boat on a pond"}
ENDLESS = BOAT | {"run_time_ms": 600_000}

client = replicate.Client(api_token=KEY, base_url=URL)


def check_output(output):
    assert [file.url.startswith("https://replicate.delivery/") for file in output] == [True], output


def answers():
    # Held by the upstream (Prefer: wait, the default), and polled.
    check_output(client.run(MODEL, input=BOAT))
    check_output(client.run(VERSIONED, input=BOAT))
    check_output(client.run(MODEL, input=BOAT, wait=False))
    check_output(client.run(VERSIONED, input=BOAT, wait=False))
    # The wait ends before the job does.
    check_output(client.run(MODEL, input=BOAT | {"run_time_ms": 1_500}, wait=1))
    with raises(ModelError) as failed:
        client.run(MODEL, input=BOAT | {"fail": True})
    assert failed.error.prediction.status == "failed", failed.error

    prediction = client.deployments.predictions.create("acme/fleet", input=ENDLESS, wait=False)
    assert prediction.urls["get"] == f"{URL}/v1/predictions/{prediction.id}", prediction.urls
    assert prediction.urls["cancel"].startswith(URL), prediction.urls
    prediction.reload()
    assert prediction.status in ("starting", "processing"), prediction
    prediction.cancel()
    assert prediction.status == "canceled", prediction
    prediction.reload()
    assert prediction.status == "canceled", prediction

    check_output([event.data for event in client.stream(MODEL, input=BOAT) if event.event.value == "output"])
    # Who follows a job by its stream alone leaves its end to the proxy's own looks; here it is asked for.
    ended = [client.predictions.get(other.id).status for other in client.predictions.list()]
    assert set(ended) == {"succeeded", "failed", "canceled"}, ended


def variables():
    """As `sluicegate env` would have it: nothing in the code but the calls."""
    os.environ |= {"REPLICATE_BASE_URL": URL, "REPLICATE_API_TOKEN": KEY}
    check_output(replicate.Client().run(MODEL, input=BOAT))


def refusals():
    with raises(ReplicateError) as stranger:
        replicate.Client(api_token="nobody", base_url=URL).predictions.get("x")
    assert stranger.error.status == 401, stranger.error

    prediction = client.models.predictions.create(MODEL, input=ENDLESS, wait=False)
    hasty = replicate.Client(api_token=KEY, base_url=URL, headers=dict(NO_WAIT))
    with raises(ReplicateError) as full:
        hasty.models.predictions.create(MODEL, input=BOAT, wait=False)
    assert full.error.status == 429 and "job" in full.error.detail, full.error
    prediction.cancel()


main(answers=answers, variables=variables, refusals=refusals)
