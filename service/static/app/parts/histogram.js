// Charts of the operations page: histograms and sparklines.

import {h, s} from "../dom.js";
import {count, number} from "../format.js";

/** A histogram with cumulative buckets, as in Prometheus; `unit` formats a value. */
export function histogram(name, {buckets, sum, count: all}, unit) {
  const sorted = Object.entries(buckets)
    .map(([bound, upTo]) => [Number(bound.replace("+Inf", "Infinity")), upTo])
    .sort(([a], [b]) => a - b);
  const bars = sorted.map(([bound, upTo], i) => {
    const [last, before] = sorted[i - 1] ?? [0, 0];
    return {upTo, n: upTo - before, text: bound < Infinity ? `≤ ${unit(bound)}` : `> ${unit(last)}`};
  });
  const share = (q) => bars.find(({upTo}) => upTo >= q * all).text;
  const summary = all ? `p50 ${share(0.5)}, p90 ${share(0.9)}, mean ${unit(sum / all)}, of ${count(all)}` : "No data yet";
  return h("figure", {}, h("h4", {}, name), h("figcaption.hint", {}, summary), all > 0 && drawBars(name, bars));
}

/** The bars from the first to the last non-empty bucket. */
function drawBars(name, all) {
  const bars = all.slice(all.findIndex(({n}) => n), all.findLastIndex(({n}) => n) + 1);
  const step = 320 / Math.max(bars.length, 5);
  const highest = Math.max(...bars.map(({n}) => n));
  const labels = bars.map(({n, text}) => `${text}: ${count(n)}`);
  const shown = bars.map(({n, text}, i) => [
    s("rect", {x: i * step + 2, y: 90 - (90 * n) / highest, width: step - 4, height: (90 * n) / highest}, s("title", {}, labels[i])),
    (bars.length < 8 || i % 2 === 0) && s("text", {x: (i + 0.5) * step, y: 105}, text.replace("≤ ", "").replace(".0", "")),
  ]);
  return s("svg", {viewBox: "0 0 320 110", role: "img", "aria-label": `${name}. ${labels.join(", ")}`}, shown);
}

/** A line through `[time, value]`, interrupted where points are more than `gap` milliseconds apart. */
export function sparkline(name, points, gap) {
  if (!points.length) return null;
  const [last, now] = points.at(-1);
  const span = Math.max(60_000, last - points[0][0]);
  const highest = Math.max(...points.map(([, value]) => value));
  const path = points.map(([time, value], i) => {
    const mark = i && time - points[i - 1][0] < gap ? "L" : "M";
    return `${mark}${100 - (100 * (last - time)) / span} ${29 - (28 * value) / (highest || 1)}`;
  });
  const label = `${name}: ${number(now)}, at most ${number(highest)} in the last ${Math.ceil(span / 60_000)} min`;
  const properties = {viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label};
  return s("svg", properties, s("title", {}, label), s("path", {d: path.join("")}));
}
