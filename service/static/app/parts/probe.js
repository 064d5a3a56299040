// The probe: what was measured when a model was loaded or registered.

import {bytes, moment, number, seconds, words} from "../format.js";
import {definitionList} from "./jobFacts.js";

export const probeFacts = (probe) => definitionList(Object.entries(probe).map(quantity));

const NAMES = {
  torch: "PyTorch",
  load_seconds: "Time to load",
  bytes: "Weights in memory",
  rows: "Rows per pass",
  gradient_rate: "Gradients, full batches",
  single_rate: "Gradients, one by one",
  forward_rate: "Forward passes of noisy copies",
  batch_invariant: "Batch invariant",
  forward_ms: "Forward pass per row",
  gradient_ms: "Gradient per row",
  row_bytes: "Memory per row",
  gradient_error: "Gradient error",
  gradient_tolerance: "Gradient tolerance",
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
