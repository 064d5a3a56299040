// A new job: image, method, model and parameters.

import {freshKey, get, getCached, invalidate, post, withQuery} from "../api.js";
import {fill, h} from "../dom.js";
import {capital, count, norm, percent, seconds} from "../format.js";
import {choice, classLabel, equalValues, field, formatValue, isClass, isDefaultOn, prose, radios} from "../parts/form.js";
import {loadMethods} from "../parts/methods.js";
import {imagePicker} from "../parts/picture.js";
import {snippet} from "../parts/snippet.js";
import {failure, loading} from "../parts/placeholders.js";
import {goTo, replaceRoute} from "../routes.js";

export const title = () => "New job";

const DELAY_MS = 200; // between a change and the cost estimate
const MAX_OPEN_FIELDS = 6; // fields outside of Advanced
const DEFAULTS = ["attack", "pgd", "smoothing", "imagenet-efficientnet-lite0", "chelsea.png"]; // chosen at first, if they exist
const PLACEHOLDERS = {target: "untargeted", label: "the model's prediction"};
const UNSET = "null"; // in the URL: empty, although the earlier job has a value

const idOf = ({id, name}) => id ?? name;
const findByName = (items, wanted) => items.find((one) => idOf(one) === wanted);
const pickDefault = (items) => items.find((one) => DEFAULTS.includes(idOf(one))) ?? items[0];

export async function show(root, {query}, signal) {
  fill(root, loading("Loading methods and models"));
  const from = query.get("from");
  const [methods, known, samples, job] = await Promise.all([
    loadMethods(),
    getCached("/v1/models"),
    getCached("/samples").catch(() => []),
    from && get(`/v1/jobs/${encodeURIComponent(from)}`, {signal}),
  ]);
  const before = job ? valuesOf(job) : {};
  const values = {...before, ...Object.fromEntries([...query].map(([name, text]) => [name, text === UNSET ? "" : text]))};
  const models = !values.model || findByName(known, values.model) ? known : await refetch("/v1/models");
  const page = {methods, models, samples, before, values, signal, snippet: snippet()};
  const kind = methods.some((one) => one.kind === values.kind) ? values.kind : DEFAULTS[0];
  page.method = findByName(methodsOf(page, kind), values.method) ?? pickDefault(methodsOf(page, kind));
  page.model = findByName(models, values.model) ?? pickDefault(models);
  page.picture = imagePicker(samples, () => changed(page), signal);
  page.form = h("form.card", {novalidate: true, oninput: () => changed(page), onsubmit: (event) => submit(page, event)});
  const intro = "Attack an image, certify its prediction, or only predict.";
  fill(
    root,
    h("div.head", {}, h("h1", {}, "Can this classifier be fooled?"), h("p.soft", {}, intro)),
    h("div.new-layout", {}, page.picture.element, page.form, page.snippet.element),
  );
  draw(page);
  if (job && !values.sample) page.picture.load(`/v1/jobs/${from}/artifacts/original.png`, {from});
  else pickSample(page, values.sample);
}

/** Fetch a list again, since the wanted item may be new. */
function refetch(path) {
  invalidate(path);
  return getCached(path);
}

const methodsOf = ({methods}, wanted) => methods.filter(({kind}) => kind === wanted);

/** The values of an earlier job, as in the URL. */
function valuesOf({kind, method, model, parameters, seed, execution, deadline, label, target}) {
  const values = {...parameters, seed, execution, deadline, label, target, kind, method, model: model.id};
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, formatValue(value)]));
}

/** Take the sample of this name, or one that fits the model. */
function pickSample({samples, model, picture: {load, bestFor}}, wanted) {
  const sample = findByName(samples, wanted) ?? pickDefault(bestFor(model.input));
  if (sample) load(sample.href, {sample: sample.name});
}

/** Draw the form for the chosen method and model; values are kept for fields that still exist. */
function draw(page) {
  const {method, models, model, values} = page;
  const context = {classes: model.classes, list: "classes", placeholder: PLACEHOLDERS};
  const [classes, own, advanced] = [[], [], []];
  page.fields = Object.entries(method.properties)
    .filter(([name]) => name !== "target" || method.targeted)
    .map(([name, schema]) => {
      const one = field(name, schema, values[name], context);
      const first = method.own.includes(name) && !isDefaultOn(schema) && own.length < MAX_OPEN_FIELDS;
      (isClass(schema) ? classes : first ? own : advanced).push(one.element);
      return one;
    });
  const open = page.advanced?.open || advanced.some(({classList}) => classList.contains("changed"));
  page.advanced = h("details", {open}, h("summary", {}, "Advanced"), h("div.fields", {}, advanced));
  page.cost = h("span.hint");
  page.alert = h("div", {role: "status"});
  page.button = h("button.primary", {}, "Run");
  const options = model.classes.map((name, i) => h("option", {value: classLabel(name, i)}));
  fill(
    page.form,
    h("h2.unseen", {}, "Method and parameters"),
    kinds(page),
    h(
      "div.fields",
      {},
      selectField(page, "method", methodsOf(page, method.kind), describe(method)),
      selectField(page, "model", models, h("span.hint", {}, modelSummary(model))),
      classes,
      own,
    ),
    page.advanced,
    h("datalist#classes", {}, options),
    h("div.run", {}, page.alert, page.cost, page.button),
  );
  page.picture.sortFor(model.input);
  changed(page);
}

