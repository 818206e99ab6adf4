#!/usr/bin/env python3
"""Measures hooks on gateways that it starts itself: connects per second without and with the connect hook, and calls (`rpc`) per
second, with the time that each takes.

    .cache/venv/bin/python scripts/bench_hooks.py --binary target/release/archmesh

The application answers every question at once from one asyncio process, and the clients are one other process. Both are slower
than the gateway, so that what the application does alone is measured too. It needs PyPI `websockets`, which `make deps-test`
installs.
"""

import argparse
import asyncio
import json
import multiprocessing
import pathlib
import subprocess
import tempfile
import time
import urllib.request

from websockets.asyncio.client import connect

ANSWERS = {b"connect": b'{"allow":true}', b"rpc": b'{"result":1}'}


def application(pipe):
    """A minimal HTTP server that keeps connections."""

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                await reader.readexactly(int(fields[b"content-length"]))
                body = ANSWERS[fields[b"x-archmesh-hook"]]
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class Gateway:
    """A gateway of its own configuration; ended at the end of the block."""

    def __init__(self, binary, hooks):
        self.binary, self.hooks = str(pathlib.Path(binary).resolve()), hooks

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        file = pathlib.Path(self.folder.name) / "bench.toml"
        file.write_text(
            "[node]\nsize = \"enterprise\"\n[listen]\npublic = [\"127.0.0.1:0\"]\n"
            "[rate_limits]\nhandshakes_per_second = 0\nconnection_messages_per_second = 0\nuser_messages_per_second = 0\n"
            "[limits]\nconnections_per_user_max = 0\nrequests_in_flight_max = 1000\n"
            "[log]\nformat = \"json\"\n[notifications]\nenabled = false\n" + self.hooks
        )
        command = [self.binary, "serve", "--config", str(file)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder.name)
        for line in self.process.stdout:
            if '"listening"' in line and '"public"' in line:
                self.address = json.loads(line)["address"]
                break
        else:
            raise RuntimeError("the gateway did not start")
        command = [self.binary, "token", "--user", "bench"]
        self.token = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        # Nothing may fill the pipe.
        self.drain = multiprocessing.Process(target=lambda: self.process.stdout.read())
        self.drain.start()
        self.url = f"ws://{self.address}/ws?token={self.token}"
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/ready")
                return self
            except OSError:
                time.sleep(0.05)

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()
        self.drain.terminate()
        self.folder.cleanup()


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))] * 1e3


def report(name, count, seconds, took, more):
    rate = f"{count / seconds:8.0f}/s"
    print(f"{name:<22} {rate}   p50 {percentile(took, 0.5):7.2f} ms   p99 {percentile(took, 0.99):7.2f} ms   ({more})", flush=True)


async def welcome(url):
    socket = await connect(url, subprotocols=["archmesh.v1"], compression=None, max_queue=None)
    while json.loads(await socket.recv())["type"] != "welcome":
        pass
    return socket


async def connects(url, arguments, name):
    """Clients that connect, get their welcome, and leave, `clients` at a time."""
    took, end = [], time.monotonic() + arguments.seconds

    async def work():
        while time.monotonic() < end:
            begun = time.monotonic()
            socket = await welcome(url)
            took.append(time.monotonic() - begun)
            await socket.close()

    begun = time.monotonic()
    await asyncio.gather(*(work() for _ in range(arguments.clients)))
    report(name, len(took), time.monotonic() - begun, took, f"{arguments.clients} at a time")


async def calls(url, arguments):
    """Clients that call, one call at a time each."""
    took, end = [], time.monotonic() + arguments.seconds

    async def work():
        socket = await welcome(url)
        while time.monotonic() < end:
            begun = time.monotonic()
            await socket.send('{"type":"rpc","id":"1","data":{"method":"bench"}}')
            while json.loads(await socket.recv())["type"] != "rpc_result":
                pass
            took.append(time.monotonic() - begun)
        await socket.close()

    begun = time.monotonic()
    await asyncio.gather(*(work() for _ in range(arguments.clients)))
    report("rpc", len(took), time.monotonic() - begun, took, f"{arguments.clients} clients, one call at a time each")


async def alone(port, arguments):
    """The application without a gateway."""
    took, end = [], time.monotonic() + arguments.seconds
    request = b"POST / HTTP/1.1\r\ncontent-length: 2\r\nx-archmesh-hook: rpc\r\n\r\n{}"

    async def work():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < end:
            begun = time.monotonic()
            writer.write(request)
            await reader.readuntil(b'{"result":1}')
            took.append(time.monotonic() - begun)
        writer.close()

    begun = time.monotonic()
    await asyncio.gather(*(work() for _ in range(arguments.clients)))
    report("application alone", len(took), time.monotonic() - begun, took, f"{arguments.clients} connections")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/archmesh")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    multiprocessing.set_start_method("fork")
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=application, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    hook = "[hooks.{}]\nurl = \"http://127.0.0.1:" + str(port) + "/\"\n"
    asyncio.run(alone(port, arguments))
    with Gateway(arguments.binary, "") as gateway:
        asyncio.run(connects(gateway.url, arguments, "connect, no hook"))
    with Gateway(arguments.binary, hook.format("connect")) as gateway:
        asyncio.run(connects(gateway.url, arguments, "connect, hook"))
    with Gateway(arguments.binary, hook.format("rpc")) as gateway:
        asyncio.run(calls(gateway.url, arguments))


if __name__ == "__main__":
    main()
