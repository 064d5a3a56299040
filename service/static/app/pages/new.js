// A new job: an image, what to do with it, one button.

import {address, forget, freshKey, get, once, post} from "../api.js";
import {fill, h} from "../dom.js";
import {capital, count, norm, percent, seconds} from "../format.js";
import {choice, field, isClass, isUsual, named, prose, radios, same, written} from "../parts/form.js";
import {offers} from "../parts/offers.js";
import {picture} from "../parts/picture.js";
import {snippet} from "../parts/snippet.js";
import {failure, loading} from "../parts/states.js";
import {go, restate} from "../routes.js";

export const title = () => "New job";

const PAUSE = 200; // milliseconds after a change before the service is asked about it
const ROOM = 6; // fields in the open
const USUAL = ["attack", "pgd", "smoothing", "imagenet-efficientnet-lite0", "chelsea.png"]; // to begin with, where there
const LEFT_OUT = {target: "untargeted", label: "the model's own answer"};
const UNSET = "null"; // in the address: empty, though a job had filled it

const idOf = ({id, name}) => id ?? name;
const called = (items, wanted) => items.find((one) => idOf(one) === wanted);
const usual = (items) => items.find((one) => USUAL.includes(idOf(one))) ?? items[0];

export async function show(root, {query}, signal) {
  fill(root, loading("Asking what the service can do"));
  const from = query.get("from");
  const [methods, known, samples, job] = await Promise.all([
    offers(),
    once("/v1/models"),
    once("/samples").catch(() => []),
    from && get(`/v1/jobs/${encodeURIComponent(from)}`, {signal}),
  ]);
  const before = job ? saidBy(job) : {};
  const values = {...before, ...Object.fromEntries([...query].map(([name, text]) => [name, text === UNSET ? "" : text]))};
  const models = !values.model || called(known, values.model) ? known : await renewed("/v1/models");
  const page = {methods, models, samples, before, values, signal, snippet: snippet()};
  const kind = methods.some((one) => one.kind === values.kind) ? values.kind : USUAL[0];
  page.method = called(of(page, kind), values.method) ?? usual(of(page, kind));
  page.model = called(models, values.model) ?? usual(models);
  page.picture = picture(samples, () => changed(page), signal);
  page.form = h("form.card", {novalidate: true, oninput: () => changed(page), onsubmit: (event) => submit(page, event)});
  const about = "Attack an image, certify the answer to it, or just ask for one.";
  fill(
    root,
    h("div.head", {}, h("h1", {}, "Can this classifier be fooled?"), h("p.soft", {}, about)),
    h("div.bench", {}, page.picture.element, page.form, page.snippet.element),
  );
  draw(page);
  if (job && !values.sample) page.picture.load(`/v1/jobs/${from}/artifacts/original.png`, {from});
  else pick(page, values.sample);
}

/** A list asked for again: what is wanted of it may have come since. */
function renewed(path) {
  forget(path);
  return once(path);
}

const of = ({methods}, wanted) => methods.filter(({kind}) => kind === wanted);

/** What a job was told, as the address would say it. */
function saidBy({kind, method, model, parameters, seed, execution, deadline, label, target}) {
  const said = {...parameters, seed, execution, deadline, label, target, kind, method, model: model.id};
  return Object.fromEntries(Object.entries(said).map(([name, value]) => [name, written(value)]));
}

/** Take a sample: the one of that name, or one that suits the model. */
function pick({samples, model, picture: {load, best}}, wanted) {
  const sample = called(samples, wanted) ?? usual(best(model.input));
  if (sample) load(sample.href, {sample: sample.name});
}

/** Draw the form for what is chosen; what was said before stays where there is still a field for it. */
function draw(page) {
  const {method, models, model, values} = page;
  const about = {classes: model.classes, list: "classes", placeholder: LEFT_OUT};
  const [classes, own, aside] = [[], [], []];
  page.fields = Object.entries(method.properties)
    .filter(([name]) => name !== "target" || method.targeted)
    .map(([name, schema]) => {
      const one = field(name, schema, values[name], about);
      const first = method.own.includes(name) && !isUsual(schema) && own.length < ROOM;
      (isClass(schema) ? classes : first ? own : aside).push(one.element);
      return one;
    });
  const open = page.aside?.open || aside.some(({classList}) => classList.contains("changed"));
  page.aside = h("details", {open}, h("summary", {}, "Advanced"), h("div.fields", {}, aside));
  page.cost = h("span.hint");
  page.alert = h("div", {role: "status"});
  page.button = h("button.primary", {}, "Run");
  const options = model.classes.map((name, i) => h("option", {value: named(name, i)}));
  fill(
    page.form,
    h("h2.unseen", {}, "What to do"),
    kinds(page),
    h(
      "div.fields",
      {},
      chooser(page, "method", of(page, method.kind), describe(method)),
      chooser(page, "model", models, h("span.hint", {}, figures(model))),
      classes,
      own,
    ),
    page.aside,
    h("datalist#classes", {}, options),
    h("div.run", {}, page.alert, page.cost, page.button),
  );
  page.picture.offer(model.input);
  changed(page);
}

function kinds(page) {
  const pairs = [...new Set(page.methods.map(({kind}) => kind))].map((kind) => [kind, capital(kind)]);
  const onchange = ({target}) => again(page, "method", usual(of(page, target.value)));
  return h("div", {role: "radiogroup", "aria-label": "Kind", onchange}, radios({name: "kind"}, pairs, page.method.kind));
}

