// Bun's own server (uWebSockets inside) as its manual shows it: publish and subscribe for the fan-out, echo beside it.
const { PORT, CERT, KEY, DEFLATE } = process.env;
const deflate = DEFLATE === "1";

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(PORT),
  tls: CERT ? { cert: Bun.file(CERT), key: Bun.file(KEY) } : undefined,
  fetch(request, server) {
    const role = new URL(request.url).pathname;
    if (!server.upgrade(request, { data: { role } })) return new Response("WebSocket only", { status: 400 });
  },
  websocket: {
    perMessageDeflate: deflate,
    open(socket) {
      if (socket.data.role !== "/sub") return;
      socket.subscribe("all");
      socket.send("ready");
    },
    message(socket, message) {
      if (socket.data.role === "/pub") server.publish("all", message, deflate);
      else if (socket.data.role === "/echo") socket.send(message);
    },
  },
});
