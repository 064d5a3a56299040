// The frame around the pages: which one is shown, the theme, and whether the service answers.

import {key} from "./api.js";
import {fill, h} from "./dom.js";
import {here} from "./routes.js";
import {failure, loading} from "./parts/states.js";

const PAGES = {
  new: () => import("./pages/new.js"),
  jobs: () => (here().id ? import("./pages/job.js") : import("./pages/jobs.js")),
  compare: () => import("./pages/compare.js"),
  models: () => (here().id ? import("./pages/model.js") : import("./pages/models.js")),
  operations: () => import("./pages/operations.js"),
};

const main = document.getElementById("main");
let leaving = new AbortController();

/**
 * Show the page of the address. A page is a module with `title(route)` and `show(root, route, signal)`: it fills the
 * root, and everything it started ends when the signal aborts, which is when the reader leaves.
 */
async function turn() {
  leaving.abort();
  leaving = new AbortController();
  const {signal} = leaving;
  const route = here();
  mark(route.name);
  fill(main, loading("Loading the page"));
  try {
    const page = await (PAGES[route.name] ?? nowhere)();
    if (signal.aborted) return;
    document.title = `${page.title(route)} · Touchstone`;
    const root = h("div.page", {class: route.name});
    fill(main, root);
    announce(page.title(route));
    await page.show(root, route, signal);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    fill(main, h("div.page", {}, h("h1", {}, "This page cannot be shown"), failure(error, turn)));
  }
}

async function nowhere() {
  const text = "There is no such page. The pages are named above.";
  return {title: () => "Not found", show: (root) => fill(root, h("h1", {}, "Not found"), h("p", {}, text))};
}

function mark(name) {
  for (const link of document.querySelectorAll("nav a[data-page]")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Say something to who cannot see the page change. */
function announce(text) {
  document.getElementById("announcer").textContent = text;
  if (document.activeElement === document.body || !document.activeElement) main.focus({preventScroll: true});
}

const THEMES = {auto: ["◐", "Theme: as the system"], light: ["☀", "Theme: light"], dark: ["☾", "Theme: dark"]};

function showTheme() {
  const [mark, label] = THEMES[localStorage.getItem("theme") ?? "auto"] ?? THEMES.auto;
  const button = document.getElementById("theme");
  button.textContent = mark;
  button.title = label;
  button.setAttribute("aria-label", label);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(localStorage.getItem("theme") ?? "auto") + 1) % names.length];
  if (next === "auto") {
    localStorage.removeItem("theme");
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem("theme", next);
    document.documentElement.dataset.theme = next;
  }
  showTheme();
}

const HEALTH_SECONDS = 20;

/** Look whether there is a worker, and say so where there is not; every so often, and never while hidden. */
async function look() {
  const link = document.getElementById("link");
  try {
    const ready = await fetch("/readyz");
    const problem = ready.ok ? null : await ready.json().catch(() => ({}));
    link.dataset.state = ready.ok ? "fine" : "bad";
    link.textContent = ready.ok ? "" : problem.title ?? "Not ready";
    link.title = ready.ok ? "The service is ready" : problem.detail ?? "";
  } catch {
    link.dataset.state = "bad";
    link.textContent = "No answer from the service";
  }
}

function showAccount() {
  document.getElementById("account").hidden = key.get() === null;
}

document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("account").addEventListener("click", () => (key.drop(), location.reload()));
document.addEventListener("signed-in", showAccount);
document.querySelector(".skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
window.addEventListener("hashchange", turn);
setInterval(() => document.hidden || look(), 1000 * HEALTH_SECONDS);
showTheme();
showAccount();
look();
turn();
