// Operations: queue, jobs, workers and their rates since the page was opened.

import {get} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, between, bytes, count, number, seconds} from "../format.js";
import {definitionList} from "../parts/jobFacts.js";
import {histogram, sparkline} from "../parts/histogram.js";
import {empty, failure, loading} from "../parts/placeholders.js";
import {hrefTo} from "../routes.js";

const POLL_MS = 2000;
const HISTORY_MS = 300_000;

export const title = () => "Operations";

export async function show(root, _route, signal) {
  const asOf = h("span.hint");
  const alert = h("div", {}, loading("Loading the figures"));
  const body = h("div.panels");
  const button = h("button", {type: "button", onclick: pause}, "Pause");
  const links = [h("a", {href: "/metrics"}, "Metrics"), h("a", {href: "/docs"}, "API")];
  fill(root, h("div.head", {}, h("h1", {}, "Operations"), asOf, h("div.row", {}, links, button)), alert, body);
  const draw = createView(body);
  let pending = false;
  let paused = false;
  const timer = setInterval(refresh, POLL_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  document.addEventListener("visibilitychange", refresh, {signal});
  await refresh();

  async function refresh() {
    if (document.hidden || paused || pending) return;
    pending = true;
    try {
      const figures = await get("/v1/operations", {signal});
      if (!paused) show(figures);
    } catch (error) {
      if (signal.aborted) return;
      if (error.name === "AbortError" && !paused) pause(); // The user dismissed the sign-in: do not ask again every two seconds.
      if (alert.textContent !== failure(error).textContent) fill(alert, failure(error));
    }
    pending = false;
  }

  function show(figures) {
    draw(figures);
    asOf.textContent = `as of ${new Date().toLocaleTimeString()}`;
    fill(alert);
  }

  function pause() {
    paused = !paused;
    button.textContent = paused ? "Resume" : "Pause";
    refresh();
  }
}

/** A function that shows one response after another; links are kept, so that none loses the focus. */
function createView(body) {
  const tiles = h("div.tiles");
  const workerCards = h("div.panels");
  const announcement = h("p.unseen", {role: "status"});
  const counters = new Map();
  const pointsByTile = new Map();
  let seen = new Map();

  return ({queue, jobs, workers}) => {
    if (!counters.size) begin(Object.keys(jobs));
    for (const [status, n] of Object.entries(jobs)) counters.get(status).textContent = count(n);
    seen = new Map(workers.map((worker) => [worker.id, {...worker, rate: rateOf(worker, seen.get(worker.id))}]));
    const rates = [...seen.values()].map(({rate}) => rate);
    const queries = rates.every(Boolean) ? rates.reduce((sum, rate) => sum + rate.forward + rate.backward, 0) : null;
    const text = `${workers.length} alive`;
    if (announcement.textContent !== text) announcement.textContent = text;
    fill(
      tiles,
      tile("Jobs queued", queue.depth, queue.depth > 0 && `oldest: ${seconds(queue.age)}`),
      tile("Jobs running", jobs.running),
      tile("Queries per second", queries),
      tile("Workers alive", workers.length),
    );
    fill(workerCards, workers.length ? [...seen.values()].map(workerCard) : noWorkers());
  };

  function begin(statuses) {
    const links = statuses.map((status) => {
      counters.set(status, h("strong"));
      return h("a.button", {href: hrefTo("jobs", null, {status})}, counters.get(status), h("span.badge", {data: {status}}, status));
    });
    const part = (name, ...children) => h("section", {}, h("h2", {}, name), children);
    fill(body, tiles, part("Jobs by status", h("div.row", {}, links)), part("Workers", announcement, workerCards));
  }

  function tile(name, value, hint) {
    const now = Date.now();
    const points = (pointsByTile.get(name) ?? []).filter(([time]) => now - time < HISTORY_MS);
    if (value !== null) points.push([now, value]);
    pointsByTile.set(name, points);
    const figure = h("strong", {}, value === null ? "–" : formatNumber(value));
    return h("div.card", {}, h("h2", {}, name), figure, h("span.hint", {}, hint), sparkline(name, points, 3 * POLL_MS));
  }
}

const formatNumber = (x) => (x < 10 ? number(x, 2) : count(x));
const passes = ({forward, backward}) => `${formatNumber(forward)} forward, ${formatNumber(backward)} backward`;

/** Queries per second between a worker's last two heartbeats; null until there are two. */
function rateOf(worker, before) {
  const elapsed = before ? between(before.seen_at, worker.seen_at) : 0;
  if (elapsed <= 0) return before?.rate ?? null;
  const rate = (pass) => Math.max(0, worker.queries[pass] - before.queries[pass]) / elapsed;
  return {forward: rate("forward"), backward: rate("backward")};
}

const noWorkers = () => {
  const [all, one] = ["touchstone up", "python -m workers"].map((command) => h("code", {}, command));
  return empty("No worker is alive", "Jobs stay queued until one is. ", all, " starts the service with a worker, ", one, " only a worker.");
};

const workerCard = (worker) =>
  h(
    "article.card",
    {},
    h("h3", {}, worker.id),
    definitionList([
      ["Last heartbeat", ago(worker.seen_at)],
      ["Host", `${worker.host ?? "–"}, process ${worker.pid ?? "–"}`],
      ["Device", worker.device ?? "–"],
      ["Running jobs", count(worker.running)],
      ["Queries", passes(worker.queries)],
      ["Queries per second", worker.rate ? passes(worker.rate) : "–"],
      ["Loaded models", worker.models.map((model) => h("div", {}, model.id, " ", h("span.soft", {}, bytes(model.bytes))))],
    ]),
    histogram("Rows per pass", worker.batch_rows, formatNumber),
    histogram("Time per pass", worker.step_seconds, seconds),
  );
