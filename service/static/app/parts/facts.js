// Everything else that is known of a job, by name, and the files it left.

import {file} from "../api.js";
import {fill, h} from "../dom.js";
import {between, count, in255, moment, norm, number, percent, seconds, words} from "../format.js";
import {to} from "../routes.js";

const NAMES = {tv: "Total variation", ssim: "Similarity (SSIM)"};

export const short = (id) => id.slice(0, 8);

/** A list of names and values; what is null, false or empty is left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => ![null, undefined, false, ""].includes(value));
  return h("dl.facts", {}, known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** The cards of facts about a job. */
export function about(job, method, model, signal) {
  const card = (title, pairs) => pairs.length > 0 && h("section.card", {}, h("h2", {}, title), facts(pairs));
  return h("div.cards", {},
    card("Distance", distances(job)), card("Asked for", asked(job, method, model)), card("Effort", effort(job)),
    card("Provenance", provenance(job)), files(job, signal));
}

function distances({parameters, result}) {
  return Object.entries(result?.perturbation ?? {}).map(([name, value]) => [
    NAMES[name] ?? norm(name),
    [
      name === "linf" ? in255(value) : Number.isInteger(value) ? count(value) : number(value, 4),
      name === "l0" && " values changed",
      name === parameters.norm && parameters.eps > 0 && h("span.soft", {}, `, ${percent(value / parameters.eps, 0)} of eps`),
    ],
  ]);
}

/** What was asked for, by name; of a registration, whose parameters are a model's card, only what is short. */
export const given = ({kind, parameters}) =>
  Object.entries(parameters).filter(([, value]) => kind !== "registration" || typeof value !== "object");

function asked(job, method, model) {
  const {parameters, label, target, seed, execution, deadline} = job;
  const schema = method?.schema?.properties ?? {};
  const named = (one) => one !== undefined && `${one} ${model?.classes?.[one] ?? ""}`;
  const set = given(job).map(([name, value]) => [
    h("span", {title: schema[name]?.description}, words(name)), written(value, parameters, schema[name])]);
  return [...set, ["Label", named(label)], ["Target", named(target)], ["Seed", String(seed)], ["Execution", execution], ["Deadline", deadline && seconds(deadline)]];
}

/** A parameter as people write it: a distance in L∞ is a number of grey levels. */
export function written(value, {norm: name}, schema) {
  if (value === null) return "not set";
  if (typeof value === "boolean") return value ? "yes" : "no";
  const distance = schema?.anyOf?.some((one) => one.pattern?.includes("/"));
  if (typeof value === "number") return distance && name === "linf" ? in255(value) : number(value, 6);
  return name === value ? norm(value) : typeof value === "string" ? value : JSON.stringify(value);
}

function effort({created_at: since, started_at: begun, finished_at: ended, timings, attempts, result}) {
  return [
    ...Object.entries(result?.queries ?? {}).map(([name, n]) => [`${words(name)} queries`, count(n)]),
    ...Object.entries(timings ?? {}).map(([name, time]) => [words(name), seconds(time)]),
    ["In all", ended && seconds(between(since, ended))],
    ["Submitted", moment(since)], ["Started", begun && moment(begun)], ["Ended", ended && moment(ended)],
    ["Attempts", String(attempts)],
  ];
}

function provenance({id, model, image, method, rerun_of: repeated, continues, result}) {
  const link = (job) => job && h("a", {href: to("jobs", job)}, short(job));
  const digest = (text) => h("code.soft", {title: text}, `${text.slice(0, 19)}…`);
  return [
    ["Job", h("code", {}, id)],
    ["Method", method],
    ["Model", [h("a", {href: to("models", model.id)}, model.id), " ", digest(model.digest)]],
    ["Image", image && [`${image.width} × ${image.height} `, digest(image.digest)]],
    ["Done to the upload", image?.conversions?.join(", ")],
    ["Repeats", link(repeated)], ["Goes on with", link(continues)],
    ...Object.entries(result?.versions ?? {}),
  ];
}

function files(job, signal) {
  const stem = `touchstone-${job.method}-${short(job.id)}`;
  const links = Object.entries(job.links.artifacts).map(([name, path]) => fetched(name, `${stem}-${name}`, path, signal));
  if (job.kind === "certificate" && job.result) links.push(made("certificate.json", "certificate.json", job.result));
  links.push(made("job.json", `${stem}.json`, job));
  return h("section.card", {}, h("h2", {}, "Files"), h("ul", {}, links.map((link) => h("li", {}, link))));
}

/** A file of the service. A plain link could not carry a key. */
function fetched(name, as, href, signal) {
  const wrong = h("span.wrong", {role: "alert"});
  const onclick = (event) => {
    event.preventDefault();
    fill(wrong);
    file(href, signal).then((url) => save(url, as), (error) => signal.aborted || fill(wrong, " ", error.message));
  };
  return [h("a", {href, onclick}, name), wrong];
}

/** Something that the page has already, as a file. */
function made(name, as, content) {
  const onclick = () => save(URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)])), as);
  return h("button.quiet.aslink", {type: "button", onclick}, name);
}

function save(href, download) {
  h("a", {href, download}).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
