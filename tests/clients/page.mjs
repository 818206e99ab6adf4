// Opens a page in headless Chromium and tells in one JSON line what it is made of and what went wrong; see README.md.

import { openPage } from "./chromium.mjs";
import { emit, options } from "./lines.mjs";

const option = options();

/** Runs in the page: the charts, and what is drawn outside of them. */
function look() {
  const charts = [...document.querySelectorAll("svg.chart")].map((chart) => {
    const frame = chart.getBoundingClientRect();
    const inside = (element) => {
      const box = element.getBoundingClientRect();
      return box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
    };
    const texts = [...chart.querySelectorAll("text")];
    return {
      label: chart.getAttribute("aria-label"),
      width: frame.width,
      height: frame.height,
      lines: chart.querySelectorAll("path.line").length,
      lengths: [...chart.querySelectorAll("path.line")].map((line) => line.getTotalLength()),
      titles: chart.querySelectorAll("rect > title").length,
      texts: texts.map((text) => text.textContent),
      outside: texts.filter((text) => !inside(text)).map((text) => text.textContent),
      colour: getComputedStyle(chart.querySelector("text")).fill,
    };
  });
  const headings = [...document.querySelectorAll("h1, h2")].map((heading) => heading.textContent);
  return { charts, headings, wide: document.documentElement.scrollWidth > innerWidth, background: getComputedStyle(document.body).backgroundColor };
}

openPage(option, async ({ fail, finish, inPage, load, on }) => {
  const problems = [];
  const requests = [];
  on("Runtime.exceptionThrown", ({ exceptionDetails }) => problems.push(exceptionDetails.text));
  on("Runtime.consoleAPICalled", ({ type, args }) => problems.push(`${type}: ${args.map((arg) => arg.value).join(" ")}`));
  on("Log.entryAdded", ({ entry }) => problems.push(`${entry.level}: ${entry.text}`));
  on("Network.requestWillBeSent", ({ request }) => requests.push(request.url.slice(0, 200)));
  for (const domain of ["Runtime", "Log", "Network"]) await inPage(`${domain}.enable`);
  const views = {};
  for (const scheme of ["light", "dark"]) {
    await inPage("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
    await load(option.url);
    const { result, exceptionDetails } = await inPage("Runtime.evaluate", { expression: `(${look})()`, returnByValue: true });
    if (exceptionDetails) return fail(exceptionDetails.exception?.description ?? exceptionDetails.text);
    views[scheme] = result.value;
  }
  emit("page", { ...views, problems, requests });
  finish(0);
});
