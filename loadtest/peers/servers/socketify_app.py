"""uWebSockets (the library in socketify's package): publish and subscribe in C++, with only the publisher's message in Python."""

import os

from socketify import App, OpCode

app = App()


def ready(socket) -> None:
    socket.subscribe("all")
    socket.send("ready", OpCode.TEXT)


app.ws("/sub", {"idle_timeout": 120, "open": ready})
app.ws("/pub", {"idle_timeout": 120, "message": lambda socket, message, opcode: app.publish("all", message, OpCode.TEXT)})
app.ws("/echo", {"idle_timeout": 120, "message": lambda socket, message, opcode: socket.send(message, opcode)})
app.listen(int(os.environ["PORT"]), lambda config: None)
app.run()
