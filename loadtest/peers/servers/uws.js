// uWebSockets.js (a build of it from npm): publish and subscribe for the fan-out, echo beside it.
const uws = require("@btc-vision/uwebsockets.js");

const { PORT, CERT, KEY, DEFLATE } = process.env;
const deflate = DEFLATE === "1";
const app = CERT ? uws.SSLApp({ cert_file_name: CERT, key_file_name: KEY }) : uws.App();
const options = {
  compression: deflate ? uws.SHARED_COMPRESSOR : uws.DISABLED,
  idleTimeout: 120,
  maxBackpressure: 16 * 1024 * 1024,
};

app
  .ws("/sub", {
    ...options,
    open(socket) {
      socket.subscribe("all");
      socket.send("ready");
    },
  })
  .ws("/pub", { ...options, message: (socket, message) => app.publish("all", message, false, deflate) })
  .ws("/echo", { ...options, message: (socket, message, binary) => socket.send(message, binary) })
  .listen("127.0.0.1", Number(PORT), (listening) => {
    if (!listening) throw new Error(`cannot listen on port ${PORT}`);
  });
