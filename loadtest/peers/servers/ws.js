// npm ws: the fan-out is a loop over the clients, as its manual shows it.
const { readFileSync } = require("node:fs");
const { createServer } = require("node:http");
const { createServer: createTlsServer } = require("node:https");
const { WebSocketServer } = require("ws");

const { PORT, CERT, KEY, DEFLATE } = process.env;
const server = CERT ? createTlsServer({ cert: readFileSync(CERT), key: readFileSync(KEY) }) : createServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: DEFLATE === "1" });
const subscribers = new Set();

sockets.on("connection", (socket, request) => {
  socket.on("error", () => {});
  if (request.url === "/sub") {
    subscribers.add(socket);
    socket.on("close", () => subscribers.delete(socket));
    socket.send("ready");
  } else if (request.url === "/pub") {
    socket.on("message", (message) => {
      for (const subscriber of subscribers) subscriber.send(message, { binary: false });
    });
  } else if (request.url === "/echo") {
    socket.on("message", (message, binary) => socket.send(message, { binary }));
  }
});
server.listen({ port: Number(PORT), host: "127.0.0.1", backlog: 4096 });
