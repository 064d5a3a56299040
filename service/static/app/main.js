// The frame around the pages: routing, the theme, and the health of the service.

import {key} from "./api.js";
import {fill, h} from "./dom.js";
import {currentRoute} from "./routes.js";
import {failure, loading} from "./parts/placeholders.js";

const PAGES = {
  new: () => import("./pages/new.js"),
  jobs: () => (currentRoute().id ? import("./pages/job.js") : import("./pages/jobs.js")),
  compare: () => import("./pages/compare.js"),
  models: () => (currentRoute().id ? import("./pages/model.js") : import("./pages/models.js")),
  operations: () => import("./pages/operations.js"),
};

const main = document.getElementById("main");
let pageController = new AbortController();

/**
 * Show the page of the current URL. A page is a module with `title(route)` and `show(root, route, signal)`: it fills the
 * root, and everything it started ends when the signal aborts, which is when the user leaves the page.
 */
async function navigate() {
  pageController.abort();
  pageController = new AbortController();
  const {signal} = pageController;
  const route = currentRoute();
  markCurrent(route.name);
  fill(main, loading("Loading the page"));
  try {
    const page = await (PAGES[route.name] ?? loadNotFound)();
    if (signal.aborted) return;
    document.title = `${page.title(route)} · Touchstone`;
    const root = h("div.page", {class: route.name});
    fill(main, root);
    announce(page.title(route));
    await page.show(root, route, signal);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    fill(main, h("div.page", {}, h("h1", {}, "This page cannot be shown"), failure(error, navigate)));
  }
}

async function loadNotFound() {
  const text = "There is no such page. Choose one in the navigation above.";
  return {title: () => "Not found", show: (root) => fill(root, h("h1", {}, "Not found"), h("p", {}, text))};
}

function markCurrent(name) {
  for (const link of document.querySelectorAll("nav a[data-page]")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Announce a page change to screen readers. */
function announce(text) {
  document.getElementById("announcer").textContent = text;
  if (document.activeElement === document.body || !document.activeElement) main.focus({preventScroll: true});
}

const THEMES = {auto: ["◐", "Theme: system"], light: ["☀", "Theme: light"], dark: ["☾", "Theme: dark"]};

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

/** Show whether the service is ready, that is, whether it has a worker. */
async function checkHealth() {
  const badge = document.getElementById("health");
  try {
    const ready = await fetch("/readyz");
    const problem = ready.ok ? null : await ready.json().catch(() => ({}));
    badge.dataset.state = ready.ok ? "good" : "bad";
    badge.textContent = ready.ok ? "" : problem.title ?? "Not ready";
    badge.title = ready.ok ? "The service is ready" : problem.detail ?? "";
  } catch {
    badge.dataset.state = "bad";
    badge.textContent = "The service does not respond";
  }
}

function showAccount() {
  document.getElementById("account").hidden = key.get() === null;
}

document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("account").addEventListener("click", () => (key.drop(), location.reload()));
document.addEventListener("signed-in", showAccount);
document.querySelector(".skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
window.addEventListener("hashchange", navigate);
setInterval(() => document.hidden || checkHealth(), 1000 * HEALTH_SECONDS);
showTheme();
showAccount();
checkHealth();
navigate();
