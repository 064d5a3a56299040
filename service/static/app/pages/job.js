// One job: its progress, its result, and the actions on it.

import {freshKey, get, getCached, invalidate, post, send} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, between, capital, count, moment, percent, seconds, shortId, words} from "../format.js";
import {goTo, hrefTo} from "../routes.js";
import {follow} from "../stream.js";
import {isOver, outcomeBadge, status} from "../parts/badges.js";
import {confidenceTable, voteTable} from "../parts/bars.js";
import {deliveries} from "../parts/deliveries.js";
import {jobFacts} from "../parts/jobFacts.js";
import {metricsCard} from "../parts/plot.js";
import {exampleAccuracy, probeFacts} from "../parts/probe.js";
import {empty, failure} from "../parts/placeholders.js";
import {failureNotice, verdict} from "../parts/verdict.js";
import {pixelsOf, viewer} from "../parts/viewer.js";

const QUEUE_SECONDS = 2;

export const title = (route) => `Job ${shortId(route.id)}`;

export async function show(root, route, signal) {
  root.classList.replace("jobs", "job");
  const path = `/v1/jobs/${encodeURIComponent(route.id)}`;
  try {
    const job = await get(path, {signal});
    const [methods, models, certificate] = await Promise.all([
      catalogue(job), getCached("/v1/models").catch(() => []), job.kind === "certificate" && import("../parts/certificate.js")]);
    const method = methods.find((one) => one.name === job.method);
    const model = models.find((one) => one.id === job.model.id);
    signal.throwIfAborted();
    await new Page(root, {path, job, method, model, certificate, signal}).run();
  } catch (error) {
    if (error.code !== "unknown_job") throw error;
    const all = h("a", {href: hrefTo("jobs")}, "See all jobs");
    fill(root, h("h1", {}, "No such job"), empty("Nothing to show", "It may have been deleted, or the URL is incomplete. ", all, "."));
  }
}

const catalogue = ({kind}) => (["attack", "certificate"].includes(kind) ? getCached(`/v1/${kind}s`).catch(() => []) : []);
const card = (name, ...children) => h("section.card", {}, h("h2", {}, name), children);

function registrationCards(probe) {
  const examples = exampleAccuracy(probe);
  return [examples && card("Examples", examples), card("Probe", probeFacts(probe))];
}

class Page {
  constructor(root, known) {
    Object.assign(this, known, {progress: known.job.progress, images: new Map(), course: metricsCard(known.job), requests: 0, latest: 0});
    this.bar = h("progress", {"aria-label": "Progress"});
    this.progressText = h("p", {});
    this.announcement = h("p.unseen", {role: "status"});
    this.alert = h("div", {});
    this.body = h("div.stack", {});
    fill(root, this.announcement, this.body);
    this.draw();
  }

  async run() {
    const timers = [setInterval(() => this.render(), 500), setInterval(() => this.refreshQueued(), 1000 * QUEUE_SECONDS)];
    this.signal.addEventListener("abort", () => timers.forEach(clearInterval), {once: true});
    await follow(`${this.path}/events`, (type, data) => this.onEvent(type, data), {signal: this.signal});
  }

  onEvent(type, data) {
    if (type === "progress") this.progress = data;
    else if (type === "metric") this.course.add(this.progress, data);
    else {
      if (data.attempts > (this.attempt ?? 1)) this.course.clear();
      this.attempt = data.attempts ?? this.attempt;
      if (!isOver(this.job)) this.refresh();
    }
  }

  /** The position in the queue is not an event, so it is polled. */
  refreshQueued() {
    if (this.job.status === "queued" && !document.hidden) this.refresh();
  }

  /** Fetch the job, once for all events that arrive together. */
  async refresh() {
    if (this.refreshPending) return;
    this.refreshPending = true;
    await new Promise((resolve) => setTimeout(resolve, 60));
    this.refreshPending = false;
    const number = ++this.requests;
    const job = await get(this.path, {signal: this.signal}).catch((error) => this.fail(error));
    // Responses may arrive out of order, and the end of a job is final.
    if (!job || number < this.latest || isOver(this.job)) return;
    this.latest = number;
    const statusChanged = job.status !== this.job.status || job.attempts !== this.job.attempts;
    this.job = job;
    if (statusChanged) this.draw();
    else this.render();
  }

  draw() {
    const {job} = this;
    if (job.kind === "registration") invalidate("/v1/models");
    const verdictCard = verdict(job, this.method, this.model);
    const focused = this.body.contains(document.activeElement);
    this.announcement.textContent = verdictCard?.querySelector(".sentence").textContent ?? `The job is ${job.status}.`;
    fill(this.body, this.head(), this.alert, !isOver(job) && h("section.card", {"aria-label": "Progress"}, this.bar, this.progressText),
      verdictCard, failureNotice(job), this.parts(), jobFacts(job, this.method, this.model, this.signal),
      isOver(job) && deliveries(job, this.signal));
    if (focused) this.body.querySelector("h1").focus();
    this.render();
  }

  head() {
    const {job, method} = this;
    const when = h("time", {datetime: job.created_at, title: moment(job.created_at)}, ago(job.created_at));
    const model = h("a", {href: hrefTo("models", job.model.id)}, job.model.id);
    return h("div.head", {}, h("h1", {tabindex: -1}, method?.title ?? words(job.kind)), status(job), outcomeBadge(job),
      h("span.soft", {}, "on ", model, ", ", when), h("div.row", {}, this.actions()));
  }

