"""What the Rust test tells a script, and what all scripts share."""

import os
import sys
import time

URL = os.environ["SLUICEGATE_URL"]
# SDKs insist on a key; with [[clients]] it is the client's token, without any it is ignored.
KEY = os.environ["PLACEHOLDER_KEY"]
# Between two chunks of a stream, as the mock sends them.
GAP_SECS = float(os.environ["MOCK_GAP_SECS"])
# Asks the proxy to refuse rather than to wait.
NO_WAIT = {"Sluicegate-Max-Wait": "0s"}
ANSWER = "The mock has read 5 characters and has nothing to add."


def main(**scenarios):
    scenarios[sys.argv[1]]()


def one_by_one(texts):
    """The text of a stream; fails if its chunks came all at once."""
    chunks, times = [], []
    for text in texts:
        if text:
            chunks.append(text)
            times.append(time.monotonic())
    assert len(chunks) >= 10, chunks
    took, sent_in = times[-1] - times[0], GAP_SECS * (len(chunks) - 1)
    assert took > sent_in / 3, f"{len(chunks)} chunks came in {took:.3f} s, sent over {sent_in:.3f} s"
    return "".join(chunks)


class raises:
    """Expects an exception and keeps it as `.error`."""

    def __init__(self, kind):
        self.kind = kind

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _traceback):
        assert error is not None, f"no {self.kind.__name__}"
        self.error = error
        return isinstance(error, self.kind)


def check_local_429(headers):
    """The fields of every refusal for a full window, whatever the dialect of its body."""
    assert headers["sluicegate-limit-source"] == "local", headers
    assert 1 <= int(headers["retry-after"]) <= 62, headers
    assert int(headers["retry-after-ms"]) <= 62_000, headers
    assert headers["x-ratelimit-remaining"] == "0", headers
