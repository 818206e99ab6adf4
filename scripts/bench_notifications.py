#!/usr/bin/env python3
"""Measures notifications on a gateway that runs already: how many are taken, alone and in batches, and how long one takes
from the call of the API to the socket of its user.

    .cache/venv/bin/python scripts/bench_notifications.py --url http://127.0.0.1:8080 --token-command 'archmesh token --user {user}'

Callers are threads that keep their connections; the clock is this program's own on both ends. It needs PyPI `websockets`,
which `make deps-test` installs.
"""

import argparse
import http.client
import json
import shlex
import subprocess
import threading
import time
import urllib.parse

from websockets.sync.client import connect

DEVELOPMENT_KEY = "archmesh-development-api-key-known-to-everybody"


class Caller:
    """One kept connection to the API."""

    def __init__(self, url, key):
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        self.headers = {"X-API-Key": key, "Content-Type": "application/json"}

    def call(self, method, body):
        self.connection.request("POST", f"/api/v1/notifications{method}", json.dumps(body), self.headers)
        answer = json.loads(self.connection.getresponse().read())
        if "result" not in answer:
            raise RuntimeError(answer)
        return answer["result"]


def note(user, title):
    return {"user": user, "title": title, "message": "A text of usual length for a notification.", "category": "user_action"}


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))]


def throughput(arguments, batch):
    """Notifications per second by `callers` threads, and the duration of their calls."""
    took, counts = [], [0] * arguments.callers
    end = time.monotonic() + arguments.seconds

    def work(number):
        caller = Caller(arguments.url, arguments.key)
        while time.monotonic() < end:
            begun = time.monotonic()
            notes = [note(f"bench-{(number * 997 + counts[number] + n) % 10_000}", "t") for n in range(batch)]
            if batch == 1:
                caller.call("", notes[0])
            else:
                caller.call("/batch", {"notifications": notes})
            counts[number] += batch
            took.append(time.monotonic() - begun)

    begun = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(arguments.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(counts) / (time.monotonic() - begun)
    return rate, percentile(took, 0.5) * 1e3, percentile(took, 0.99) * 1e3


def latency(arguments):
    """Milliseconds from the call to the push, one at a time."""
    command = arguments.token_command.format(user="bench-latency")
    token = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True).stdout.strip()
    address = arguments.url.replace("http", "ws", 1) + f"/ws?token={token}"
    caller, took = Caller(arguments.url, arguments.key), []
    with connect(address, subprotocols=["archmesh.v1"]) as socket:
        while json.loads(socket.recv())["type"] != "welcome":
            pass
        for number in range(arguments.samples):
            begun = time.monotonic()
            wanted = caller.call("", note("bench-latency", str(number)))["notification_id"]
            while True:
                message = json.loads(socket.recv(timeout=10))
                if message["type"] == "notification" and message["data"]["notification_id"] == wanted:
                    break
            took.append(time.monotonic() - begun)
    return percentile(took, 0.5) * 1e3, percentile(took, 0.99) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", default=DEVELOPMENT_KEY)
    parser.add_argument("--token-command", default="target/release/archmesh token --user {user}")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    rate, p50, p99 = throughput(arguments, 1)
    print(f"single     {rate:9.0f}/s   call p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   ({arguments.callers} callers)")
    rate, p50, p99 = throughput(arguments, arguments.batch)
    print(f"batches    {rate:9.0f}/s   call p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   (of {arguments.batch})")
    p50, p99 = latency(arguments)
    print(f"to socket                 p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   (one at a time)")


if __name__ == "__main__":
    main()
