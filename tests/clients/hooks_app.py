"""The application of examples/hooks.py with what tests need: it can be slow, and it counts.

First argument: JSON with `secret` (`whsec_...`) and `port` (0 = any). Prints the port, then answers each line on standard
input: an object sets the delays by hook, in seconds (a list of two is a random time between them); everything is answered with
what was asked so far, and how many questions of each hook were under way at once.
"""

import base64
import importlib.util
import json
import pathlib
import random
import sys
import threading
import time

path = pathlib.Path(__file__).parents[2] / "examples" / "hooks.py"
spec = importlib.util.spec_from_file_location("hooks", path)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)

options = json.loads(sys.argv[1])
lock = threading.Lock()
delays, asked, busy, busiest = {}, [], {}, {}


class Application(example.Application):
    key = base64.b64decode(options["secret"].removeprefix("whsec_"))

    def answer(self, question):
        hook = question["type"]
        with lock:
            asked.append(question)
            busy[hook] = busy.get(hook, 0) + 1
            busiest[hook] = max(busiest.get(hook, 0), busy[hook])
        delay = delays.get(hook, 0)
        time.sleep(random.uniform(*delay) if isinstance(delay, list) else delay)
        with lock:
            busy[hook] -= 1
        return super().answer(question)


server = example.Server(("127.0.0.1", options["port"]), Application)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
for line in sys.stdin:
    wish = json.loads(line)
    with lock:
        if isinstance(wish, dict):
            delays.update(wish)
        print(json.dumps({"asked": asked, "busiest": busiest}), flush=True)
