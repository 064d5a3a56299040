// What loading or registering a model measured.

import {bytes, moment, number, seconds, words} from "../format.js";
import {facts} from "./facts.js";

export const measured = (probe) => facts(Object.entries(probe).map(quantity));

const NAMES = {
  torch: "PyTorch",
  load_seconds: "Time to load",
  bytes: "Weights in memory",
  rows: "Rows of a pass",
  gradient_rate: "Gradients, full passes",
  single_rate: "Gradients, one by one",
  forward_rate: "Noisy copies",
  batch_invariant: "Same in any batch",
  forward_ms: "A row",
  gradient_ms: "A row with its gradient",
  row_bytes: "Memory of a row",
  gradient_error: "Gradient's error",
  gradient_tolerance: "Error that is allowed",
};

/** A figure's name, and its value with the unit that the name tells. */
function quantity([name, value]) {
  let text = value ?? "not finite";
  if (typeof value === "boolean") text = value ? "yes" : "no";
  else if (name.endsWith("_at")) text = moment(value);
  else if (name.endsWith("_ms")) text = seconds(value / 1000);
  else if (name.endsWith("seconds")) text = seconds(value);
  else if (name.endsWith("bytes")) text = bytes(value);
  else if (typeof value === "number") text = `${number(value)}${name.endsWith("_rate") ? " a second" : ""}`;
  return [NAMES[name] ?? words(name), text];
}
