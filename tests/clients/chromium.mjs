// Headless Chromium with one page, steered over its debugging port with npm `ws`.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { emit } from "./lines.mjs";

/**
 * Starts Chromium and calls `use` with what steers its page: `inPage` calls the DevTools protocol, `on` hears its
 * events, `load` opens an address, `finish` and `fail` end Chromium and this program.
 */
export function openPage({ insecure }, use) {
  const profile = mkdtempSync(join(tmpdir(), "archmesh-browser-"));
  const browser = spawn(
    process.env.CHROMIUM ?? "chromium",
    [
      "--headless=new",
      "--remote-debugging-port=0",
      `--user-data-dir=${profile}`,
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--no-first-run",
      // A page from a file may talk to the loopback.
      "--disable-features=LocalNetworkAccessChecks",
      // Chromium's sandbox refuses to run as root, which is what containers and CI machines are.
      ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
      ...(insecure ? ["--ignore-certificate-errors"] : []),
      "about:blank",
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );

  const finish = (status) => {
    browser.removeAllListeners("exit");
    browser.once("exit", () => removeProfile(profile, () => process.stdout.write("", () => process.exit(status))));
    if (!browser.kill("SIGKILL")) process.exit(status);
  };
  const log = [];
  const fail = (message) => {
    emit("error", { message: `${message}; last lines of Chromium: ${log.slice(-5).join(" | ")}` });
    finish(1);
  };
  browser.on("error", (error) => fail(`cannot start Chromium: ${error.message}`));
  browser.on("exit", (code) => fail(`Chromium ended with ${code}`));
  process.on("SIGTERM", () => finish(0));

  const steer = async (url) => {
    const socket = new WebSocket(url, { maxPayload: 256 * 1024 * 1024 });
    await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
    const { call, on } = devtools(socket);
    const { targetId } = await call("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await call("Target.attachToTarget", { targetId, flatten: true });
    const inPage = (method, params) => call(method, params, sessionId);
    const load = async (address) => {
      const loaded = new Promise((resolve) => on("Page.loadEventFired", resolve));
      await inPage("Page.enable");
      await inPage("Page.navigate", { url: address });
      await loaded;
    };
    await use({ fail, finish, inPage, load, on });
  };
  createInterface({ input: browser.stderr }).on("line", (line) => {
    log.push(line);
    const url = line.match(/^DevTools listening on (ws:\S+)/)?.[1];
    if (url) steer(url).catch((error) => fail(error.message));
  });
}

/** Processes of Chromium outlive it for a moment and still write; `maxRetries` would not remove what is new. */
function removeProfile(profile, done, triesLeft = 100) {
  try {
    rmSync(profile, { recursive: true, force: true });
  } catch (error) {
    if (triesLeft === 0) throw error;
    return setTimeout(removeProfile, 100, profile, done, triesLeft - 1);
  }
  done();
}

/** Calls of the DevTools protocol over one socket: `call` resolves with the result, `on` hears events. */
function devtools(socket) {
  const waiting = new Map();
  const listeners = new Map();
  let last = 0;
  socket.on("message", (text) => {
    const { id, method, params, result, error } = JSON.parse(text);
    if (id === undefined) return listeners.get(method)?.(params);
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    return error ? reject(new Error(error.message)) : resolve(result);
  });
  return {
    on: (method, listener) => listeners.set(method, listener),
    call: (method, params = {}, sessionId = undefined) =>
      new Promise((resolve, reject) => {
        waiting.set(++last, { resolve, reject });
        socket.send(JSON.stringify({ id: last, method, params, sessionId }));
      }),
  };
}
