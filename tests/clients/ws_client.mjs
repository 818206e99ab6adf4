// One connection of npm `ws`, driven by JSON lines; see README.md.

import { readFileSync } from "node:fs";
import WebSocket from "ws";
import { commands, emit, envelope, options, parsed } from "./lines.mjs";

const option = options();
const socket = new WebSocket(option.url, option.protocols, {
  headers: option.headers,
  perMessageDeflate: !option["no-compression"],
  rejectUnauthorized: !option.insecure,
  ca: option.ca && readFileSync(option.ca),
  maxPayload: 64 * 1024 * 1024,
});

socket.on("open", () => emit("open", { protocol: socket.protocol, extensions: socket.extensions }));
socket.on("message", (data, binary) => {
  if (binary) emit("binary", { base64: data.toString("base64") });
  else emit("message", { data: parsed(data.toString()) });
});
socket.on("ping", () => emit("ping"));
socket.on("pong", () => emit("pong"));
socket.on("error", (error) => emit("error", { message: error.message }));
socket.on("close", (code, reason) => finish(code, reason.toString()));
socket.on("unexpected-response", (_request, response) => {
  const chunks = [];
  response.on("data", (chunk) => chunks.push(chunk));
  response.on("end", () => {
    const body = parsed(Buffer.concat(chunks).toString());
    emit("refused", { status: response.statusCode, headers: response.headers, body });
    finish(1006, "");
  });
});

// Standard output may be a pipe, which Node.js writes to asynchronously: the exit waits for the last line.
function finish(code, reason) {
  emit("close", { code, reason });
  process.stdout.write("", () => process.exit(0));
}

let last = 0;
const nextId = () => String(++last);

function run(command) {
  switch (command.op) {
    case "send_text":
      return socket.send(command.text);
    case "send_binary":
      return socket.send(Buffer.from(command.base64, "base64"));
    case "ping":
      return socket.ping();
    case "close":
      return socket.close(command.code, command.reason);
    case "terminate":
      return socket.terminate();
    default:
      return socket.send(envelope(command, nextId));
  }
}

// Commands that come before the connection is open wait for it.
const whenOpen = (action) => (socket.readyState === WebSocket.CONNECTING ? socket.once("open", action) : action());
commands(
  (command) => whenOpen(() => run(command)),
  () => whenOpen(() => socket.close(1000)),
);
