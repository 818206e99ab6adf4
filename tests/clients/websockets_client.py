"""One connection of PyPI `websockets`, driven by JSON lines; see README.md."""

import argparse
import asyncio
import base64
import itertools
import json
import ssl
import sys
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus


class Connection(ClientConnection):
    """Tells of the control frames that the library handles by itself."""

    def process_event(self, event):
        name = getattr(getattr(event, "opcode", None), "name", "")
        if name in ("PING", "PONG"):
            emit(name.lower())
        super().process_event(event)


def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--token")
    parser.add_argument("--token-by", choices=["query", "header", "bearer", "none"], default="query")
    parser.add_argument("--subprotocol", action="append")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--no-compression", action="store_true")
    parser.add_argument("--ca")
    parser.add_argument("--insecure", action="store_true")
    return parser.parse_args()


def connect_options(args):
    headers = dict(pair.split("=", 1) for pair in args.header)
    protocols = [name for name in args.subprotocol or ["archmesh.v1"] if name]
    url = args.url
    if args.token is not None:
        if args.token_by == "query":
            parts = urlsplit(url)
            query = urlencode([*parse_qsl(parts.query), ("token", args.token)])
            url = urlunsplit(parts._replace(query=query))
        elif args.token_by == "header":
            headers["Authorization"] = f"Bearer {args.token}"
        elif args.token_by == "bearer":
            protocols.append(f"bearer.{args.token}")
    options = {
        "additional_headers": headers,
        "subprotocols": protocols or None,
        "compression": None if args.no_compression else "deflate",
        "max_size": 64 * 1024 * 1024,
        # Only the gateway's own pings are of interest.
        "ping_interval": None,
        "create_connection": Connection,
        "proxy": None,
    }
    if url.startswith("wss:"):
        options["ssl"] = ssl.create_default_context(cafile=args.ca)
        if args.insecure:
            options["ssl"].check_hostname = False
            options["ssl"].verify_mode = ssl.CERT_NONE
    return url, options


async def run(connection, command, ids):
    op = command.pop("op")
    if op == "send_text":
        await connection.send(command["text"])
    elif op == "send_binary":
        await connection.send(base64.b64decode(command["base64"]))
    elif op == "ping":
        await connection.ping()
    elif op == "close":
        await connection.close(command.get("code", 1000), command.get("reason", ""))
    elif op == "terminate":
        connection.transport.abort()
    else:
        message = {"type": op, "id": command.pop("id", None) or str(next(ids)), "data": command}
        await connection.send(json.dumps(message))


async def obey(connection):
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ids = itertools.count(1)
    try:
        while line := await reader.readline():
            if line.strip():
                await run(connection, json.loads(line), ids)
        await connection.close()
    except ConnectionClosed:
        pass


async def main():
    url, options = connect_options(arguments())
    try:
        connection = await connect(url, **options)
    except InvalidStatus as refusal:
        response = refusal.response
        body = parsed((response.body or b"").decode())
        emit("refused", status=response.status_code, headers=dict(response.headers.raw_items()), body=body)
        emit("close", code=1006, reason="")
        return
    except (OSError, InvalidHandshake) as error:
        emit("error", message=str(error))
        emit("close", code=1006, reason="")
        return
    extensions = connection.response.headers.get("Sec-WebSocket-Extensions", "")
    emit("open", protocol=connection.subprotocol or "", extensions=extensions)
    obeying = asyncio.create_task(obey(connection))
    try:
        async for message in connection:
            if isinstance(message, str):
                emit("message", data=parsed(message))
            else:
                emit("binary", base64=base64.b64encode(message).decode())
    except ConnectionClosed:
        pass
    await connection.wait_closed()
    emit("close", code=connection.close_code, reason=connection.close_reason)
    obeying.cancel()


asyncio.run(main())
