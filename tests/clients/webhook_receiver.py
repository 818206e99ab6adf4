"""A webhook over HTTPS that checks signatures with the standard library alone.

First argument: JSON with `cert` and `key` (PEM files) and `secret` (`whsec_...`). Prints the port, then answers each
line on standard input with one line of JSON: what arrived so far.
"""

import base64
import hashlib
import hmac
import http.server
import json
import ssl
import sys
import threading

options = json.loads(sys.argv[1])
key = base64.b64decode(options["secret"].removeprefix("whsec_"))
arrived = []


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = b".".join([self.headers["webhook-id"].encode(), self.headers["webhook-timestamp"].encode(), body])
        expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        good = any(hmac.compare_digest(expected, given) for given in self.headers["webhook-signature"].split(" "))
        arrived.append({"id": self.headers["webhook-id"], "good": good, "body": json.loads(body)})
        self.send_response(204 if good else 401)
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(options["cert"], options["key"])
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
for _ in sys.stdin:
    print(json.dumps(arrived), flush=True)
