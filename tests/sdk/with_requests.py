"""requests through the proxy: jobs as the vendor's own examples handle them."""

import json
import time

import requests

from stage import GAP_SECS, KEY, NO_WAIT, URL, check_local_429, main, one_by_one

PREDICTIONS = f"{URL}/v1/predictions"
BOAT = {"model": "black-forest-labs/flux-schnell", "input": {"prompt": "a paper boat on a pond"}}

session = requests.Session()
session.headers["X-API-Key"] = KEY


def create(**fields):
    answer = session.post(PREDICTIONS, json=BOAT | fields)
    answer.raise_for_status()
    return answer


def follow(job_id):
    """Polls from 1 s up to 10 s, by half as much more each time, as documented."""
    interval, deadline = 1.0, time.monotonic() + 300
    while time.monotonic() < deadline:
        job = session.get(f"{PREDICTIONS}/{job_id}").json()
        if job["status"] in ("completed", "failed", "cancelled"):
            return job
        time.sleep(interval)
        interval = min(interval * 1.5, 10)
    raise TimeoutError(job_id)


def answers():
    created = create()
    assert created.status_code == 201, created
    assert created.headers["Sluicegate-Charge"] == "accepted", created.headers
    job = follow(created.json()["job_id"])
    assert job["status"] == "completed" and job["result"], job

    endless = create(input={"prompt": "a pond", "run_time_ms": 600_000}).json()["job_id"]
    cancelled = session.delete(f"{PREDICTIONS}/{endless}")
    assert cancelled.ok and cancelled.json()["status"] == "cancelled", cancelled.text

    uploaded = session.post(
        f"{PREDICTIONS}/upload",
        data={"model": BOAT["model"], "input": json.dumps(BOAT["input"])},
        files={"file:image": ("boat.png", b"\0" * 2_000_000, "image/png")},
    )
    uploaded.raise_for_status()
    assert follow(uploaded.json()["job_id"])["status"] == "completed"

    with session.get(f"{URL}/v1/sse", params={"events": 12, "gap_ms": int(GAP_SECS * 1000)}, stream=True) as stream:
        one_by_one(line.decode() for line in stream.iter_lines(chunk_size=1))


def refusals():
    stranger = requests.post(PREDICTIONS, json=BOAT, headers={"X-API-Key": "nobody"})
    check_problem(stranger, 401, "unauthorized")

    job_id = create().json()["job_id"]
    no_slot = session.post(PREDICTIONS, json=BOAT, headers=NO_WAIT)
    check_problem(no_slot, 429, "job_limit")
    assert no_slot.headers["Sluicegate-Charge"] == "not-sent", no_slot.headers
    assert no_slot.json()["limit"] == 1, no_slot.text

    session.delete(f"{PREDICTIONS}/{job_id}").raise_for_status()
    session.get(f"{URL}/v1/templates").raise_for_status()
    full = session.get(f"{URL}/v1/templates", headers=NO_WAIT)
    check_problem(full, 429, "rate_limited")
    check_local_429(full.headers)


def check_problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json", answer.headers
    assert (answer.json()["status"], answer.json()["code"]) == (status, code), answer.text


def retries():
    tried = session.post(PREDICTIONS, json=BOAT)
    assert tried.status_code == 503, tried.text
    assert tried.headers["x-should-retry"] == "false", tried.headers
    unknown = session.post(PREDICTIONS, json=BOAT)
    check_problem(unknown, 502, "outcome_unknown")
    assert unknown.headers["Sluicegate-Charge"] == "unknown", unknown.headers
    follow(create().json()["job_id"])


main(answers=answers, refusals=refusals, retries=retries)
