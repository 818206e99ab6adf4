"""A browser as far as push messages go: has the keys of a subscription and opens what is sent to it.

Needs PyPI `http-ece` and `py-vapid`. Prints the keys as JSON, then answers each line on standard input, JSON with
`body` (base64) and `authorization`, with the plaintext and the claims of the token, whose signature is checked.
"""

import base64
import json
import os
import sys

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from py_vapid import Vapid02


def encode(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


private_key = ec.generate_private_key(ec.SECP256R1())
auth = os.urandom(16)
point = private_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
print(json.dumps({"p256dh": encode(point), "auth": encode(auth)}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    plaintext = http_ece.decrypt(
        base64.b64decode(question["body"]), private_key=private_key, auth_secret=auth, version="aes128gcm"
    )
    # The library splits the parameters at commas without spaces.
    authorization = question["authorization"].replace(", ", ",")
    token = authorization.split("t=")[1].split(",")[0]
    answer = {
        "plaintext": json.loads(plaintext),
        "signed": Vapid02.verify(authorization),
        "header": json.loads(decode(token.split(".")[0])),
        "claims": json.loads(decode(token.split(".")[1])),
    }
    print(json.dumps(answer), flush=True)
