// The probe: what was measured when a model was loaded or registered.

import {h} from "../dom.js";
import {bytes, moment, number, percent, seconds, words} from "../format.js";
import {definitionList} from "./jobFacts.js";

export const probeFacts = ({examples, ...probe}) => definitionList(Object.entries(probe).map(quantity));

/** The accuracy on a model's examples, with what they speak against; null without examples. */
export function exampleAccuracy({examples} = {}) {
  if (!examples) return null;
  const {accuracy, correct, count, warnings} = examples;
  const share = definitionList([["Accuracy", `${percent(accuracy)}, ${correct} of ${count}`]]);
  return [share, warnings.map(({detail}) => h("p.notice", {}, h("strong", {}, "Warning"), `: ${detail}`))];
}

const NAMES = {
  torch: "PyTorch",
  load_seconds: "Time to load",
  bytes: "Weights in memory",
  rows: "Rows per pass",
  gradient_rate: "Gradients, full batches",
  single_rate: "Gradients, one by one",
  forward_rate: "Forward passes of noisy copies",
  batch_invariant: "Batch invariant",
  forward_ms: "Latency per image",
  gradient_ms: "Latency per image with gradient",
  row_bytes: "Memory per image",
  gradient_error: "Gradient check: error",
  gradient_tolerance: "Gradient check: tolerance",
  gradient_agrees: "Gradient check: agrees",
  gradient_not_finite_at: "Gradient not finite at",
};

/** The label of a quantity, and its value with the unit that its name implies. */
function quantity([name, value]) {
  let text = Array.isArray(value) ? value.join(", ") : value ?? "not finite";
  if (typeof value === "boolean") text = value ? "yes" : "no";
  else if (name.endsWith("_at")) text = moment(value);
  else if (name.endsWith("_ms")) text = seconds(value / 1000);
  else if (name.endsWith("seconds")) text = seconds(value);
  else if (name.endsWith("bytes")) text = bytes(value);
  else if (typeof value === "number") text = `${number(value)}${name.endsWith("_rate") ? " per second" : ""}`;
  return [NAMES[name] ?? words(name), text];
}
