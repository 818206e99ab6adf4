"""A mail server for the tests, on a free port of the loopback interface.

First argument: JSON with `cert` and `key` (PEM files), `tls` ("none", "starttls", "tls"), `user` and `password`, all
optional. Prints the port, then answers each line on standard input with one line of JSON.

The local part of the recipient says what happens: gone, nobody, policy, full, later (the first time only), stall (no
answer to the mail until the line "release"), reject (after the mail). Everybody else gets the mail.
"""

import asyncio
import email
import email.policy
import json
import ssl
import sys
import threading

from aiosmtpd.smtp import SMTP, AuthResult

RECIPIENT_REPLIES = {
    "gone": "550 5.1.1 <gone@example.net> no such user",
    "nobody": "550 no such user",
    "policy": "550 5.7.1 blocked by policy",
    "full": "452 4.2.2 mailbox full",
}


class Handler:
    def __init__(self):
        self.mails = []
        self.deferred = set()
        self.released = asyncio.Event()
        self.sessions = 0
        self.open = 0
        self.open_most = 0

    async def handle_RCPT(self, server, session, envelope, address, options):
        name = address.split("@")[0]
        if name == "later" and address not in self.deferred:
            self.deferred.add(address)
            return "451 4.7.1 greylisted, try again later"
        if name in RECIPIENT_REPLIES:
            return RECIPIENT_REPLIES[name]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        name = envelope.rcpt_tos[0].split("@")[0]
        if name == "stall":
            await self.released.wait()
        if name == "reject":
            return "554 5.6.0 not wanted"
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)

        def part(kind):
            found = message.get_body((kind,))
            return found and found.get_content().replace("\r\n", "\n")

        self.mails.append(
            {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "options": envelope.mail_options,
                "headers": [[name, str(value)] for name, value in message.items()],
                "type": message.get_content_type(),
                "text": part("plain"),
                "html": part("html"),
                "encrypted": session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None,
                "login": session.auth_data.decode() if session.auth_data else None,
                "hello": session.host_name,
                "peer": session.peer[1],
            }
        )
        return "250 2.0.0 queued"


class Server(SMTP):
    alive = set()

    def connection_made(self, transport):
        if self.transport is None:
            handler = self.event_handler
            handler.sessions += 1
            handler.open += 1
            handler.open_most = max(handler.open_most, handler.open)
        self.alive.add(self)
        super().connection_made(transport)

    def connection_lost(self, error):
        if self in self.alive:
            self.alive.discard(self)
            self.event_handler.open -= 1
        super().connection_lost(error)


def main():
    options = json.loads(sys.argv[1])
    tls = options.get("tls", "none")
    context = None
    if tls != "none":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options["cert"], options["key"])

    def authenticate(server, session, envelope, mechanism, login):
        good = (login.login.decode(), login.password.decode()) == (options["user"], options["password"])
        return AuthResult(success=good, handled=False, auth_data=login.login)

    handler = Handler()
    arguments = {"enable_SMTPUTF8": True}
    if tls == "starttls":
        arguments |= {"tls_context": context, "require_starttls": True}
    if "user" in options:
        arguments |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": tls == "starttls"}

    async def serve():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Server(handler, **arguments), "127.0.0.1", 0, ssl=context if tls == "tls" else None
        )
        say(server.sockets[0].getsockname()[1])
        ended = asyncio.Event()

        def listen():
            for line in sys.stdin:
                asyncio.run_coroutine_threadsafe(answer(json.loads(line)), loop).result()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=listen, daemon=True).start()
        await ended.wait()

    async def answer(question):
        if question == "drop":
            for connection in list(Server.alive):
                connection.transport.abort()
        if question == "release":
            handler.released.set()
        say({"mails": handler.mails, "sessions": handler.sessions, "open_most": handler.open_most})

    asyncio.run(serve())


def say(value):
    print(json.dumps(value), flush=True)


main()
