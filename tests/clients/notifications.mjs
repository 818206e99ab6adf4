// The example page examples/notifications.html in headless Chromium: two tabs of one user and one of another.
//
// node notifications.mjs ws://HOST:PORT/ws --one JWT --other JWT [--api-key KEY] [--page FILE]
//
// `--one` and `--other` are tokens of two users without notifications. Lines out: `{"event": "step", "name": ...}` for
// what holds, `{"event": "restart"}` when the gateway is to be restarted with SIGTERM on its data,
// `{"event": "passed"}`, or `{"event": "error", "message": ...}` and exit status 1. Line in: `{"op": "restarted",
// "url": ...}` once the gateway is ready again; `url` only when it has moved.
//
// The tabs reach the gateway through a proxy, so that "while they were away" is certain and needs no waiting.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";
import { parseArgs } from "node:util";
import { openPage } from "./chromium.mjs";
import { commands, emit } from "./lines.mjs";

const LIMIT_MS = 60_000;

const { values: option, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    one: { type: "string" },
    other: { type: "string" },
    "api-key": { type: "string", default: "archmesh-development-api-key-known-to-everybody" },
    page: { type: "string", default: new URL("../../examples/notifications.html", import.meta.url).pathname },
  },
});
let gateway = new URL(positionals[0]);
const userOf = (jwt) => JSON.parse(Buffer.from(jwt.split(".")[1], "base64url")).sub;
const one = userOf(option.one);
const other = userOf(option.other);

// --- The gateway. ---

