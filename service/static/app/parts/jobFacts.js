// The parameters, measurements, provenance and files of a job.

import {objectUrl} from "../api.js";
import {fill, h} from "../dom.js";
import {between, count, in255, moment, norm, number, percent, seconds, shortId, words} from "../format.js";
import {hrefTo} from "../routes.js";

/** A list of names and values; null, false and empty values are left out. */
export function definitionList(pairs) {
  const known = pairs.filter(([, value]) => ![null, undefined, false, ""].includes(value));
  return h("dl.facts", {}, known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** The cards below a job's result. */
export function jobFacts(job, method, model, signal) {
  const card = (title, pairs) => pairs.length > 0 && h("section.card", {}, h("h2", {}, title), definitionList(pairs));
  return h("div.cards", {},
    card("Perturbation", distances(job)), card("Parameters", requestFacts(job, method, model)), card("Cost and time", costAndTime(job)),
    card("Provenance", provenance(job)), files(job, signal));
}

function distances({parameters, result}) {
  return Object.entries(result?.perturbation ?? {}).map(([name, value]) => [
    norm(name),
    [
      name === "linf" ? in255(value) : Number.isInteger(value) ? count(value) : number(value, 4),
      name === "l0" && " values changed",
      name === parameters.norm && parameters.eps > 0 && h("span.soft", {}, `, ${percent(value / parameters.eps, 0)} of eps`),
    ],
  ]);
}

/** The parameters of a job; for a registration, whose parameters are a manifest, only those that are not objects. */
export const shortParameters = ({kind, parameters}) =>
  Object.entries(parameters).filter(([, value]) => kind !== "registration" || typeof value !== "object");

function requestFacts(job, method, model) {
  const {parameters, label, target, seed, execution, deadline} = job;
  const schema = method?.schema?.properties ?? {};
  const className = (one) => one !== undefined && `${one} ${model?.classes?.[one] ?? ""}`;
  const set = shortParameters(job).map(([name, value]) => [
    h("span", {title: schema[name]?.description}, words(name)), formatParameter(value, parameters, schema[name])]);
  return [...set, ["Label", className(label)], ["Target", className(target)], ["Seed", String(seed)], ["Execution", execution], ["Deadline", deadline && seconds(deadline)]];
}

/** A parameter for display: a distance in L∞ as a multiple of 1/255. */
export function formatParameter(value, {norm: name}, schema) {
  if (value === null) return "not set";
  if (typeof value === "boolean") return value ? "yes" : "no";
  const distance = schema?.anyOf?.some((one) => one.pattern?.includes("/"));
  if (typeof value === "number") return distance && name === "linf" ? in255(value) : number(value, 6);
  return name === value ? norm(value) : typeof value === "string" ? value : JSON.stringify(value);
}

function costAndTime({created_at: created, started_at: started, finished_at: ended, timings, attempts, result}) {
  return [
    ...Object.entries(result?.queries ?? {}).map(([name, n]) => [`${words(name)} queries`, count(n)]),
    ...Object.entries(timings ?? {}).map(([name, time]) => [words(name), seconds(time)]),
    ["Total time", ended && seconds(between(created, ended))],
    ["Submitted", moment(created)], ["Started", started && moment(started)], ["Ended", ended && moment(ended)],
    ["Attempts", String(attempts)],
  ];
}

function provenance({id, model, image, method, rerun_of: original, continues, result}) {
  const link = (job) => job && h("a", {href: hrefTo("jobs", job)}, shortId(job));
  const digest = (text) => h("code.soft", {title: text}, `${text.slice(0, 19)}…`);
  return [
    ["Job", h("code", {}, id)],
    ["Method", method],
    ["Model", [h("a", {href: hrefTo("models", model.id)}, model.id), " ", digest(model.digest)]],
    ["Image", image && [`${image.width} × ${image.height} `, digest(image.digest)]],
    ["Conversions", image?.conversions?.join(", ")],
    ["Rerun of", link(original)], ["Continues", link(continues)],
    ...Object.entries(result?.versions ?? {}),
  ];
}

function files(job, signal) {
  const stem = `touchstone-${job.method}-${shortId(job.id)}`;
  const links = Object.entries(job.links.artifacts).map(([name, path]) => downloadLink(name, `${stem}-${name}`, path, signal));
  if (job.kind === "certificate" && job.result) links.push(blobLink("certificate.json", "certificate.json", job.result));
  links.push(blobLink("job.json", `${stem}.json`, job));
  return h("section.card", {}, h("h2", {}, "Files"), h("ul", {}, links.map((link) => h("li", {}, link))));
}

/** A link to a file of the service; a plain link could not send an API key. */
function downloadLink(name, as, href, signal) {
  const wrong = h("span.wrong", {role: "alert"});
  const onclick = (event) => {
    event.preventDefault();
    fill(wrong);
    objectUrl(href, signal).then((url) => save(url, as), (error) => signal.aborted || fill(wrong, " ", error.message));
  };
  return [h("a", {href, onclick}, name), wrong];
}

/** A button that saves data of the page as a file. */
function blobLink(name, as, content) {
  const onclick = () => save(URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)])), as);
  return h("button.quiet.aslink", {type: "button", onclick}, name);
}

function save(href, download) {
  h("a", {href, download}).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
