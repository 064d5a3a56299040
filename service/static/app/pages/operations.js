// For who watches over the service: the queue, the workers, and what they did since the page was opened.

import {get} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, between, bytes, count, number, seconds} from "../format.js";
import {facts} from "../parts/facts.js";
import {histogram, sparkline} from "../parts/histogram.js";
import {empty, failure, loading} from "../parts/states.js";
import {to} from "../routes.js";

const PERIOD = 2000;
const KEPT = 300_000;

export const title = () => "Operations";

export async function show(root, _route, signal) {
  const told = h("span.hint");
  const trouble = h("div", {}, loading("Asking for the figures"));
  const body = h("div.panels");
  const button = h("button", {type: "button", onclick: pause}, "Pause");
  const links = [h("a", {href: "/metrics"}, "Metrics"), h("a", {href: "/docs"}, "API")];
  fill(root, h("div.head", {}, h("h1", {}, "Operations"), told, h("div.row", {}, links, button)), trouble, body);
  const draw = drawer(body);
  let asking = false;
  let paused = false;
  const timer = setInterval(look, PERIOD);
  signal.addEventListener("abort", () => clearInterval(timer));
  document.addEventListener("visibilitychange", look, {signal});
  await look();

  async function look() {
    if (document.hidden || paused || asking) return;
    asking = true;
    try {
      const figures = await get("/v1/operations", {signal});
      if (!paused) show(figures);
    } catch (error) {
      if (signal.aborted) return;
      if (error.name === "AbortError" && !paused) pause(); // The reader gave no key: do not ask for one every two seconds.
      if (trouble.textContent !== failure(error).textContent) fill(trouble, failure(error));
    }
    asking = false;
  }

  function show(figures) {
    draw(figures);
    told.textContent = `as of ${new Date().toLocaleTimeString()}`;
    fill(trouble);
  }

  function pause() {
    paused = !paused;
    button.textContent = paused ? "Go on" : "Pause";
    look();
  }
}

/** Draws one answer after another. Links stay where they are, so that none loses the focus. */
function drawer(body) {
  const tiles = h("div.tiles");
  const machines = h("div.panels");
  const alive = h("p.unseen", {role: "status"});
  const tallies = new Map();
  const past = new Map();
  let seen = new Map();

  return ({queue, jobs, workers}) => {
    if (!tallies.size) begin(Object.keys(jobs));
    for (const [status, n] of Object.entries(jobs)) tallies.get(status).textContent = count(n);
    seen = new Map(workers.map((worker) => [worker.id, {...worker, rate: rateOf(worker, seen.get(worker.id))}]));
    const rates = [...seen.values()].map(({rate}) => rate);
    const queries = rates.every(Boolean) ? rates.reduce((sum, rate) => sum + rate.forward + rate.backward, 0) : null;
    const text = `${workers.length} alive`;
    if (alive.textContent !== text) alive.textContent = text;
    fill(
      tiles,
      tile("Jobs waiting", queue.depth, queue.depth > 0 && `the oldest for ${seconds(queue.age)}`),
      tile("Jobs running", jobs.running),
      tile("Queries a second", queries),
      tile("Workers alive", workers.length),
    );
    fill(machines, workers.length ? [...seen.values()].map(machine) : nobody());
  };

  function begin(statuses) {
    const links = statuses.map((status) => {
      tallies.set(status, h("strong"));
      return h("a.button", {href: to("jobs", null, {status})}, tallies.get(status), h("span.badge", {data: {status}}, status));
    });
    const part = (name, ...children) => h("section", {}, h("h2", {}, name), children);
    fill(body, tiles, part("Jobs by status", h("div.row", {}, links)), part("Workers", alive, machines));
  }

  function tile(name, value, hint) {
    const now = Date.now();
    const points = (past.get(name) ?? []).filter(([time]) => now - time < KEPT);
    if (value !== null) points.push([now, value]);
    past.set(name, points);
    const figure = h("strong", {}, value === null ? "–" : inShort(value));
    return h("div.card", {}, h("h2", {}, name), figure, h("span.hint", {}, hint), sparkline(name, points, 3 * PERIOD));
  }
}

const inShort = (x) => (x < 10 ? number(x, 2) : count(x));
const passes = ({forward, backward}) => `${inShort(forward)} forward, ${inShort(backward)} backward`;

/** Queries a second between a worker's last two signs of life; null until there are two. */
function rateOf(worker, before) {
  const passed = before ? between(before.seen_at, worker.seen_at) : 0;
  if (passed <= 0) return before?.rate ?? null;
  const grown = (pass) => Math.max(0, worker.queries[pass] - before.queries[pass]) / passed;
  return {forward: grown("forward"), backward: grown("backward")};
}

const nobody = () => {
  const [all, one] = ["touchstone up", "python -m workers"].map((command) => h("code", {}, command));
  return empty("No worker is alive", "Accepted jobs wait for one. ", all, " starts a service with a worker, ", one, " a worker alone.");
};

const machine = (worker) =>
  h(
    "article.card",
    {},
    h("h3", {}, worker.id),
    facts([
      ["Seen", ago(worker.seen_at)],
      ["Host", `${worker.host ?? "–"}, process ${worker.pid ?? "–"}`],
      ["Device", worker.device ?? "–"],
      ["Jobs", count(worker.running)],
      ["Queries", passes(worker.queries)],
      ["A second", worker.rate ? passes(worker.rate) : "–"],
      ["Loaded", worker.models.map((model) => h("div", {}, model.id, " ", h("span.soft", {}, bytes(model.bytes))))],
    ]),
    histogram("Rows of a pass", worker.batch_rows, inShort),
    histogram("Time of a pass", worker.step_seconds, seconds),
  );
