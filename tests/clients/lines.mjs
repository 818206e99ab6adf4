// What the Node.js clients share: arguments, JSON lines in and out, envelopes. The table is in README.md.

import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

/** Writes one JSON line. */
export function emit(event, fields = {}) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

/** Reads the command line; the first argument is the URL. */
export function options() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      token: { type: "string" },
      "token-by": { type: "string", default: "query" },
      subprotocol: { type: "string", multiple: true, default: ["archmesh.v1"] },
      header: { type: "string", multiple: true, default: [] },
      "no-compression": { type: "boolean", default: false },
      ca: { type: "string" },
      insecure: { type: "boolean", default: false },
      page: { type: "string" },
    },
  });
  if (positionals.length !== 1) throw new Error("expected exactly one URL");
  const url = new URL(positionals[0]);
  const protocols = values.subprotocol.filter((name) => name !== "");
  const headers = Object.fromEntries(values.header.map((pair) => pair.split(/=(.*)/s).slice(0, 2)));
  if (values.token !== undefined) {
    if (values["token-by"] === "query") url.searchParams.set("token", values.token);
    if (values["token-by"] === "header") headers.Authorization = `Bearer ${values.token}`;
    if (values["token-by"] === "bearer") protocols.push(`bearer.${values.token}`);
  }
  return { ...values, url: url.href, protocols, headers };
}

/** Turns a command into an envelope of that type. */
export function envelope({ op, id, ...data }, nextId) {
  return JSON.stringify({ type: op, id: id ?? nextId(), data });
}

/** Calls `onCommand` for every line of the input and `onEnd` after the last one. */
export function commands(onCommand, onEnd) {
  const lines = createInterface({ input: process.stdin });
  lines.on("line", (line) => {
    if (line.trim() !== "") onCommand(JSON.parse(line));
  });
  lines.on("close", onEnd);
}

/** Parsed JSON, or the text as it is. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
