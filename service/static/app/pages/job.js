// One job: what it does while it runs, what came of it, and what can be done with it next.

import {forget, freshKey, get, once, post, send} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, between, count, moment, percent, seconds, words} from "../format.js";
import {go, to} from "../routes.js";
import {follow} from "../stream.js";
import {isOver, outcomeBadge, status} from "../parts/badges.js";
import {paired, votes} from "../parts/bars.js";
import {counted, reach} from "../parts/certificate.js";
import {deliveries} from "../parts/deliveries.js";
import {about, short} from "../parts/facts.js";
import {course} from "../parts/plot.js";
import {measured} from "../parts/probe.js";
import {empty, failure} from "../parts/states.js";
import {ended, verdict} from "../parts/verdict.js";
import {pixelsOf, viewer} from "../parts/viewer.js";

const QUEUE_SECONDS = 2;

export const title = (route) => `Job ${short(route.id)}`;

export async function show(root, route, signal) {
  root.classList.replace("jobs", "job");
  const path = `/v1/jobs/${encodeURIComponent(route.id)}`;
  try {
    const job = await get(path, {signal});
    const [methods, models] = await Promise.all([catalogue(job), once("/v1/models").catch(() => [])]);
    const method = methods.find((one) => one.name === job.method);
    const model = models.find((one) => one.id === job.model.id);
    signal.throwIfAborted();
    await new Page(root, {path, job, method, model, signal}).live();
  } catch (error) {
    if (error.code !== "unknown_job") throw error;
    const all = h("a", {href: to("jobs")}, "See all jobs");
    fill(root, h("h1", {}, "No such job"), empty("Nothing is here", "It may have been deleted, or the address is incomplete. ", all, "."));
  }
}

const catalogue = ({kind}) => (["attack", "certificate"].includes(kind) ? once(`/v1/${kind}s`).catch(() => []) : []);
const card = (name, ...children) => h("section.card", {}, h("h2", {}, name), children);

class Page {
  constructor(root, known) {
    Object.assign(this, known, {progress: known.job.progress, images: new Map(), course: course(known.job), asks: 0, answered: 0});
    this.bar = h("progress", {"aria-label": "Progress"});
    this.pace = h("p", {});
    this.said = h("p.unseen", {role: "status"});
    this.trouble = h("div", {});
    this.body = h("div.stack", {});
    fill(root, this.said, this.body);
    this.draw();
  }

  async live() {
    const timers = [setInterval(() => this.tell(), 500), setInterval(() => this.ask(), 1000 * QUEUE_SECONDS)];
    this.signal.addEventListener("abort", () => timers.forEach(clearInterval), {once: true});
    await follow(`${this.path}/events`, (type, data) => this.heard(type, data), {signal: this.signal});
  }

  heard(type, data) {
    if (type === "progress") this.progress = data;
    else if (type === "metric") this.course.add(this.progress, data);
    else {
      if (data.attempts > (this.attempt ?? 1)) this.course.clear();
      this.attempt = data.attempts ?? this.attempt;
      if (!isOver(this.job)) this.renew();
    }
  }

  /** How many wait before it is no event. */
  ask() {
    if (this.job.status === "queued" && !document.hidden) this.renew();
  }

  /** Ask how the job stands, once for all events that came together. */
  async renew() {
    if (this.asked) return;
    this.asked = true;
    await new Promise((resolve) => setTimeout(resolve, 60));
    this.asked = false;
    const ask = ++this.asks;
    const job = await get(this.path, {signal: this.signal}).catch((error) => this.fail(error));
    // An answer may be overtaken by one to a later question, and an end is never taken back.
    if (!job || ask < this.answered || isOver(this.job)) return;
    this.answered = ask;
    const turned = job.status !== this.job.status || job.attempts !== this.job.attempts;
    this.job = job;
    if (turned) this.draw();
    else this.tell();
  }

  draw() {
    const {job} = this;
    if (job.kind === "registration") forget("/v1/models");
    const came = verdict(job, this.method, this.model);
    const held = this.body.contains(document.activeElement);
    this.said.textContent = came?.querySelector(".sentence").textContent ?? `The job is ${job.status}.`;
    fill(this.body, this.head(), this.trouble, !isOver(job) && h("section.card", {"aria-label": "Progress"}, this.bar, this.pace),
      came, ended(job), this.parts(), about(job, this.method, this.model, this.signal),
      isOver(job) && deliveries(job, this.signal));
    if (held) this.body.querySelector("h1").focus();
    this.tell();
  }

  head() {
    const {job, method} = this;
    const when = h("time", {datetime: job.created_at, title: moment(job.created_at)}, ago(job.created_at));
    const model = h("a", {href: to("models", job.model.id)}, job.model.id);
    return h("div.head", {}, h("h1", {tabindex: -1}, method?.title ?? words(job.kind)), status(job), outcomeBadge(job),
      h("span.soft", {}, "on ", model, ", ", when), h("div.row", {}, this.actions()));
  }

  actions() {
    const {job} = this;
    const button = (text, onclick, kind = "") => h("button", {type: "button", class: kind, onclick}, text);
    return [
      !isOver(job) && button("Cancel", ({target}) => this.cancel(target), "danger"),
      job.image && h("a.button", {href: to("new", null, {from: job.id})}, "Run again with changes"),
      job.image && job.status === "succeeded" && button("Run again and compare", () => this.rerun()),
      job.result && h("a.button", {href: to("compare", null, {jobs: job.id})}, "Compare with…"),
      button("Copy link", ({target}) => this.act(async () => {
        if (!navigator.clipboard) throw new Error("The browser copies only from pages served over https. Copy its address bar.");
        await navigator.clipboard.writeText(location.href);
        target.textContent = "Copied";
      })),
      isOver(job) && button("Delete", () => this.remove(), "danger"),
    ];
  }

  /** Write how far it is, without drawing anything anew. */
  tell() {
    const {job, progress: {done, total}} = this;
    if (job.status === "queued") {
      this.bar.removeAttribute("value");
      this.pace.textContent = job.ahead ? `JobWaiters: ${count(job.ahead)} before it` : "Waiting: it is next";
    } else if (job.status === "running") {
      const spent = Math.max(0, between(job.started_at));
      const left = done > 1 && spent > 2 && `, about ${seconds((spent / done) * (total - done))} left`;
      Object.assign(this.bar, {max: total || 1, value: done});
      this.pace.textContent = `Step ${count(done)} of ${count(total)}, ${seconds(Math.round(spent))} so far${left || ""}`;
    }
  }

  async act(action) {
    fill(this.trouble);
    await action().catch((error) => this.fail(error));
  }

  /** Go on to another page, unless the reader has left this one meanwhile. */
  go(...where) {
    if (!this.signal.aborted) go(...where);
  }

  fail(error) {
    if (!this.signal.aborted) fill(this.trouble, failure(error));
  }

  cancel(button) {
    const label = (textContent, disabled) => Object.assign(button, {textContent, disabled});
    label("Canceling…", true);
    const asked = post(`${this.path}/cancel`).catch((error) => (label("Cancel", false), Promise.reject(error)));
    return this.act(async () => (await asked, await this.renew()));
  }

  /** However often it is clicked, and after a broken connection: one job for each showing of the page. */
  rerun() {
    this.key ??= freshKey();
    const asked = post(`${this.path}/rerun`, null, {headers: {"Idempotency-Key": this.key}});
    return this.act(async () => this.go("jobs", (await asked).id));
  }

  remove() {
    const dialog = h("dialog", {"aria-labelledby": "delete-title"}, h("form", {method: "dialog"},
      h("h2#delete-title", {}, "Delete this job?"), h("p", {}, "Its result and its files are gone for good."),
      h("div.row.end", {}, h("button", {value: ""}, "Keep it"), h("button.danger", {value: "yes"}, "Delete"))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (dialog.returnValue) this.act(async () => (await send(this.path, {method: "DELETE"}), this.go("jobs")));
    });
    this.body.append(dialog);
    dialog.showModal();
  }

  parts() {
    const {job: {kind, result}, model} = this;
    const pair = (...columns) => h("div.two", {}, columns.map((cards) => h("div.stack", {}, cards)));
    if (kind === "registration") return result && card("Probe", measured(result.probe));
    if (!this.job.image) return null;
    if (!result) return pair([this.pictures()], [this.course.element]);
    if (kind === "certificate")
      return pair([this.pictures(), this.course.element], [reach(this.job, model), counted(this.job, model), this.further()]);
    const said = card("What the model says", paired(result.original, result.adversarial));
    if (kind === "attack") return [this.pictures(), h("div.two", {}, said, this.course.element)];
    const {counts_top5: counts, n} = result.smoothed ?? {};
    const vote = counts && card("The vote under noise", votes(counts, n, model?.classes));
    return pair([this.pictures()], [said, vote, this.course.element]);
  }

  pictures() {
    const {result, links: {artifacts: files}} = this.job;
    const place = h("div", {});
    const captions = [result?.original, result?.adversarial].map((one) => one?.name && h("span", {}, one.name, " ", percent(one.confidence)));
    const options = {captions, factor: result?.difference_factor ?? 1, signal: this.signal};
    Promise.all([this.image(files["original.png"]), this.image(files["adversarial.png"])])
      .then(([before, after]) => fill(place, viewer(before, after, options)))
      .catch((error) => this.fail(error));
    return place;
  }

  /** A file's pixels, fetched once. */
  image(path) {
    if (path && !this.images.has(path)) this.images.set(path, pixelsOf(path, this.signal));
    return this.images.get(path) ?? null;
  }

  /** More samples, for a certificate that may be looked at whenever one likes. */
  further() {
    if (this.job.result.sampling?.looks !== "any") return null;
    let key = freshKey();
    const n = h("input", {type: "number", min: 1, value: 10_000, required: true, oninput: () => (key = freshKey())});
    const wrong = h("p.wrong", {role: "alert"});
    const onsubmit = async (event) => {
      event.preventDefault();
      try {
        const headers = {"Idempotency-Key": key};
        this.go("jobs", (await post(`${this.path}/continue`, {n: Number(n.value)}, {headers})).id);
      } catch (error) {
        wrong.textContent = error.message;
        n.focus();
      }
    };
    return h("form.card.further", {onsubmit}, h("h2", {}, "Go on"),
      h("p", {}, "This rule may go on at any time: the samples are counted on top of those above."),
      h("div.row", {}, h("label.row", {}, "More samples", n), h("button.primary", {}, "Go on")), wrong);
  }
}
