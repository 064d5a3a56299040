// A model's accuracies as bars: solid if this project measured them, hatched if they are cited.

import {h} from "../dom.js";
import {capital, percent} from "../format.js";

/** A bar for each accuracy of a model, with its whole note or only the beginning. */
export const accuracies = (card, whole = false) => h("ul.accuracies", {}, card.accuracy.map((one) => bar(one, whole)));

function bar({data, value, measured, note}, whole) {
  const [, kind, rest] = /^([^:;,]*)[:;,]?\s*([^]*)$/.exec(note);
  return h(
    "li",
    {class: measured ? "" : "cited"},
    h("span", {}, capital(kind) || "Accuracy"),
    h("strong", {}, percent(value)),
    h("span.bar", {"aria-hidden": "true"}, h("i", {style: {width: `${100 * value}%`}})),
    h("span.hint", {}, measured ? "Measured on " : "Cited for ", data, whole && rest && `: ${rest}`),
  );
}
