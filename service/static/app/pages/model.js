// One model: its card, its probe, and the last jobs on it.

import {get, withQuery} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, count, moment, number} from "../format.js";
import {accuracies} from "../parts/accuracy.js";
import {outcome, outcomeBadge, status} from "../parts/badges.js";
import {definitionList} from "../parts/jobFacts.js";
import {exampleAccuracy, probeFacts} from "../parts/probe.js";
import {loading} from "../parts/placeholders.js";
import {hrefTo} from "../routes.js";

const MAX_SHOWN = 50;

export const title = (route) => route.id;

export async function show(root, {id}, signal) {
  const attack = h("a.button.primary", {href: hrefTo("new", null, {model: id})}, "Attack this model");
  const body = h("div.halves", {}, loading("Loading the model"));
  fill(root, h("div.head", {}, h("h1", {}, id), h("div.row", {}, attack)), body);
  const [model, jobs] = await Promise.all([
    get(`/v1/models/${encodeURIComponent(id)}`, {signal}),
    get(withQuery("/v1/jobs", {model: id, limit: 20}), {signal}),
  ]);
  const probe = model.probe ? probeFacts(model.probe) : h("p", {}, NO_PROBE);
  const examples = exampleAccuracy(model.probe ?? {});
  fill(
    body,
    h("div", {}, part("Accuracy", accuracies(model, true)), examples && part("Examples", examples), part("History", history(id, jobs.items))),
    h("div", {}, part("Card", definitionList(card(model))), part("Probe", probe), part("Classes", classes(model.classes))),
  );
}

const part = (name, ...children) => h("section.card", {}, h("h2", {}, name), children);

function card({input, weights, ...model}) {
  const size = `${input.width} × ${input.height}`;
  const fitted = !input.resize ? "whole image resized"
    : Array.isArray(input.resize) ? `whole image resized to ${input.resize.join(" × ")}, then center crop`
    : `shorter side to ${input.resize}, then center crop`;
  const digits = (values) => values.map((value) => number(value, 4)).join(", ");
  return [
    ["Digest", digest(model.digest)],
    ["Architecture", model.architecture],
    ["Input", `${size}, ${input.channels === 1 ? "gray" : input.channel_order === "bgr" ? "color, as BGR" : "color"}`],
    ["Preprocessing", `${fitted}, ${input.interpolation}`],
    ["Mean", digits(model.mean)],
    ["Standard deviation", digits(model.std)],
    ["Output", model.output_activation.map(activation).join(", ") || "logits"],
    ["Gradients", model.gradients === "none" ? "none: a black box" : model.gradients === "straight-through" && "straight through the rounding"],
    ["Answers", model.randomized && "at random"],
    ["Not stated, but read", Object.keys(model.sources).length > 0 && Object.entries(model.sources).map(([name, source]) => h("div", {}, `${name}: ${source}`))],
    ["Parameters", count(model.parameters)],
    ["Weights", [h("code", {}, weights.file), weights.package && ` of the package ${weights.package}`]],
    ["License", model.licence],
    ["Origin", model.provenance],
    ["Loaded on", model.resident.join(", ") || "no worker"],
    ["Versions", model.versions[0].registered_at && model.versions.map(version)],
  ];
}

/** A function at the network's end, and what became of it. */
const activation = ({function: name, handling}) => `${name.replace("-", " ")}, ${handling}`;

const version = ({digest, registered_at: at}) => h("div", {}, h("code", {title: digest}, digest.slice(7, 19)), ", registered ", moment(at));

function digest(text) {
  const code = h("code", {}, text);
  const button = h("button", {type: "button", onclick: copy, "aria-live": "polite"}, "Copy digest");
  return [code, h("div", {}, button)];

  function copy() {
    getSelection().selectAllChildren(code); // Pages over plain HTTP have no clipboard.
    navigator.clipboard?.writeText(text).then(() => fill(button, "Copied"), () => {});
  }
}

const NO_PROBE = "Not loaded yet: the first job loads and probes it.";

/** The classes, searchable; only the first matches become elements. */
function classes(names) {
  const found = h("ol.classes", {tabindex: 0, "aria-label": "Classes"});
  const matchCount = h("p.hint", {role: "status"});
  const input = h("input", {type: "search", oninput: search});
  search();
  return [h("label.field", {}, h("span", {}, "Name or index"), input), matchCount, found];

  function search() {
    const wanted = input.value.trim().toLowerCase();
    const all = names.map((name, i) => [i, name]).filter(([i, name]) => `${i}` === wanted || name.toLowerCase().includes(wanted));
    fill(found, all.slice(0, MAX_SHOWN).map(([i, name]) => h("li", {}, h("span.soft", {}, i), name)));
    matchCount.textContent = `${count(all.length)} of ${count(names.length)}${all.length > MAX_SHOWN ? `, the first ${MAX_SHOWN} shown` : ""}`;
  }
}

const badge = (job) => outcomeBadge(job) ?? status(job);

function history(model, jobs) {
  if (!jobs.length) return h("p", {}, "No jobs yet.");
  const summary = [...Map.groupBy(jobs, (job) => badge(job).textContent).values()].map((alike) => {
    const one = badge(alike[0]);
    one.prepend(`${alike.length} `);
    return one;
  });
  const heads = ["Job", "Outcome", "Result", "Created"].map((name) => h("th", {scope: "col"}, name));
  const caption = h("caption.unseen", {}, "The last jobs on this model");
  return [
    h("p.row", {}, `Last ${jobs.length} jobs:`, summary, h("a", {href: hrefTo("jobs", null, {model})}, "All jobs on this model")),
    h("div.scroll", {}, h("table", {}, caption, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, jobs.map(line)))),
  ];
}

function line(job) {
  const cells = [badge(job), outcome(job)?.text ?? job.error?.code ?? "", h("span.soft", {}, ago(job.created_at))];
  const link = h("a", {href: hrefTo("jobs", job.id)}, `${job.method} ${job.id.slice(-6)}`);
  return h("tr", {}, h("th", {scope: "row"}, link), cells.map((cell) => h("td", {}, cell)));
}
