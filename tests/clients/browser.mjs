// One WebSocket of headless Chromium, driven by JSON lines; see README.md. It loads a page (browser.html) and every
// command becomes a call of the page's `command` function.

import { openPage } from "./chromium.mjs";
import { commands, envelope, options } from "./lines.mjs";

const option = options();
const page = option.page ?? new URL("browser.html", import.meta.url).href;

openPage(option, async ({ fail, finish, inPage, load, on }) => {
  on("Runtime.bindingCalled", ({ payload }) => {
    process.stdout.write(payload + "\n");
    if (JSON.parse(payload).event === "close") finish(0);
  });
  on("Runtime.exceptionThrown", ({ exceptionDetails }) => fail(exceptionDetails.exception?.description ?? exceptionDetails.text));
  await inPage("Runtime.enable");
  await inPage("Runtime.addBinding", { name: "report" });
  await load(page);

  const run = async (command) => {
    const expression = `command(${JSON.stringify(command)})`;
    const { exceptionDetails } = await inPage("Runtime.evaluate", { expression });
    if (exceptionDetails) fail(exceptionDetails.exception?.description ?? exceptionDetails.text);
  };
  await run({ op: "open", url: option.url, protocols: option.protocols });
  let lastId = 0;
  const nextId = () => String(++lastId);
  const plain = new Set(["send_text", "send_binary", "ping", "terminate", "close"]);
  commands(
    (command) => run(plain.has(command.op) ? command : { op: "send_text", text: envelope(command, nextId) }),
    () => run({ op: "close", code: 1000 }),
  );
});
