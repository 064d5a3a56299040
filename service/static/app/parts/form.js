// Form fields generated from JSON Schema: a new parameter of a method needs no code here.

import {fill, h} from "../dom.js";
import {count, norm, number, words} from "../format.js";

const MAX_SEGMENT_CHARACTERS = 24; // more become a select
const SLIDER_MAX = 32; // in 255ths

/** A text of the service with code between backticks. */
export const prose = (text) => text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));

/** The label of a class in a list: the index distinguishes classes of the same name. */
export const classLabel = (name, index) => `${name} · ${index}`;

/** A decimal number or a fraction; NaN if it is neither. */
function parseNumber(text) {
  const [above, below = 1] = text.split("/");
  return above.trim() === "" ? NaN : above / below;
}

export const equalValues = (a, b) => a === b || Math.abs(parseNumber(a) - parseNumber(b)) < 1e-12;

/** A value of a job or a schema for a form: n/255 if that is shorter. */
export function formatValue(value) {
  const plain = String(value ?? "");
  const lattice = `${Math.round(value * 255)}/255`;
  return plain.length > 6 && equalValues(lattice, plain) ? lattice : plain;
}

function shapeOf(schema) {
  const variants = (schema.anyOf ?? [schema]).filter(({type}) => type !== "null");
  const [{type, pattern, minimum: min, maximum: max}, other] = variants;
  const choices = variants.flatMap((one) => one.enum ?? ("const" in one ? [one.const] : []));
  return {type, pattern, min, max, choices, pair: Boolean(other), optional: schema.default === undefined || schema.default === null};
}

/** Whether a schema is that of a class, given by index or name. */
export const isClass = (schema) => shapeOf(schema).pair && shapeOf(schema).type === "integer";

/** Whether it is a boolean that is true by default, which is rarely changed. */
export const isDefaultOn = ({type, default: preset}) => type === "boolean" && preset;

/**
 * A field: `text()` is the value to send, empty for the service's default; `showError(message)` shows an error, or clears it
 * with ""; `onNorm(name)` adapts it to the norm. `context` has the model's `classes`, the id of their `list` and `placeholder`s.
 */
export function field(name, schema, given, context) {
  const shape = shapeOf(schema);
  const id = `field-${name}`;
  const preset = shape.pair ? formatValue(schema.default) : String(schema.default ?? "");
  const {group, control, input, text, onNorm} = widget(schema, shape)(
    {id, name, "aria-describedby": `${id}-hint ${id}-wrong`, placeholder: context.placeholder[name] ?? (shape.optional && "unset")},
    shape,
    given ?? preset,
    context,
  );
  const wrong = h("span.wrong", {id: `${id}-wrong`});
  const bounds = shape.max < 1e9 && shape.min !== undefined && !shape.pair && ` ${count(shape.min)} to ${count(shape.max)}.`;
  const shownDefault = preset.length > 6 && preset > 0 ? number(Number(preset), 4) : norm(preset);
  const label = [words(name), preset && h("small", {}, "default ", shownDefault)];
  const element = h(
    `${group ? "fieldset" : "div"}.field`,
    {oninput: () => check()},
    group ? h("legend", {}, label) : h("label", {for: id}, label),
    control,
    h("span.hint", {id: `${id}-hint`}, prose(schema.description), bounds),
    wrong,
  );
  const showError = (message) => {
    fill(wrong, message);
    input().setAttribute("aria-invalid", message !== "");
  };
  const check = () => {
    element.classList.toggle("changed", !equalValues(text(), preset));
    showError(input().validationMessage);
    return input().validity.valid;
  };
  check();
  return {name, element, preset, text, showError, check, onNorm, input};
}

function widget(schema, {type, choices, pair}) {
  if (type === "boolean") return toggle;
  if (choices.length) return choices.join("").length > MAX_SEGMENT_CHARACTERS ? select : segments;
  if (isClass(schema)) return classes;
  if (pair) return distance;
  return type === "string" || type === "array" ? textual : numeric;
}

const plain = (input, group) => ({group, control: input, input: () => input, text: () => input.value.trim()});

function toggle(attributes, _, given) {
  const input = h("input", {...attributes, type: "checkbox", checked: given === "true"});
  return {...plain(input), text: () => String(input.checked)};
}

const options = ({choices, optional}) => [...(optional ? [["", "none"]] : []), ...choices.map((one) => [String(one), norm(one)])];

const select = (attributes, shape, value) => plain(choice(attributes, options(shape), value));

/** A list to choose one of `[[value, label], …]` from. */
export function choice(attributes, pairs, value) {
  return h("select", {...attributes, value}, pairs.map(([one, label]) => h("option", {value: one}, label)));
}

function segments({id: _, ...attributes}, shape, given) {
  const pairs = options(shape);
  const chosen = pairs.some(([value]) => value === given) ? given : pairs[0][0];
  const control = radios(attributes, pairs, chosen);
  const input = () => control.querySelector(":checked");
  return {group: true, control, input, text: () => input().value};
}

/** The same as radio buttons, shown as one segmented control. */
export function radios(attributes, pairs, chosen) {
  const one = ([value, label]) =>
    h("label", {}, h("input", {...attributes, type: "radio", value, checked: value === chosen}), h("span", {}, label));
  return h("div.segments", {}, pairs.map(one));
}

function classes(attributes, _, given, {classes: names, list}) {
  const value = names[given] === undefined ? given : classLabel(names[given], given);
  const input = h("input", {...attributes, list, autocomplete: "off", value});
  return {...plain(input), text: () => classIn(input.value.trim(), names)};
}

/** The index of the only class with this name or label; else the text, which the service will reject. */
function classIn(text, names) {
  const matching = [...names.keys()].filter((i) => [names[i], classLabel(names[i], i)].some((one) => one.toLowerCase() === text.toLowerCase()));
  return matching.length === 1 ? String(matching[0]) : text;
}

function numeric(attributes, {type, min, max, optional}, value) {
  const step = type === "integer" ? 1 : "any";
  // An earlier job's value may be a fraction, which an input of type number does not accept.
  const given = value.includes("/") ? parseNumber(value) : value;
  return plain(h("input", {...attributes, type: "number", min, max, step, required: !optional, value: given}));
}

/** A text with a pattern, or a comma-separated list. */
function textual(attributes, {type, pattern, optional}, value) {
  const required = !optional && type === "string";
  return plain(h("input", {...attributes, autocomplete: "off", spellcheck: "false", pattern, required, value}));
}

/** A number or a fraction; for L∞ with a slider in steps of 1/255. */
function distance(attributes, {optional}, value) {
  const text = h("input", {...attributes, autocomplete: "off", required: !optional, value});
  const slider = h("input", {type: "range", max: SLIDER_MAX, "aria-label": `${words(attributes.name)} in 255ths`});
  const update = () => {
    const size = parseNumber(text.value);
    slider.value = 255 * size || 0;
    slider.setAttribute("aria-valuetext", text.value || "unset");
    text.setCustomValidity(!text.value || (size >= 0 && size < Infinity) ? "" : "Enter a number or a fraction such as 8/255.");
  };
  slider.addEventListener("input", () => ((text.value = `${slider.value}/255`), update()));
  text.addEventListener("input", update);
  update();
  return {...plain(text), control: h("div.distance", {}, slider, text), onNorm: (name) => (slider.hidden = name !== "linf")};
}
