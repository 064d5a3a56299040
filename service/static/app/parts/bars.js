// Confidences and votes as horizontal bars, which are tables for who cannot see them.

import {h} from "../dom.js";
import {count, percent} from "../format.js";

/** Both opinions of a model by class, the most telling first; `after` may be missing. */
export function paired(before, after) {
  const sides = [opinion("before", before), opinion("after", after)].filter((side) => side.top.length);
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

function opinion(key, said) {
  const top = said?.top ?? [];
  return {key, top, of: new Map(top.map((one) => [one.label, one.confidence])), least: Math.max(0.001, top.at(-1)?.confidence)};
}

const share = (p) => (p < 0.0005 ? "< 0.1 %" : percent(p));

/** Counts of votes: `[{label, count}]` of n, named by the model's classes where they are known. */
export function votes(counts, n, classes) {
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