function chooser(page, what, items, ...notes) {
  const pairs = items.map((one) => [idOf(one), one.title ?? one.id]);
  const onchange = ({target}) => again(page, what, called(items, target.value));
  return h("div.field", {}, h("label", {for: what}, capital(what)), choice({id: what, onchange}, pairs, idOf(page[what])), notes);
}

function describe({description, knowledge, norms, paper, targeted}) {
  const marks = [knowledge, targeted && "targeted or not", norms.map(norm).join(" ")].filter(Boolean);
  const paragraphs = description.split("\n\n").map((text) => h("p", {}, prose(text)));
  return [
    h("span.hint", {}, marks.join(", ")),
    paper && h("a.hint", {href: paper.url, rel: "noreferrer", target: "_blank"}, paper.title),
    h("details.hint", {}, h("summary", {}, "How it works"), paragraphs),
  ];
}

function figures({input, classes, accuracy: [best]}) {
  const size = `${input.width} × ${input.height} ${input.channels === 1 ? "grey" : "colour"}, ${count(classes.length)} classes`;
  return best ? `${size}, ${percent(best.value)} accurate${best.measured ? "" : ", says its publisher"}` : size;
}

/** Another method or model: the form changes under the focus. */
function again(page, what, item) {
  const {id} = document.activeElement;
  page.values = told(page);
  page[what] = item;
  draw(page);
  page.form.querySelector(id ? `#${id}` : "[name=kind]:checked")?.focus();
  const sample = called(page.samples, page.picture.current().sample);
  if (what === "model" && sample && sample.channels !== item.input.channels) pick(page);
}

/** What the fields say that differs from `base`, or from their defaults where that says nothing. */
function told({fields}, base = {}) {
  const said = fields.filter(({name, preset, text}) => !same(text(), base[name] ?? preset));
  return Object.fromEntries(said.map(({name, text}) => [name, text()]));
}

function changed(page) {
  const {fields, method, model, picture} = page;
  page.key = null;
  page.asking?.abort();
  const bound = called(fields, "norm")?.text() ?? method.norms[0];
  for (const {fits} of fields) fits?.(bound);
  page.snippet.show(method.path, picture.current().name ?? "image.png", {model: model.id, ...told(page)});
  clearTimeout(page.timer);
  page.timer = setTimeout(() => page.signal.aborted || settle(page), PAUSE);
}

function settle(page) {
  const {from, sample} = page.picture.current();
  const {kind, name: method} = page.method;
  const said = told(page, from ? page.before : {});
  for (const name in said) said[name] ||= UNSET;
  restate("new", null, {from, sample, kind, method, model: page.model.id, ...said});
  if (page.fields.every(({input}) => input().validity.valid)) estimate(page);
}

/** Ask what the job may cost; with the next change the question is given up. */
async function estimate(page) {
  page.asking = new AbortController();
  const {method, model, cost, alert, asking} = page;
  const own = Object.entries(told(page)).filter(([name]) => method.own.includes(name));
  const path = address(`${method.path}/cost`, {...Object.fromEntries(own), model: model.id});
  try {
    const answer = await get(path, {signal: AbortSignal.any([page.signal, asking.signal])});
    const {forward, backward, total, limit} = answer;
    const time = answer.seconds !== null && `, about ${seconds(answer.seconds)}`;
    fill(cost, `Up to ${count(forward)} forward`, backward > 0 && ` + ${count(backward)} backward`, " passes", time);
    const most = `${count(total)} passes are more than the ${count(limit)} that one job may take.`;
    fill(alert, total > limit && h("p.wrong", {}, most));
    for (const {name, check} of page.fields) method.own.includes(name) && check();
  } catch (error) {
    if (error.name === "AbortError") return;
    fill(cost);
    if (error.status === 422) blame(page, error);
  }
}

/** Show a problem at the field at fault, and return that; else above the button. */
function blame(page, problem) {
  const {field: name, message} = problem;
  const at = name === "image" ? page.picture : called(page.fields, name);
  at?.tell(message.replace(`${name}: `, ""));
  fill(page.alert, !at && failure(problem));
  return at;
}

function focus({aside, button}, at) {
  const input = at?.input() ?? button;
  aside.open ||= aside.contains(input);
  input.focus();
}

async function submit(page, event) {
  event.preventDefault();
  const {method, model, signal, picture} = page;
  const image = picture.current();
  if (!image.blob) picture.tell("An image is needed.");
  const wrong = image.blob ? page.fields.find(({check}) => !check()) : picture;
  if (wrong) return focus(page, wrong);
  // Until something changes the key is the same: whoever clicks twice, or after a broken connection, gets one job.
  const key = (page.key ??= freshKey());
  const body = new FormData();
  for (const [name, text] of Object.entries({model: model.id, ...told(page)})) body.append(name, text);
  fill(page.cost, "Sending…");
  try {
    body.append("image", await image.blob, image.name);
    const job = await post(method.path, body, {headers: {"Idempotency-Key": key}, signal});
    go("jobs", job.id);
  } catch (error) {
    if (error.name === "AbortError") return;
    fill(page.cost);
    focus(page, blame(page, error));
  }
}