  actions() {
    const {job} = this;
    const button = (text, onclick, kind = "") => h("button", {type: "button", class: kind, onclick}, text);
    return [
      !isOver(job) && button("Cancel", ({target}) => this.cancel(target), "danger"),
      job.image && h("a.button", {href: hrefTo("new", null, {from: job.id})}, "Run again with changes"),
      job.image && job.status === "succeeded" && button("Run again and compare", () => this.rerun()),
      job.result && h("a.button", {href: hrefTo("compare", null, {jobs: job.id})}, "Compare with…"),
      button("Copy link", ({target}) => this.act(async () => {
        if (!navigator.clipboard) throw new Error("The browser copies only from pages served over https. Copy its address bar.");
        await navigator.clipboard.writeText(location.href);
        target.textContent = "Copied";
      })),
      isOver(job) && button("Delete", () => this.remove(), "danger"),
    ];
  }

  /** Update the progress without redrawing the page. */
  render() {
    const {job, progress: {done, total}} = this;
    if (job.status === "queued") {
      this.bar.removeAttribute("value");
      this.progressText.textContent = job.ahead ? `Queued: ${count(job.ahead)} ${job.ahead === 1 ? "job" : "jobs"} ahead` : "Queued: next to run";
    } else if (job.status === "running") {
      const spent = Math.max(0, between(job.started_at));
      const left = done > 1 && spent > 2 && `, about ${seconds((spent / done) * (total - done))} left`;
      Object.assign(this.bar, {max: total || 1, value: done});
      const phase = job.phases?.[done];
      this.progressText.textContent = `${phase ? `${capital(phase)}: step` : "Step"} ${count(phase ? done + 1 : done)} of ${count(total)}, ${seconds(Math.round(spent))} elapsed${left || ""}`;
    }
  }

  async act(action) {
    fill(this.alert);
    await action().catch((error) => this.fail(error));
  }

  /** Go to another page, unless the user has left this one meanwhile. */
  leaveTo(...target) {
    if (!this.signal.aborted) goTo(...target);
  }

  fail(error) {
    if (!this.signal.aborted) fill(this.alert, failure(error));
  }

  cancel(button) {
    const label = (textContent, disabled) => Object.assign(button, {textContent, disabled});
    label("Canceling…", true);
    const request = post(`${this.path}/cancel`).catch((error) => (label("Cancel", false), Promise.reject(error)));
    return this.act(async () => (await request, await this.refresh()));
  }

  /** The key makes repeated clicks create only one job. */
  rerun() {
    this.key ??= freshKey();
    const request = post(`${this.path}/rerun`, null, {headers: {"Idempotency-Key": this.key}});
    return this.act(async () => this.leaveTo("jobs", (await request).id));
  }

  remove() {
    const dialog = h("dialog", {"aria-labelledby": "delete-title"}, h("form", {method: "dialog"},
      h("h2#delete-title", {}, "Delete this job?"), h("p", {}, "Its result and its files are deleted permanently."),
      h("div.row.end", {}, h("button", {value: ""}, "Keep"), h("button.danger", {value: "yes"}, "Delete"))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (dialog.returnValue) this.act(async () => (await send(this.path, {method: "DELETE"}), this.leaveTo("jobs")));
    });
    this.body.append(dialog);
    dialog.showModal();
  }

  parts() {
    const {job: {kind, result}, model, certificate} = this;
    const pair = (...columns) => h("div.two", {}, columns.map((cards) => h("div.stack", {}, cards)));
    if (kind === "registration") return result && registrationCards(result.probe);
    if (!this.job.image) return null;
    if (!result) return pair([this.pictures()], [this.course.element]);
    if (kind === "certificate")
      return pair([this.pictures(), this.course.element], [certificate.radiusCard(this.job, model), certificate.votesCard(this.job, model), this.continueForm()]);
    const predictions = card("Predictions", confidenceTable(result.original, result.adversarial));
    if (kind === "attack") return [this.pictures(), h("div.two", {}, predictions, this.course.element)];
    const {counts_top5: counts, n} = result.smoothed ?? {};
    const vote = counts && card("Votes under noise", voteTable(counts, n, model?.classes));
    return pair([this.pictures()], [predictions, vote, this.course.element]);
  }

  pictures() {
    const {result, links: {artifacts: files}} = this.job;
    const holder = h("div", {});
    const captions = [result?.original, result?.adversarial].map((one) => one?.name && h("span", {}, one.name, " ", percent(one.confidence)));
    const options = {captions, factor: result?.difference_factor ?? 1, signal: this.signal};
    Promise.all([this.image(files["original.png"]), this.image(files["adversarial.png"])])
      .then(([before, after]) => fill(holder, viewer(before, after, options)))
      .catch((error) => this.fail(error));
    return holder;
  }

  /** The pixels of a file, fetched once. */
  image(path) {
    if (path && !this.images.has(path)) this.images.set(path, pixelsOf(path, this.signal));
    return this.images.get(path) ?? null;
  }

  /** More samples, for a certificate whose stopping rule allows that at any time. */
  continueForm() {
    if (this.job.result.sampling?.looks !== "any") return null;
    let key = freshKey();
    const n = h("input", {type: "number", min: 1, value: 10_000, required: true, oninput: () => (key = freshKey())});
    const wrong = h("p.wrong", {role: "alert"});
    const onsubmit = async (event) => {
      event.preventDefault();
      try {
        const headers = {"Idempotency-Key": key};
        this.leaveTo("jobs", (await post(`${this.path}/continue`, {n: Number(n.value)}, {headers})).id);
      } catch (error) {
        wrong.textContent = error.message;
        n.focus();
      }
    };
    return h("form.card.continue", {onsubmit}, h("h2", {}, "Continue sampling"),
      h("p", {}, "This stopping rule allows more samples at any time; they are added to those above."),
      h("div.row", {}, h("label.row", {}, "More samples", n), h("button.primary", {}, "Continue")), wrong);
  }
}
