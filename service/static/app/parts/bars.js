// Confidences and votes as horizontal bars, in tables that screen readers can read.

import {h} from "../dom.js";
import {count, percent} from "../format.js";

/** A model's confidences before and after the attack, the highest first; `after` may be missing. */
export function confidenceTable(before, after) {
  const sides = [sideOf("before", before), sideOf("after", after)].filter((side) => side.top.length);
  const classes = new Map(sides.flatMap(({top}) => top.map((one) => [one.label, one.name])));
  const most = (label) => Math.max(...sides.map((side) => side.of.get(label) ?? 0));
  const ordered = [...classes].sort(([a], [b]) => most(b) - most(a));
  return table("The model's confidence by class", ["Class", "Image", "Bar", "Confidence"],
    ordered.map(([label, name]) => h("tbody", {}, sides.map(({key, of, least}, i) => h("tr", {},
      i === 0 && h("th", {scope: "rowgroup", rowspan: sides.length}, name),
      h("td", {}, sides.length > 1 && h("span", {class: key}, key)),
      h("td", {}, bar(key, of.get(label) ?? 0)),
      h("td.number", {}, of.has(label) ? share(of.get(label)) : `< ${share(least)}`))))));
}

function sideOf(key, prediction) {
  const top = prediction?.top ?? [];
  return {key, top, of: new Map(top.map((one) => [one.label, one.confidence])), least: Math.max(0.001, top.at(-1)?.confidence)};
}

const share = (p) => (p < 0.0005 ? "< 0.1 %" : percent(p));

/** Votes `[{label, count}]` out of n, with the names of the model's classes if they are known. */
export function voteTable(counts, n, classes) {
  return table(`Votes of ${count(n)} noisy copies`, ["Class", "Bar", "Share", "Votes"],
    h("tbody", {}, counts.map((one) => h("tr", {},
      h("th", {scope: "row"}, classes?.[one.label] ?? `Class ${one.label}`),
      h("td", {}, bar("before", one.count / n)),
      h("td.number", {}, share(one.count / n)),
      h("td.number.soft", {}, count(one.count))))));
}

const table = (caption, columns, rows) => h("table.bars", {},
  h("caption.unseen", {}, caption),
  h("thead.unseen", {}, h("tr", {}, columns.map((name) => h("th", {scope: "col"}, name)))),
  rows);

const bar = (key, part) => h("div.bar", {class: key, style: {width: `${100 * part}%`}});
