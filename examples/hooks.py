#!/usr/bin/env python3
"""An application that answers the gateway's questions (docs/hooks.md), with the standard library alone.

    HOOKS_SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw python3 examples/hooks.py 3000
"""
import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SESSIONS = {"session-of-ann": "ann"}  # what a login of the application would fill


def connect(question):
    user = question["client"]["user"]
    if "token" in question:  # hooks.connect.mode = "instead_of_token": the application knows who that is
        user = SESSIONS.get(question["token"])
        return {"allow": True, "user": user} if user else {"allow": False, "code": 401, "reason": "log in first"}
    if user == "mallory":
        return {"allow": False, "code": 403, "reason": "this account is closed"}
    return {"allow": True, "info": {"name": user}, "channels": ["chat:lobby"]}


def subscribe(question):
    return {"allow": True} if "secret" not in question["channel"] else {"allow": False, "code": 404, "reason": "no such room"}


def publish(question):
    if question["data"] == "spam":
        return {"allow": False, "code": 422, "reason": "no spam"}
    if question["data"] == "darn":
        return {"allow": True, "data": "d***"}
    return {"allow": True}


def rpc(question):
    if question["method"] == "add":
        return {"result": sum(question["data"])}
    return {"error": {"code": 404, "message": f"no method {question['method']}"}}


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    wbufsize = -1  # one packet per answer
    key = base64.b64decode(os.environ.get("HOOKS_SECRET", "").removeprefix("whsec_"))
    answers = {"connect": connect, "subscribe": subscribe, "publish": publish, "rpc": rpc}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = json.dumps(self.answer(json.loads(body))).encode() if self.is_genuine(body) else b""
        self.send_response(200 if answer else 401)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def is_genuine(self, body):
        sent = self.headers["webhook-timestamp"]
        signed = b".".join([self.headers["webhook-id"].encode(), sent.encode(), body])
        expected = "v1," + base64.b64encode(hmac.new(self.key, signed, hashlib.sha256).digest()).decode()
        given = self.headers.get("webhook-signature", "").split(" ")
        return abs(time.time() - int(sent)) < 300 and any(hmac.compare_digest(expected, one) for one in given)

    def answer(self, question):
        return self.answers[question["type"]](question)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Application).serve_forever()