function kinds(page) {
  const pairs = [...new Set(page.methods.map(({kind}) => kind))].map((kind) => [kind, capital(kind)]);
  const onchange = ({target}) => change(page, "method", pickDefault(methodsOf(page, target.value)));
  return h("div", {role: "radiogroup", "aria-label": "Kind", onchange}, radios({name: "kind"}, pairs, page.method.kind));
}

function selectField(page, what, items, ...notes) {
  const pairs = items.map((one) => [idOf(one), one.title ?? one.id]);
  const onchange = ({target}) => change(page, what, findByName(items, target.value));
  return h("div.field", {}, h("label", {for: what}, capital(what)), choice({id: what, onchange}, pairs, idOf(page[what])), notes);
}

function describe({description, knowledge, norms, paper, targeted}) {
  const marks = [knowledge, targeted && "targeted or untargeted", norms.map(norm).join(" ")].filter(Boolean);
  const paragraphs = description.split("\n\n").map((text) => h("p", {}, prose(text)));
  return [
    h("span.hint", {}, marks.join(", ")),
    paper && h("a.hint", {href: paper.url, rel: "noreferrer", target: "_blank"}, paper.title),
    h("details.hint", {}, h("summary", {}, "How it works"), paragraphs),
  ];
}

function modelSummary({input, classes, accuracy: [best]}) {
  const size = `${input.width} × ${input.height} ${input.channels === 1 ? "gray" : "color"}, ${count(classes.length)} classes`;
  return best ? `${size}, accuracy ${percent(best.value)}${best.measured ? "" : " (as published)"}` : size;
}

/** Change the method or the model, keeping the focus. */
function change(page, what, item) {
  const {id} = document.activeElement;
  page.values = changedValues(page);
  page[what] = item;
  draw(page);
  page.form.querySelector(id ? `#${id}` : "[name=kind]:checked")?.focus();
  const sample = findByName(page.samples, page.picture.current().sample);
  if (what === "model" && sample && sample.channels !== item.input.channels) pickSample(page);
}

/** The values that differ from `base`, or from their defaults if `base` has none. */
function changedValues({fields}, base = {}) {
  const differing = fields.filter(({name, preset, text}) => !equalValues(text(), base[name] ?? preset));
  return Object.fromEntries(differing.map(({name, text}) => [name, text()]));
}

function changed(page) {
  const {fields, method, model, picture} = page;
  page.key = null;
  page.estimation?.abort();
  const normName = findByName(fields, "norm")?.text() ?? method.norms[0];
  for (const {onNorm} of fields) onNorm?.(normName);
  page.snippet.show(method.path, picture.current().name ?? "image.png", {model: model.id, ...changedValues(page)});
  clearTimeout(page.timer);
  page.timer = setTimeout(() => page.signal.aborted || updateAddress(page), DELAY_MS);
}

function updateAddress(page) {
  const {from, sample} = page.picture.current();
  const {kind, name: method} = page.method;
  const values = changedValues(page, from ? page.before : {});
  for (const name in values) values[name] ||= UNSET;
  replaceRoute("new", null, {from, sample, kind, method, model: page.model.id, ...values});
  if (page.fields.every(({input}) => input().validity.valid)) estimate(page);
}

/** Fetch the cost estimate; the next change aborts the request. */
async function estimate(page) {
  page.estimation = new AbortController();
  const {method, model, cost, alert, estimation} = page;
  const own = Object.entries(changedValues(page)).filter(([name]) => method.own.includes(name));
  const path = withQuery(`${method.path}/cost`, {...Object.fromEntries(own), model: model.id});
  try {
    const answer = await get(path, {signal: AbortSignal.any([page.signal, estimation.signal])});
    const {forward, backward, total, limit} = answer;
    const time = answer.seconds !== null && `, about ${seconds(answer.seconds)}`;
    fill(cost, `Up to ${count(forward)} forward`, backward > 0 && ` + ${count(backward)} backward`, " passes", time);
    const message = `${count(total)} passes exceed the limit of ${count(limit)} per job.`;
    fill(alert, total > limit && h("p.wrong", {}, message));
    for (const {name, check} of page.fields) method.own.includes(name) && check();
  } catch (error) {
    if (error.name === "AbortError") return;
    fill(cost);
    if (error.status === 422) showProblem(page, error);
  }
}

/** Show a problem at its field and return the field; without a field, show it above the button. */
function showProblem(page, problem) {
  const {field: name, message} = problem;
  const at = name === "image" ? page.picture : findByName(page.fields, name);
  at?.showError(message.replace(`${name}: `, ""));
  fill(page.alert, !at && failure(problem));
  return at;
}

function focus({advanced, button}, at) {
  const input = at?.input() ?? button;
  advanced.open ||= advanced.contains(input);
  input.focus();
}

async function submit(page, event) {
  event.preventDefault();
  const {method, model, signal, picture} = page;
  const image = picture.current();
  if (!image.blob) picture.showError("An image is needed.");
  const invalid = image.blob ? page.fields.find(({check}) => !check()) : picture;
  if (invalid) return focus(page, invalid);
  // The key stays the same until the form changes, so a second click or a retry creates no second job.
  const key = (page.key ??= freshKey());
  const body = new FormData();
  for (const [name, text] of Object.entries({model: model.id, ...changedValues(page)})) body.append(name, text);
  fill(page.cost, "Sending…");
  try {
    body.append("image", await image.blob, image.name);
    const job = await post(method.path, body, {headers: {"Idempotency-Key": key}, signal});
    goTo("jobs", job.id);
  } catch (error) {
    if (error.name === "AbortError") return;
    fill(page.cost);
    focus(page, showProblem(page, error));
  }
}
