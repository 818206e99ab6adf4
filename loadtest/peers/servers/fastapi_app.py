"""FastAPI under uvicorn[standard] (uvloop, websockets): the connection manager of its manual, and an echo."""

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()
subscribers: set[WebSocket] = set()


@app.websocket("/sub")
async def subscribe(socket: WebSocket) -> None:
    await socket.accept()
    subscribers.add(socket)
    await socket.send_text("ready")
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        subscribers.discard(socket)


@app.websocket("/pub")
async def publish(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            message = await socket.receive_text()
            for subscriber in list(subscribers):
                await subscriber.send_text(message)
    except WebSocketDisconnect:
        pass


@app.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass
