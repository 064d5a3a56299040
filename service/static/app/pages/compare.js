// Two to four jobs side by side, with their differences marked.

import {get, getCached, objectUrl} from "../api.js";
import {fill, h} from "../dom.js";
import {count, in255, norm, number, percent, seconds, shortId, words} from "../format.js";
import {isOver, outcome, outcomeBadge, status} from "../parts/badges.js";
import {formatParameter, shortParameters} from "../parts/jobFacts.js";
import {bar} from "../parts/rows.js";
import {empty} from "../parts/placeholders.js";
import {goTo, hrefTo} from "../routes.js";
import {follow} from "../stream.js";

const MAX_JOBS = 4;
const PICTURES = ["adversarial.png", "difference.png", "original.png"];
const TINY = 64;

export const title = () => "Compare jobs";

export async function show(root, route, signal) {
  const ids = [...new Set((route.query.get("jobs") ?? "").split(",").filter(Boolean))].slice(0, MAX_JOBS);
  const page = new Comparison(root, ids, signal);
  await page.load();
  const onState = (text) => text === "live" && page.load().catch(() => {});
  if (ids.length) follow("/v1/events", (type, data) => page.onEvent(type, data), {signal, onState, ends: false}).catch(() => {});
}

class Comparison {
  constructor(root, ids, signal) {
    Object.assign(this, {root, ids, signal, jobs: new Map(), missing: new Map(), bars: new Map(), images: new Map()});
    this.place = h("div");
    this.picture = h("select", {onchange: () => this.draw()}, PICTURES.map((name) => h("option", {value: name}, words(name.split(".")[0]))));
    const size = h("input", {type: "range", min: 60, max: 400, value: 160, oninput: () => root.style.setProperty("--size", `${size.value}px`)});
    const field = (text, control) => h("label.row", {}, h("span", {}, text), control);
    fill(
      root,
      h("div.head", {}, h("h1", {}, "Compare jobs"), h("a", {href: "#/jobs"}, "All jobs")),
      h("div.row.tools", {}, field("Image", this.picture), field("Size", size), field("Only differences", h("input#only", {type: "checkbox"})), this.adding()),
      this.place,
    );
  }

  adding() {
    const input = h("input", {placeholder: "id or URL", "aria-label": "Id of another job", required: true, autocomplete: "off"});
    const add = (event) => {
      event.preventDefault();
      // The longest word of a URL is the id.
      const id = input.value.match(/[\w-]+/g)?.sort((a, b) => b.length - a.length)[0];
      if (id) goTo("compare", null, {jobs: [...this.ids, id].join()});
    };
    return this.ids.length < MAX_JOBS && h("form.row", {onsubmit: add}, input, h("button", {}, "Add a job"));
  }

  async load() {
    await Promise.all(this.ids.map((id) => this.read(id)));
    [this.attacks, this.certificates] = await Promise.all([getCached("/v1/attacks"), getCached("/v1/certificates")]);
    this.draw();
  }

  async read(id) {
    try {
      const job = await get(`/v1/jobs/${encodeURIComponent(id)}`, {signal: this.signal});
      // The job may have ended while the response was on its way; the end is final.
      const known = this.jobs.get(id);
      if (!known || !isOver(known) || isOver(job)) this.jobs.set(id, job);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      this.missing.set(id, error.message);
    }
  }

  onEvent(type, data) {
    if (type === "progress") for (const {id, ...progress} of data.items) fill(this.bars.get(id) ?? h("i"), bar({progress}));
    if (type === "job" && this.jobs.has(data.id)) {
      this.jobs.set(data.id, data);
      this.draw();
    }
  }

  draw() {
    if (!this.ids.length) return void fill(this.place, empty("Nothing to compare yet", "Select two to four ", h("a", {href: "#/jobs"}, "jobs"), ", or add one by its id."));
    const jobs = this.ids.map((id) => this.jobs.get(id)).filter(Boolean);
    const {href} = document.activeElement;
    const hasValue = (line) => jobs.some((job) => ![null, undefined].includes(line.of(job)));
    const parts = Object.entries(lines(jobs, this)).map(([name, part]) => [name, part.filter(hasValue)]).filter(([, part]) => part.length);
    fill(
      this.place,
      h(
        "div.scroll.card",
        {},
        h(
          "table",
          {style: {"min-width": `${6 + 8.5 * this.ids.length}rem`}},
          h("caption.unseen", {}, "Jobs by column; differing values are marked"),
          h("thead", {}, h("tr", {}, h("td"), this.ids.map((id) => this.head(id)))),
          parts.map(([name, part]) => h("tbody", {class: name === "Parameters" ? "parameters" : ""}, h("tr.part", {}, h("th", {scope: "rowgroup", colspan: this.ids.length + 1}, name)), part.map((line) => this.row(line, jobs)))),
        ),
      ),
    );
    if (href) [...this.place.querySelectorAll("a")].find((link) => link.href === href)?.focus();
  }

  head(id) {
    const job = this.jobs.get(id);
    const others = this.ids.filter((one) => one !== id).join();
    const remove = h("a.button.quiet.icon", {href: hrefTo("compare", null, {jobs: others}), "aria-label": `Remove job ${shortId(id)}`}, "×");
    if (!job) return h("th", {scope: "col"}, h("code", {}, shortId(id)), remove, h("p.wrong", {}, this.missing.get(id)));
    const holder = h("span.bar", {}, job.status === "running" && bar(job));
    this.bars.set(id, holder);
    return h(
      "th",
      {scope: "col"},
      this.image(job),
      h("div.row.name", {}, h("a", {href: hrefTo("jobs", id), title: id}, job.method, " ", h("code", {}, shortId(id))), remove),
      h("div.row", {}, status(job), outcomeBadge(job)),
      h("p", {}, job.error?.detail ?? outcome(job)?.text),
      holder,
    );
  }

  image({id, image, links: {artifacts}}) {
    if (!image) return null;
    const name = artifacts[this.picture.value] ? this.picture.value : "original.png";
    const path = artifacts[name];
    if (!this.images.has(path)) {
      const element = h("img", {alt: `${words(name.split(".")[0])} image of job ${shortId(id)}`, class: image.width > TINY ? "" : "tiny"});
      objectUrl(path, this.signal).then((url) => (element.src = url), () => {});
      this.images.set(path, element);
    }
    return this.images.get(path);
  }

  row({name, of, format = String, better = 0}, jobs) {
    const values = new Map(jobs.map((job) => [job.id, of(job)]));
    const same = new Set([...values.values()].map((value) => JSON.stringify(value))).size < 2;
    const known = [...values.values()];
    const best = better && known.every(Number.isFinite) && comparable(jobs) ? better * Math.max(...known.map((x) => better * x)) : null;
    const unique = best !== null && known.filter((value) => value === best).length === 1;
    const cell = (id) => {
      const value = values.get(id);
      return h("td", {}, value === undefined || value === null ? "–" : format(value, this.jobs.get(id)), unique && value === best && h("span.badge", {data: {tone: "good"}}, "best"));
    };
    return h("tr", {class: same ? "same" : "differs"}, h("th", {scope: "row"}, name), this.ids.map(cell));
  }
}

/** Values are comparable only between jobs with the same task that all succeeded. */
function comparable(jobs) {
  const same = (of) => new Set(jobs.map((job) => JSON.stringify(of(job)))).size === 1;
  const [{kind}] = jobs;
  if (!same((job) => [job.kind, job.image?.digest, job.label, job.target]) || !jobs.every((job) => job.result)) return false;
  if (kind === "attack") return same((job) => job.model.digest) && jobs.every((job) => job.result.outcome === "success");
  return same(({result}) => [result.norm, result.sampling?.alpha, result.predicted_class?.label, result.abstained]);
}

function lines(jobs, {attacks, certificates}) {
  const widest = (name) => Math.max(...jobs.filter((job) => job.result?.norm === name).map((job) => job.result.radius));
  const all = (of, format, better = () => 0) =>
    [...new Set(jobs.flatMap((job) => Object.keys(of(job) ?? {})))].map((key) => ({
      name: norm(key) === key ? words(key) : norm(key),
      of: (job) => of(job)?.[key],
      format: (value, job) => format(value, key, job),
      better: better(key),
    }));
  const schema = (job, key) => [...attacks, ...certificates].find((card) => card.name === job.method)?.schema?.properties?.[key];
  const predictionLine = (name, of) => ({name, of, format: (one) => [one.name, gauge(one.confidence, percent(one.confidence), name)]});
  return {
    Outcome: [
      predictionLine("Before", (job) => job.result?.original),
      predictionLine("After", (job) => job.result?.adversarial),
      {name: "Certified radius", of: (job) => job.result?.radius, better: 1, format: (r, {result}) => gauge(r / widest(result.norm), `${norm(result.norm)} ${number(Math.floor(1e4 * r) / 1e4, 4)}`)},
    ],
    Parameters: [
      {name: "Model", of: (job) => job.model.id},
      {name: "Image", of: ({image}) => image && `${image.width} × ${image.height}, ${image.digest.slice(7, 15)}`},
      ...all((job) => Object.fromEntries(shortParameters(job)), (value, key, job) => formatParameter(value, job.parameters, schema(job, key))),
      ...all(({label, target, seed, execution}) => ({label, target, seed, execution}), String),
    ],
    Perturbation: all((job) => job.result?.perturbation, (x, key) => (key === "linf" ? in255(x) : number(x, 4)), (key) => (key === "ssim" ? 1 : -1)),
    Queries: all((job) => job.result?.queries, count, () => -1),
    Time: all((job) => job.timings, seconds),
  };
}

const gauge = (share, text, name = "") => h("div.gauge", {class: name}, h("div", {style: {width: `${100 * (share || 0)}%`}}), h("span", {}, text));
