// Registering a model: the file, and what cannot be read from it. The API takes further fields.

import {post} from "../api.js";
import {fill, h} from "../dom.js";
import {failure} from "../parts/placeholders.js";
import {goTo, hrefTo} from "../routes.js";

const NUMBERS = "[\\-0-9., ]*";

export function show(root, signal) {
  const line = (name, label, hint, options = {}) => field(name, label, hint, h("input", {name, autocomplete: "off", ...options}));
  const button = h("button.primary", {}, "Register");
  const alert = h("div", {});
  const form = h("form.card.stack", {onsubmit: submit},
    field("file", "File", "ONNX, safetensors with an architecture, or a zip of an ONNX file and its weights.", h("input", {type: "file", name: "file", required: true})),
    field("data", "Weights in a second file", "If the exporter wrote m.onnx.data beside m.onnx.", h("input", {type: "file", name: "data"})),
    line("id", "Name", "Lowercase letters, digits, dots and dashes.", {required: true, pattern: "[a-z0-9][a-z0-9._\\-]{0,63}", placeholder: "my-net"}),
    field("labels", "Classes", "One per line, in the order of the outputs.", h("textarea", {name: "labels", rows: 5, required: true})),
    line("size", "Input size", "For example 224, or height x width.", {required: true, pattern: "\\d+( *x *\\d+)?", placeholder: "224"}),
    line("resize", "Shorter side before the center crop", "If empty, the whole image is resized.", {inputmode: "numeric", pattern: "\\d*"}),
    line("channels", "Channels", "3, or 1 for gray.", {value: "3", pattern: "[13]"}),
    line("mean", "Mean", "Of pixel values in [0,1], one number per channel.", {pattern: NUMBERS, placeholder: "0.485, 0.456, 0.406"}),
    line("std", "Standard deviation", "Likewise; if both are empty, pixel values are not normalized.", {pattern: NUMBERS, placeholder: "0.229, 0.224, 0.225"}),
    line("architecture", "Architecture", "For safetensors: that of a listed model, or timm/NAME."),
    field("examples", "Examples", "A zip of up to 100 labelled images, in a folder per class or with a metadata.csv: their accuracy shows whether all of this is right.",
      h("input", {type: "file", name: "examples", accept: ".zip"})),
    alert, h("div.row", {}, button, h("a.button", {href: hrefTo("models")}, "Back to the models")));
  fill(root, h("div.head", {}, h("h1", {}, "Register a model")), form);

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    fill(button, "Sending…");
    try {
      const {id, kind} = await post("/v1/models", body(new FormData(form)), {signal});
      goTo(...(kind === "registration" ? ["jobs", id] : ["models", id]));
    } catch (error) {
      if (!signal.aborted) showError(error);
    } finally {
      button.disabled = false;
      fill(button, "Register");
    }
  }

  function showError(error) {
    fill(alert, failure(error));
    const [name] = (error.field ?? "").split(".");
    form.elements[{classes: "labels", input: "size"}[name] ?? name]?.focus();
  }
}

function field(name, label, hint, control) {
  control.id = `field-${name}`;
  control.setAttribute("aria-describedby", `hint-${name}`);
  return h("div.field", {}, h("label", {for: control.id}, label), control, h("span.hint", {id: `hint-${name}`}, hint));
}

/** The request body; empty fields are left out. */
function body(data) {
  const text = (name) => data.get(name).trim();
  const list = (name) => (text(name) ? text(name).split(/[ ,]+/).filter(Boolean).map(Number) : undefined);
  const [height, width = height] = text("size").split("x").map(Number);
  const input = {height, width, channels: Number(text("channels")), resize: Number(text("resize")) || null};
  const manifest = {id: text("id"), input, mean: list("mean"), std: list("std"), architecture: text("architecture") || undefined};
  const sent = new FormData();
  sent.set("manifest", JSON.stringify(manifest));
  sent.set("labels", new Blob([data.get("labels")]));
  sent.set("file", data.get("file"));
  for (const name of ["data", "examples"]) if (data.get(name).size) sent.set(name, data.get(name));
  return sent;
}
