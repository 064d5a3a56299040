// The filters of a list of jobs: from the URL, as query parameters of the API, and applied to jobs that change.

import {getCached} from "../api.js";
import {fill, h} from "../dom.js";
import {capital} from "../format.js";

const NAMES = ["status", "kind", "method", "model", "last", "since", "until"];
const STATUSES = ["", "queued", "running", "succeeded", "failed", "canceled"];
const KINDS = ["attack", "certificate", "prediction", "registration", "inference"].map((kind) => [kind, capital(kind)]);
const HOURS = {"15m": 0.25, "1h": 1, "1d": 24, "1w": 168};
const TIMES = [["15m", "Last 15 minutes"], ["1h", "Last hour"], ["1d", "Last day"], ["1w", "Last week"], ["custom", "From … to …"]];

/** The filters in query parameters or in a form. */
export const read = (query) => Object.fromEntries(NAMES.map((name) => [name, query.get(name)]).filter((pair) => pair[1]));

/** The query parameters of the API: "last hour" becomes a time. */
export function toQuery({last, ...filters}) {
  return last in HOURS ? {...filters, since: new Date(Date.now() - 3.6e6 * HOURS[last]).toISOString()} : filters;
}

/** Whether the service would list the job for this query. */
export function matches(job, {since, until, ...same}) {
  const created = Date.parse(job.created_at);
  if (created < Date.parse(since) || created >= Date.parse(until)) return false;
  return Object.entries({...job, model: job.model.id}).every(([name, value]) => (same[name] ?? value) === value);
}

/** The form; `onChange(filters)` is called after each change, for custom times after submission. */
export function controls(values, onChange) {
  const emitChange = () => {
    const filters = readForm(form);
    clear.hidden = !Object.values(filters).some(Boolean);
    onChange(filters);
  };
  const clear = h("a.button.quiet", {href: "#/jobs", hidden: !Object.keys(values).length}, "Clear filters");
  const incomplete = (event) => event.target.type === "datetime-local" || event.target.value === "custom";
  const last = values.last ?? (values.since || values.until ? "custom" : "");
  const form = h(
    "form.filters",
    {"aria-label": "Filters", onsubmit: (event) => (event.preventDefault(), emitChange()), onchange: (event) => incomplete(event) || emitChange()},
    h("fieldset.row", {}, h("legend.unseen", {}, "Status"), STATUSES.map((status) => statusRadio(status, values.status ?? ""))),
    h(
      "div.row",
      {},
      selectField("Kind", "kind", values.kind, KINDS),
      selectField("Method", "method", values.method, methods()),
      selectField("Model", "model", values.model, models()),
      selectField("Created", "last", last, TIMES),
      ["since", "until"].map((name) => timeField(name, values[name])),
      h("button.time", {}, "Show"),
      clear,
    ),
  );
  return form;
}

function readForm(form) {
  const {last, since, until, ...others} = read(new FormData(form));
  if (last !== "custom") return {...others, last};
  const moment = (local) => local && new Date(local).toISOString();
  return {...others, since: moment(since), until: moment(until)};
}

function statusRadio(status, chosen) {
  const radio = h("input.unseen", {type: "radio", name: "status", value: status, checked: status === chosen});
  return h("label.button", {}, radio, capital(status || "all"), h("span.soft", {data: {count: status || "all"}}));
}

/** A select whose options may be a promise; the given value is an option even if it is unknown. */
function selectField(label, name, given = "", known) {
  const select = h("select", {name});
  const setOptions = (options) => {
    const value = select.value || given;
    const all = new Map([["", "All"], ...(value ? [[value, value]] : []), ...options]);
    fill(select, [...all].map(([value, text]) => h("option", {value}, text)));
    select.value = value;
  };
  setOptions(Array.isArray(known) ? known : []);
  known.then?.(setOptions, () => {});
  return h("label.field", {}, h("span", {}, label), select);
}

function timeField(name, value) {
  const date = new Date(value ?? NaN);
  const local = isNaN(date) ? "" : new Date(date - 6e4 * date.getTimezoneOffset()).toISOString().slice(0, 19);
  return h("label.field.time", {}, h("span", {}, name === "since" ? "From" : "To"), h("input", {type: "datetime-local", name, step: 1, value: local}));
}

async function methods() {
  const lists = await Promise.all([getCached("/v1/attacks"), getCached("/v1/certificates")]);
  return [...lists.flat().map((card) => [card.name, card.title]), ["predict", "Prediction"]];
}

const models = async () => (await getCached("/v1/models")).map((card) => [card.id, card.id]);
