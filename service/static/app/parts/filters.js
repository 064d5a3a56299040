// Which jobs a list shows: as the address says it, as the service is asked, and as each job that changes is judged.

import {once} from "../api.js";
import {fill, h} from "../dom.js";
import {capital} from "../format.js";

const NAMES = ["status", "kind", "method", "model", "last", "since", "until"];
const STATUSES = ["", "queued", "running", "succeeded", "failed", "canceled"];
const KINDS = ["attack", "certificate", "prediction", "registration", "inference"].map((kind) => [kind, capital(kind)]);
const HOURS = {"15m": 0.25, "1h": 1, "1d": 24, "1w": 168};
const TIMES = [["15m", "Last 15 minutes"], ["1h", "Last hour"], ["1d", "Last day"], ["1w", "Last week"], ["custom", "From … to …"]];

/** The filters in parameters of the address, or in a form. */
export const read = (query) => Object.fromEntries(NAMES.map((name) => [name, query.get(name)]).filter((pair) => pair[1]));

/** As the service takes them: the last hour began an hour ago. */
export function asked({last, ...filters}) {
  return last in HOURS ? {...filters, since: new Date(Date.now() - 3.6e6 * HOURS[last]).toISOString()} : filters;
}

/** Whether the service would list the job under what it was `asked`. */
export function fits(job, {since, until, ...same}) {
  const created = Date.parse(job.created_at);
  if (created < Date.parse(since) || created >= Date.parse(until)) return false;
  return Object.entries({...job, model: job.model.id}).every(([name, value]) => (same[name] ?? value) === value);
}

/** The controls; `changed` is told the filters after each change. A time is complete when it is sent off. */
export function controls(values, changed) {
  const tell = () => {
    const filters = said(form);
    clear.hidden = !Object.values(filters).some(Boolean);
    changed(filters);
  };
  const clear = h("a.button.quiet", {href: "#/jobs", hidden: !Object.keys(values).length}, "Clear filters");
  const late = (event) => event.target.type === "datetime-local" || event.target.value === "custom";
  const last = values.last ?? (values.since || values.until ? "custom" : "");
  const form = h(
    "form.filters",
    {"aria-label": "Filters", onsubmit: (event) => (event.preventDefault(), tell()), onchange: (event) => late(event) || tell()},
    h("fieldset.row", {}, h("legend.unseen", {}, "Status"), STATUSES.map((status) => chip(status, values.status ?? ""))),
    h(
      "div.row",
      {},
      pick("Kind", "kind", values.kind, KINDS),
      pick("Method", "method", values.method, methods()),
      pick("Model", "model", values.model, models()),
      pick("Created", "last", last, TIMES),
      ["since", "until"].map((name) => time(name, values[name])),
      h("button.time", {}, "Show"),
      clear,
    ),
  );
  return form;
}

function said(form) {
  const {last, since, until, ...others} = read(new FormData(form));
  if (last !== "custom") return {...others, last};
  const moment = (local) => local && new Date(local).toISOString();
  return {...others, since: moment(since), until: moment(until)};
}

function chip(status, chosen) {
  const radio = h("input.unseen", {type: "radio", name: "status", value: status, checked: status === chosen});
  return h("label.button", {}, radio, capital(status || "all"), h("span.soft", {data: {count: status || "all"}}));
}

/** A choice among what is known by now; what the address names is offered, whether known or not. */
function pick(label, name, given = "", known) {
  const select = h("select", {name});
  const offer = (options) => {
    const value = select.value || given;
    const all = new Map([["", "All"], ...(value ? [[value, value]] : []), ...options]);
    fill(select, [...all].map(([value, text]) => h("option", {value}, text)));
    select.value = value;
  };
  offer(Array.isArray(known) ? known : []);
  known.then?.(offer, () => {});
  return h("label.field", {}, h("span", {}, label), select);
}

function time(name, value) {
  const date = new Date(value ?? NaN);
  const local = isNaN(date) ? "" : new Date(date - 6e4 * date.getTimezoneOffset()).toISOString().slice(0, 19);
  return h("label.field.time", {}, h("span", {}, name === "since" ? "From" : "To"), h("input", {type: "datetime-local", name, step: 1, value: local}));
}

async function methods() {
  const lists = await Promise.all([once("/v1/attacks"), once("/v1/certificates")]);
  return [...lists.flat().map((card) => [card.name, card.title]), ["predict", "Prediction"]];
}

const models = async () => (await once("/v1/models")).map((card) => [card.id, card.id]);
