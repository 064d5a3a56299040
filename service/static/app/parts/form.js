// Fields drawn from JSON Schema alone: a new parameter of a method appears without a line of code here.

import {fill, h} from "../dom.js";
import {count, norm, number, words} from "../format.js";

const WIDE = 24; // letters that fit side by side
const WIDEST = 32; // 255ths at a slider's end

/** Texts of the service, in which code stands between backticks. */
export const prose = (text) => text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));

/** A class as a list shows it: indices tell apart those of one name. */
export const named = (name, index) => `${name} · ${index}`;

/** A number or a fraction as people write it; NaN where it is neither. */
function parsed(text) {
  const [above, below = 1] = text.split("/");
  return above.trim() === "" ? NaN : above / below;
}

export const same = (a, b) => a === b || Math.abs(parsed(a) - parsed(b)) < 1e-12;

/** A value of a job or a schema as it stands in a form: in the shortest exact way. */
export function written(value) {
  const plain = String(value ?? "");
  const lattice = `${Math.round(value * 255)}/255`;
  return plain.length > 6 && same(lattice, plain) ? lattice : plain;
}

function shapeOf(schema) {
  const variants = (schema.anyOf ?? [schema]).filter(({type}) => type !== "null");
  const [{type, pattern, minimum: min, maximum: max}, other] = variants;
  const choices = variants.flatMap((one) => one.enum ?? ("const" in one ? [one.const] : []));
  return {type, pattern, min, max, choices, pair: Boolean(other), optional: schema.default === undefined || schema.default === null};
}

/** Whether a schema is that of a class, which has an index or a name. */
export const isClass = (schema) => shapeOf(schema).pair && shapeOf(schema).type === "integer";

/** Whether it is a switch that is on: hardly anyone turns it off. */
export const isUsual = ({type, default: preset}) => type === "boolean" && preset;

/**
 * A field: `text()` is what to send, empty where the service shall choose; `on_counts` shows what is wrong, or with "" that
 * nothing is; `fits` hears of the norm. `about` has the model's `classes`, the id of their `list` and `placeholder`s.
 */
export function field(name, schema, given, about) {
  const shape = shapeOf(schema);
  const id = `field-${name}`;
  const preset = shape.pair ? written(schema.default) : String(schema.default ?? "");
  const {group, control, input, text, fits} = widget(schema, shape)(
    {id, name, "aria-describedby": `${id}-hint ${id}-wrong`, placeholder: about.placeholder[name] ?? (shape.optional && "unset")},
    shape,
    given ?? preset,
    about,
  );
  const wrong = h("span.wrong", {id: `${id}-wrong`});
  const bounds = shape.max < 1e9 && shape.min !== undefined && !shape.pair && ` ${count(shape.min)} to ${count(shape.max)}.`;
  const usual = preset.length > 6 && preset > 0 ? number(Number(preset), 4) : norm(preset);
  const label = [words(name), preset && h("small", {}, "default ", usual)];
  const element = h(
    `${group ? "fieldset" : "div"}.field`,
    {oninput: () => check()},
    group ? h("legend", {}, label) : h("label", {for: id}, label),
    control,
    h("span.hint", {id: `${id}-hint`}, prose(schema.description), bounds),
    wrong,
  );
  const tell = (message) => {
    fill(wrong, message);
    input().setAttribute("aria-invalid", message !== "");
  };
  const check = () => {
    element.classList.toggle("changed", !same(text(), preset));
    tell(input().validationMessage);
    return input().validity.valid;
  };
  check();
  return {name, element, preset, text, tell, check, fits, input};
}

function widget(schema, {type, choices, pair}) {
  if (type === "boolean") return toggle;
  if (choices.length) return choices.join("").length > WIDE ? select : segments;
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

/** The same as radio buttons that look like one control. */
export function radios(attributes, pairs, chosen) {
  const one = ([value, label]) =>
    h("label", {}, h("input", {...attributes, type: "radio", value, checked: value === chosen}), h("span", {}, label));
  return h("div.segments", {}, pairs.map(one));
}

function classes(attributes, _, given, {classes: names, list}) {
  const value = names[given] === undefined ? given : named(names[given], given);
  const input = h("input", {...attributes, list, autocomplete: "off", value});
  return {...plain(input), text: () => classIn(input.value.trim(), names)};
}

/** The index of the one class that a text means, or the text: the service will say what is wrong with it. */
function classIn(text, names) {
  const meant = [...names.keys()].filter((i) => [names[i], named(names[i], i)].some((one) => one.toLowerCase() === text.toLowerCase()));
  return meant.length === 1 ? String(meant[0]) : text;
}

function numeric(attributes, {type, min, max, optional}, value) {
  const step = type === "integer" ? 1 : "any";
  // An earlier job's value may come as a fraction, which such an input does not take.
  const given = value.includes("/") ? parsed(value) : value;
  return plain(h("input", {...attributes, type: "number", min, max, step, required: !optional, value: given}));
}

/** Words in a form of their own, or a list of them with commas between. */
function textual(attributes, {type, pattern, optional}, value) {
  const required = !optional && type === "string";
  return plain(h("input", {...attributes, autocomplete: "off", spellcheck: "false", pattern, required, value}));
}

/** A number or a fraction; in L∞, where people think in steps of 8-bit colours, with a slider of those. */
function distance(attributes, {optional}, value) {
  const text = h("input", {...attributes, autocomplete: "off", required: !optional, value});
  const slider = h("input", {type: "range", max: WIDEST, "aria-label": `${words(attributes.name)} in 255ths`});
  const follow = () => {
    const size = parsed(text.value);
    slider.value = 255 * size || 0;
    slider.setAttribute("aria-valuetext", text.value || "unset");
    text.setCustomValidity(!text.value || (size >= 0 && size < Infinity) ? "" : "Write a number or a fraction such as 8/255.");
  };
  slider.addEventListener("input", () => ((text.value = `${slider.value}/255`), follow()));
  text.addEventListener("input", follow);
  follow();
  return {...plain(text), control: h("div.distance", {}, slider, text), fits: (name) => (slider.hidden = name !== "linf")};
}