async function api(path, body) {
  const answer = await fetch(`http://${gateway.host}/api/${path}`, {
    method: "POST",
    headers: { "X-API-Key": option["api-key"] },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  const { result } = answer.ok ? JSON.parse(text) : {};
  if (!result) throw new Error(`POST /api/${path}: ${answer.status} ${text}`);
  return result;
}

/** Sends a notification; its id. */
async function send(title, rest = {}) {
  const body = { user: one, title, message: `about ${title}`, category: "user_action", ...rest };
  return (await api("v1/notifications", body)).notification_id;
}

/** Passes connections on to the gateway. With `isClosed` new ones are refused; `cut` ends those there are. */
const proxy = { isClosed: false, pairs: new Set() };
const proxyServer = createTcpServer((inner) => {
  if (proxy.isClosed) return inner.destroy();
  const outer = connect({ host: gateway.hostname, port: gateway.port });
  const end = () => [inner, outer].forEach((socket) => socket.destroy()) ?? proxy.pairs.delete(end);
  proxy.pairs.add(end);
  for (const socket of [inner, outer]) socket.on("error", end).on("close", end);
  inner.pipe(outer);
  outer.pipe(inner);
});
proxy.cut = () => proxy.pairs.forEach((end) => end());

// --- The page. ---

/** Runs in a tab before the page does, and keeps what passes quickly. */
function watch() {
  window.problems = [];
  window.toasted = [];
  window.toastLinks = [];
  addEventListener("error", ({ message }) => window.problems.push(message));
  addEventListener("unhandledrejection", ({ reason }) => window.problems.push(String(reason)));
  addEventListener("securitypolicyviolation", ({ violatedDirective }) => window.problems.push(violatedDirective));
  const keep = (node) => {
    if (!node.classList?.contains("toast")) return;
    window.toasted.push(node.querySelector("b")?.textContent);
    window.toastLinks.push(...[...node.querySelectorAll("a")].map((link) => link.href));
  };
  const observer = new MutationObserver((records) => records.forEach(({ addedNodes }) => addedNodes.forEach(keep)));
  observer.observe(document, { subtree: true, childList: true });
  if (!location.search.includes("scripted")) return;
  // Instead of a gateway: the test itself feeds the page, in an order that a real one has only by chance.
  window.sockets = [];
  window.sent = [];
  const tell = () => { document.documentElement.dataset.events = `${window.sockets.length} ${window.sent.length}`; };
  window.WebSocket = class {
    constructor(url) {
      window.sockets.push(Object.assign(this, { url, at: performance.now() }));
      setTimeout(() => this.onopen?.());
      tell();
    }
    send(text) {
      window.sent.push(JSON.parse(text));
      tell();
    }
    close() {}
  };
}

function serve(request, answer) {
  const isPage = request.url.startsWith("/notifications.html");
  const watched = (charset) => `${charset}<script>(${watch})()</script>`;
  const page = () => readFileSync(option.page, "utf8").replace(/<meta charset="utf-8">/, watched);
  answer.writeHead(200, { "Content-Type": "text/html" }).end(isPage ? page() : "<!DOCTYPE html><title>driver</title>");
}

/** Runs in the page that has opened the tabs: calls `test` again whenever a tab changes, until it gives something. */
function observe(tab, test, argument, limit) {
  return new Promise((resolve, reject) => {
    const done = (settle, value) => {
      observer.disconnect();
      clearTimeout(timer);
      settle(value);
    };
    const look = () => {
      const value = test(tab.document, argument);
      if (value) done(resolve, value);
    };
    const observer = new MutationObserver(look);
    const timer = setTimeout(() => done(reject, new Error("not within the time")), limit);
    const all = { subtree: true, childList: true, attributes: true, characterData: true };
    observer.observe(tab.document.documentElement, all);
    look();
  });
}

// What follows up to the scenario runs in the tabs.

const isConnected = (page) => page.getElementById("status")?.dataset.state === "connected";
const isAway = (page) => ["waiting", "connecting"].includes(page.getElementById("status").dataset.state);
const isEnabled = (page, selector) => page.querySelector(selector)?.matches(":enabled");
const isGone = (page, selector) => page.querySelector(selector) === null;
const textOf = (page, selector) => page.querySelector(selector)?.textContent;
const valueOf = (page, selector) => page.querySelector(selector).value;
const click = (page, selector) => page.querySelector(selector).click();
const titles = (page) => [...page.querySelectorAll("#list .title")].map((title) => title.textContent);
const isListed = (page, ids) => ids.every((id) => page.querySelector(`#list [data-id="${id}"]`));
const isRead = (page, ids) => ids.every((id) => page.querySelector(`#list [data-id="${id}"]:not(.unread)`));
const hasLines = (page, count) => page.querySelectorAll("#list .title").length === count;

/** The badge, its text for screen readers and the title of the document say the same. */
function hasBadge(page, count) {
  const badge = page.getElementById("badge");
  const label = page.getElementById("bell").getAttribute("aria-label");
  if (count === 0) return badge.hidden && label === "Inbox" && page.title === "Notifications";
  const isShown = !badge.hidden && badge.textContent === String(count);
  return isShown && label === `Inbox, ${count} unread` && page.title === `(${count}) Notifications`;
}

/** Of one item: what a browser has made of it. */
function lookAt(page, id) {
  const row = page.querySelector(`#list [data-id="${id}"]`);
  const names = [...row.querySelectorAll("*")].map((element) => element.tagName.toLowerCase());
  return {
    title: row.querySelector(".title").textContent,
    text: row.querySelector(".text").textContent,
    elements: [...new Set(names)].sort().join(" "),
    links: [...row.querySelectorAll("a")].map((link) => `${link.textContent} ${link.href} ${link.rel}`),
  };
}

/** The last command of that kind that the page has sent over a scripted socket. */
const hasSent = (page, type) => page.defaultView.sent.findLast((command) => command.type === type);
const hasSockets = (page, count) => page.defaultView.sockets.length >= count;

// --- The scenario. ---

function check(holds, what) {
  if (!holds) throw new Error(what);
}

function same(found, expected, what) {
  const [a, b] = [found, expected].map((value) => JSON.stringify(value));
  check(a === b, `${what}: ${a}, expected ${b}`);
}

function tools(run) {
  /** Calls a function with the document of a tab. */
  const inTab = (tab, what, argument) => run(`(${what})(tabs.${tab}.document, ${JSON.stringify(argument)})`);
  const global = (tab, name) => run(`tabs.${tab}.${name}`);
  /** Waits until a function that is called with the document of a tab gives something. */
  const until = async (tab, test, argument) => {
    try {
      return await run(`(${observe})(tabs.${tab}, ${test}, ${JSON.stringify(argument)}, ${LIMIT_MS})`);
    } catch (error) {
      const text = await run(`tabs.${tab}.document.title + " | " + tabs.${tab}.document.body.innerText`);
      const why = `${tab}: ${test} of ${JSON.stringify(argument)}: ${error.message}`;
      throw new Error(`${why}; the page shows: ${text.replace(/\s*\n\s*/g, " / ")}`);
    }
  };
  const both = (test, argument) => Promise.all(["first", "second"].map((tab) => until(tab, test, argument)));
  const open = async (tab, token, more = {}) => {
    const address = `ws://127.0.0.1:${proxyServer.address().port}/ws`;
    const url = `/notifications.html?${new URLSearchParams({ url: address, token, ...more })}`;
    await run(`new Promise((resolve) => {
      (window.tabs ??= {}).${tab} = open(${JSON.stringify(url)});
      tabs.${tab}.addEventListener("load", resolve);
    })`);
  };
  const countOf = async (tab, title) => (await inTab(tab, titles)).filter((one) => one === title).length;
  const toastsOf = async (tab, title) => (await global(tab, "toasted")).filter((one) => one === title).length;
  const once = async (title) => {
    for (const tab of ["first", "second"]) {
      same(await countOf(tab, title), 1, `lines with "${title}" in the ${tab} tab`);
      same(await toastsOf(tab, title), 1, `toasts with "${title}" in the ${tab} tab`);
    }
  };
  const step = (name) => emit("step", { name });
  return { inTab, global, until, both, open, countOf, once, step };
}

async function scenario({ inTab, global, until, both, open, countOf, once, step }) {
  const many = Array.from({ length: 45 }, (_, index) => `No. ${index + 1}`);
  for (const title of many) await send(title, { user: other });
  await Promise.all([open("first", option.one), open("second", option.one), open("stranger", option.other)]);
  await both(isConnected);
  await both(hasBadge, 0);
  await until("stranger", hasBadge, many.length);
  await until("stranger", hasLines, 20);
  step("connected");

  const done = await send("Done", { action: { label: "Open", url: "/w/7" }, priority: "high" });
  await both(isListed, [done]);
  await both(hasBadge, 1);
  await once("Done");
  const { links } = await inTab("first", lookAt, done);
  const origin = await global("first", "location.origin");
  same(links, [`Open ${origin}/w/7 noopener noreferrer`], "link of the action");
  // What is sent later has come, so what was sent earlier would have come.
  const mine = await send("Yours", { user: other });
  await until("stranger", isListed, [mine]);
  const seen = await inTab("stranger", titles);
  same([seen[0], seen.length], ["Yours", 21], "what the other user sees");
  same(await global("stranger", "toasted"), ["Yours"], "what is announced: not what was there before");
  step("both tabs of the user show it, the other user's does not");

  await inTab("first", click, `#list [data-id="${done}"] .title`);
  await both(hasBadge, 0);
  await both(isRead, [done]);
  await both(isGone, `.toast[data-id="${done}"]`);
  step("read in one tab, read in both");

  const hostileText = "<img src=x onerror=\"window.attacked = 1\"><script>window.attacked = 1</script>";
  const metadata = { action: { label: "Open", url: "javascript:window.attacked=1" }, html: hostileText };
  const hostile = await send(hostileText, { message: hostileText, metadata });
  await both(isListed, [hostile]);
  const foreign = await send("Elsewhere", { action: { label: "Your bank", url: "https://evil.example/x" } });
  // A plain publish goes around the inbox and around its checks: the payload is what any backend has made.
  const schemes = ["javascript:window.attacked=1", "data:text/html,x"];
  const urls = [...schemes, "//evil.example", "/\\evil.example", "https://bank.example@evil.example"];
  for (const [n, url] of urls.entries()) {
    const content = { title: `bare ${n}`, message: "m", action: { label: "x", url } };
    const data = { notification_id: `bare-${n}`, user_id: one, ...content };
    await api("publish", { channel: `user:${one}`, type: "notification", data });
  }
  const after = await send("After the hostile ones");
  await both(isListed, [foreign, after]);
  for (const tab of ["first", "second"]) {
    const seen = await inTab(tab, lookAt, hostile);
    same([seen.title, seen.text, seen.links], [hostileText, hostileText, []], "the hostile item");
    same(seen.elements, "button div p span time", "elements of the hostile item");
    const link = "Your bank (evil.example) https://evil.example/x noopener noreferrer";
    same((await inTab(tab, lookAt, foreign)).links, [link], "foreign link");
    const bare = (await global(tab, "toasted")).filter((title) => title.startsWith("bare "));
    same(bare.length, urls.length, "toasts outside of the inbox");
    same(await global(tab, "toastLinks"), [`${origin}/w/7`, "https://evil.example/x"], "links in toasts");
    check((await global(tab, "attacked")) === undefined, "a notification has run as code");
  }
  await both(hasBadge, 3);
  step("hostile text is text, hostile links are none");

  const { items } = await api("v1/notifications/list", { user: one });
  const again = items.find(({ notification_id: id }) => id === after);
  await api("publish", { channel: `user:${one}`, type: "notification", data: again });
  const marker = await send("After the duplicate");
  await both(isListed, [marker]);
  for (const title of ["After the hostile ones", "After the duplicate"]) await once(title);
  await both(hasBadge, 4);
  step("a duplicate is not shown twice");

  const hint = new Promise((resolve) => {
    onRestarted = resolve;
  });
  proxy.isClosed = true;
  emit("restart");
  await both(isAway);
  gateway = new URL((await hint).url ?? gateway);
  const away = [await send("While the gateway was away"), await send("And another one")];
  // The channel has begun anew: only the inbox itself can tell these.
  await api("v1/notifications/mark", { user: one, ids: [foreign], state: "read" });
  await api("v1/notifications/mark", { user: one, ids: [hostile], state: "archived" });
  same(await inTab("first", titles), await inTab("second", titles), "what both tabs show before they are back");
  check(!(await inTab("first", isListed, away)), "the proxy lets nothing through");
  proxy.isClosed = false;
  await Promise.all([both(isConnected), until("stranger", isConnected)]);
  await both(isListed, away);
  await both(isRead, [foreign]);
  await both(isGone, `#list [data-id="${hostile}"]`);
  await both(hasBadge, 4);
  const live = await send("After the restart");
  await both(isListed, [live]);
  await both(hasBadge, 5);
  for (const title of ["While the gateway was away", "And another one", "After the restart"]) await once(title);
  step("a restart loses nothing and shows nothing twice");

  proxy.isClosed = true;
  proxy.cut();
  await both(isAway);
  const cut = await send("While the line was cut");
  await api("v1/notifications/mark", { user: one, ids: [live, marker], state: "read" });
  proxy.isClosed = false;
  await both(isListed, [cut]);
  await both(isRead, [live, marker]);
  await both(hasBadge, 4);
  await once("While the line was cut");
  step("a lost connection is recovered");

  await inTab("first", click, `#list [data-id="${cut}"] .foot > button`);
  await both(isGone, `#list [data-id="${cut}"]`);
  await both(hasBadge, 3);
  step("archived in one tab, gone in both");

  await inTab("first", click, "#preferences summary");
  await until("first", isEnabled, "#preferences fieldset");
  const zone = await inTab("first", () => Intl.DateTimeFormat().resolvedOptions().timeZone);
  same(await inTab("first", valueOf, "#preferences [name=time_zone]"), zone, "time zone of the form");
  await inTab("first", (page) => { page.querySelector("#preferences [name=from]").value = "21:30"; });
  await inTab("first", click, "[data-category=workflow_update][data-channel=in_app]");
  await inTab("first", click, "#preferences form button");
  await until("first", (page) => page.getElementById("saved").textContent === "saved");
  const stored = await api("v1/notifications/preferences", { user: one });
  same(stored.preferences.categories, { workflow_update: { in_app: false } }, "stored categories");
  const quietHours = { enabled: false, from: "21:30", time_zone: zone, to: "07:00" };
  same(stored.preferences.quiet_hours, quietHours, "stored quiet hours");
  const unwanted = { user: one, title: "Unwanted", message: "m", category: "workflow_update" };
  same((await api("v1/notifications", unwanted)).opted_out, 1, "opted out");
  const wanted = await send("Wanted");
  await both(isListed, [wanted]);
  for (const tab of ["first", "second"]) same(await countOf(tab, "Unwanted"), 0, "lines of an unwanted category");
  await both(hasBadge, 4);
  step("an unwanted category does not come");

  await inTab("first", click, "#unread-only");
  await until("first", isGone, "#list li:not(.unread)");
  await until("first", hasLines, 4);
  await inTab("second", click, "#read-all");
  await both(hasBadge, 0);
  await until("first", hasLines, 0);
  await until("second", isGone, "#list .unread");
  step("all are read in both tabs");

  const { length } = await inTab("stranger", titles);
  for (const count of [length + 20, many.length + 1]) {
    await inTab("stranger", click, "#older");
    await until("stranger", hasLines, count);
  }
  same(await inTab("stranger", titles), ["Yours", ...many.reverse()], "all pages");
  same(await inTab("stranger", (page) => page.getElementById("older").hidden), true, "no older ones");
  step("older pages follow");

  // A tab with a closed inbox has received what comes, but has not shown it.
  for (const tab of ["first", "second"]) await inTab(tab, click, "#bell");
  const behind = await send("Behind a closed bell");
  await both(isListed, [behind]);
  for (const { notification_id: id, seen_at: seenAt, title } of await untilConfirmed()) {
    same(Boolean(seenAt), id !== behind, `"${title}" was seen`);
  }
  for (const tab of ["first", "second", "stranger"]) {
    same(await global(tab, "problems"), [], `problems of the ${tab} tab`);
  }
  step("what has come is confirmed, what was shown is seen");
}

/** The inbox, once devices have confirmed all of it. */
async function untilConfirmed() {
  const deadline = Date.now() + LIMIT_MS;
  for (;;) {
    const { items } = await api("v1/notifications/list", { user: one });
    const missing = items.filter((item) => !item.acked_at).map(({ title }) => title);
    if (missing.length === 0) return items;
    check(Date.now() < deadline, `not confirmed: ${missing}`);
  }
}

/** Orders of events that a real gateway has only by chance. */
async function scripted({ inTab, global, until, open, step }) {
  const tab = "scripted";
  const give = (page, messages) => {
    const socket = page.defaultView.sockets.at(-1);
    for (const message of messages) socket.onmessage({ data: JSON.stringify(message) });
  };
  const feed = (...messages) => inTab(tab, give, messages);
  const channel = "user:zoe";
  const epoch = "e1";
  const content = { user_id: "zoe", message: "m", category: "c", priority: "normal", created_at: 1_700_000_000_000 };
  const item = (seq) => ({ notification_id: `n${seq}`, seq, title: `No. ${seq}`, ...content });
  const live = (offset, type, data) => ({ type, channel, epoch, offset, data });
  const welcomed = async (state) => {
    const { id } = await until(tab, hasSent, "auth");
    const data = { user_id: "zoe", node: "none", heartbeat_interval: 30, server_time: Date.now() };
    await feed({ type: "welcome", reply_to: id, data: { ...data, subscriptions: [{ channel, epoch, ...state }] } });
  };
  await open(tab, "none", { scripted: "", url: "ws://usual.test/ws" });
  await welcomed({ offset: 10 });
  const { id: reply } = await until(tab, hasSent, "notifications");
  const counters = { unread: 5, unseen: 5, revision: 5 };
  await feed(
    live(11, "notification", { ...item(6), unread: 6, unseen: 6, revision: 6 }),
    live(12, "notification_update", { state: "read", ids: ["n5", "n4"], unread: 4, unseen: 4, revision: 7 }),
    // As a duplicate, by its offset, it is not handled.
    live(12, "notification_update", { state: "archived", ids: ["n6"], unread: 0, unseen: 0, revision: 8 }),
    { type: "notifications", reply_to: reply, data: { items: [5, 4, 3].map(item), next: 3, ...counters } },
  );
  // Older than the page: it is not new, and its place is further down.
  await feed({ type: "notification", data: item(1) }, { type: "notification_update", data: counters });
  await until(tab, isListed, ["n6", "n5", "n4", "n3"]);
  await until(tab, isRead, ["n5", "n4"]);
  await until(tab, hasBadge, 4);
  same(await inTab(tab, titles), ["No. 6", "No. 5", "No. 4", "No. 3"], "a page that is older than what came before it");
  same(await global(tab, "toasted"), [], "toasts for what was there before");
  step("a page that is older than the changes before it");

  const leave = (page, farewell) => {
    const socket = page.defaultView.sockets.at(-1);
    page.defaultView.left = page.defaultView.performance.now();
    if (farewell) socket.onmessage({ data: JSON.stringify({ type: "disconnect", data: farewell }) });
    socket.onclose({ code: farewell?.code ?? 1006 });
  };
  const waits = { code: 4001, reason: "shutdown", reconnect: true, reconnect_after_ms: 700, url: "ws://other.test/ws" };
  await inTab(tab, leave, waits);
  await until(tab, hasSockets, 2);
  const { url, waited } = await inTab(tab, (page) => {
    const { url, at } = page.defaultView.sockets[1];
    return { url, waited: at - page.defaultView.left };
  });
  same(url, "ws://other.test/ws", "address that a draining node names");
  check(waited >= 690, `the page came back after ${waited} ms`);
  await inTab(tab, leave);
  await until(tab, hasSockets, 3);
  const third = await inTab(tab, (page) => page.defaultView.sockets[2].url);
  same(third, "ws://usual.test/ws", "address after the named one failed");
  const isSecond = (page) => page.defaultView.sent.filter(({ type }) => type === "auth").length >= 2;
  await until(tab, isSecond);
  const { data } = await inTab(tab, hasSent, "auth");
  same(data.recover, { [channel]: { offset: 12, epoch } }, "position after a lost connection");
  const update = { state: "read", all: true, up_to: 5, unread: 1, unseen: 1, revision: 9 };
  await welcomed({ offset: 13, recovered: true, messages: [live(13, "notification_update", update)] });
  await until(tab, isRead, ["n5", "n4", "n3"]);
  await until(tab, hasBadge, 1);
  step("another address, the usual one, recovery");

  await inTab(tab, leave, { code: 4501, reason: "revoked", reconnect: false });
  await until(tab, (page) => page.getElementById("status").dataset.state === "stopped");
  same(await global(tab, "problems"), [], "problems of the scripted tab");
  step("no way back after a final farewell");
}

let onRestarted;
commands(({ op, ...rest }) => op === "restarted" && onRestarted(rest), () => {});

const pageServer = createServer(serve);
const listen = (server) => new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
await Promise.all([pageServer, proxyServer].map(listen));

openPage({}, async ({ fail, finish, inPage, load }) => {
  const run = async (expression) => {
    const how = { expression, awaitPromise: true, returnByValue: true, userGesture: true };
    const { result, exceptionDetails } = await inPage("Runtime.evaluate", how);
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  await load(`http://127.0.0.1:${pageServer.address().port}/`);
  try {
    const all = tools(run);
    await scripted(all);
    await scenario(all);
    emit("passed");
    finish(0);
  } catch (error) {
    fail(error.stack);
  }
});
