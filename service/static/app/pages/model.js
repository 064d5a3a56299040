// What is known of one model: its card, what loading it measured, and what came of the last jobs on it.

import {address, get} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, count, moment, number} from "../format.js";
import {accuracies} from "../parts/accuracy.js";
import {outcome, outcomeBadge, status} from "../parts/badges.js";
import {facts} from "../parts/facts.js";
import {measured} from "../parts/probe.js";
import {loading} from "../parts/states.js";
import {to} from "../routes.js";

const MOST = 50;

export const title = (route) => route.id;

export async function show(root, {id}, signal) {
  const attack = h("a.button.primary", {href: to("new", null, {model: id})}, "Attack this model");
  const body = h("div.halves", {}, loading("Asking for the model"));
  fill(root, h("div.head", {}, h("h1", {}, id), h("div.row", {}, attack)), body);
  const [model, jobs] = await Promise.all([
    get(`/v1/models/${encodeURIComponent(id)}`, {signal}),
    get(address("/v1/jobs", {model: id, limit: 20}), {signal}),
  ]);
  const probe = model.probe ? measured(model.probe) : h("p", {}, UNKNOWN);
  fill(
    body,
    h("div", {}, part("Accuracy", accuracies(model, true)), part("History", history(id, jobs.items))),
    h("div", {}, part("Card", facts(card(model))), part("Probe", probe), part("Classes", classes(model.classes))),
  );
}

const part = (name, ...children) => h("section.card", {}, h("h2", {}, name), children);

function card({input, weights, ...model}) {
  const size = `${input.width} × ${input.height}`;
  const fitted = input.resize ? `shorter side to ${input.resize}, then the centre` : "the whole image";
  const digits = (values) => values.map((value) => number(value, 4)).join(", ");
  return [
    ["Digest", digest(model.digest)],
    ["Architecture", model.architecture],
    ["Input", `${size}, ${input.channels === 1 ? "grey" : "colour"}`],
    ["Fitted", `${fitted}, ${input.interpolation}`],
    ["Mean", digits(model.mean)],
    ["Std", digits(model.std)],
    ["Parameters", count(model.parameters)],
    ["Weights", [h("code", {}, weights.file), weights.package && ` of the package ${weights.package}`]],
    ["Licence", model.licence],
    ["Origin", model.provenance],
    ["Loaded on", model.resident.join(", ") || "no worker at the moment"],
    ["Versions", model.versions[0].registered_at && model.versions.map(version)],
  ];
}

const version = ({digest, registered_at: at}) => h("div", {}, h("code", {title: digest}, digest.slice(7, 19)), " of ", moment(at));

function digest(text) {
  const code = h("code", {}, text);
  const button = h("button", {type: "button", onclick: copy, "aria-live": "polite"}, "Copy digest");
  return [code, h("div", {}, button)];

  function copy() {
    getSelection().selectAllChildren(code); // Pages over plain http have no clipboard.
    navigator.clipboard?.writeText(text).then(() => fill(button, "Copied"), () => {});
  }
}

const UNKNOWN = "Not loaded yet: the first job loads and probes it.";

/** A thousand names are searched as text; few of them become elements. */
function classes(names) {
  const found = h("ol.classes", {tabindex: 0, "aria-label": "Classes"});
  const told = h("p.hint", {role: "status"});
  const input = h("input", {type: "search", oninput: search});
  search();
  return [h("label.field", {}, h("span", {}, "Name or index"), input), told, found];

  function search() {
    const wanted = input.value.trim().toLowerCase();
    const all = names.map((name, i) => [i, name]).filter(([i, name]) => `${i}` === wanted || name.toLowerCase().includes(wanted));
    fill(found, all.slice(0, MOST).map(([i, name]) => h("li", {}, h("span.soft", {}, i), name)));
    told.textContent = `${count(all.length)} of ${count(names.length)}${all.length > MOST ? `, the first ${MOST} shown` : ""}`;
  }
}

const badge = (job) => outcomeBadge(job) ?? status(job);

function history(model, jobs) {
  if (!jobs.length) return h("p", {}, "No job has asked it yet.");
  const tally = [...Map.groupBy(jobs, (job) => badge(job).textContent).values()].map((alike) => {
    const one = badge(alike[0]);
    one.prepend(`${alike.length} `);
    return one;
  });
  const heads = ["Job", "Outcome", "In short", "When"].map((name) => h("th", {scope: "col"}, name));
  const caption = h("caption.unseen", {}, "The last jobs on this model");
  return [
    h("p.row", {}, `Of the last ${jobs.length}:`, tally, h("a", {href: to("jobs", null, {model})}, "All its jobs")),
    h("div.scroll", {}, h("table", {}, caption, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, jobs.map(line)))),
  ];
}

function line(job) {
  const cells = [badge(job), outcome(job)?.text ?? job.error?.code ?? "", h("span.soft", {}, ago(job.created_at))];
  const link = h("a", {href: to("jobs", job.id)}, `${job.method} ${job.id.slice(-6)}`);
  return h("tr", {}, h("th", {scope: "row"}, link), cells.map((cell) => h("td", {}, cell)));
}
