// Live charts of a job's metrics: lines over steps, and a confidence interval over samples.

import {fill, h, s} from "../dom.js";
import {compact, count, number, percent, words} from "../format.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 12, 10, 32];
const TITLES = {confidence: "Confidence in the predicted class", interval: "Bounds on the probability of the class"};

/** The card of a job's metrics: call `add(progress, metric)` for each event; hidden until there are two. */
export function metricsCard(job) {
  const points = [];
  const charts = new Map();
  const element = h("section.card", {hidden: true}, h("h2", {}, "Metrics"));
  const show = (name, height, draw) => {
    if (charts.has(name)) return charts.get(name)();
    const {svg, paint} = chart(height, (width) => draw(points, name, width, height, job));
    charts.set(name, paint);
    element.append(h("h3", {}, titleOf(name)), svg);
  };
  const add = (progress, metric) => {
    points.push({...metric, ...progress});
    if (points.length < 2 || (metric.n && metric.n === points[0].n)) return;
    element.hidden = false;
    if ("lower" in metric) show("interval", 260, interval);
    else for (const name of Object.keys(metric)) show(name, 120, trend);
  };
  return {element, add, clear: () => points.splice(0)};
}

const titleOf = (name) => TITLES[name] ?? words(name);

/** A chart of the width of its parent, redrawn at most once a frame: `draw(width)` returns its nodes and its label. */
function chart(height, draw) {
  const svg = s("svg.chart", {role: "img", height});
  let due = null;
  const paint = () => (due ??= requestAnimationFrame(() => {
    due = null;
    if (!svg.clientWidth) return;
    const {nodes, label} = draw(svg.clientWidth);
    svg.setAttribute("aria-label", label);
    fill(svg, nodes);
  }));
  new ResizeObserver(paint).observe(svg);
  return {svg, paint};
}

/** The axes, and the functions that map values to coordinates. */
function axes({x, y, width, height, format, name, log = false}) {
  const scale = log ? Math.log : Number;
  const part = (v, [low, high]) => (v - low) / (high - low || 1);
  const px = (v) => LEFT + (width - LEFT - RIGHT) * part(scale(v), x.map(scale));
  const py = (v) => height - BOTTOM - (height - BOTTOM - TOP) * part(v, y);
  const below = log ? decades(x) : ticks(x, width / 80).filter(Number.isInteger);
  const nodes = [
    ticks(y, height / 40).map((v) => [line("rule", width, py(v)), s("text", {x: LEFT - 7, y: py(v) + 4}, format(v))]),
    below.map((v) => s("text.below", {x: px(v), y: height - BOTTOM + 15}, compact(v))),
    s("text", {x: width - RIGHT, y: height - 2}, name),
  ];
  return {nodes, px, py};
}

const line = (kind, width, y) => s("line", {class: kind, x1: LEFT, x2: width - RIGHT, y1: y, y2: y});

function ticks([low, high], most) {
  const rough = (high - low) / Math.max(2, most) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((one) => one * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, i) => (first + i) * step + 0);
}

function decades([low, high]) {
  const steps = high / low > 50 ? [1] : [1, 2, 3, 5];
  return [1, 2, 3, 4, 5, 6].flatMap((i) => steps.map((step) => step * 10 ** i)).filter((v) => v >= low && v <= high);
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function trend(points, name, width, height) {
  const seen = points.filter((point) => Number.isFinite(point[name]));
  const [first, last] = [seen[0], seen.at(-1)];
  const share = name === "confidence";
  const y = share ? [0, 1] : spread(seen.map((point) => point[name]));
  const format = share ? (v) => percent(v, 0) : (v) => number(v);
  const {nodes, px, py} = axes({x: [0, last.total || last.done], y, width, height, format, name: "step"});
  nodes.push(s("path.line", {d: path(seen.map((point) => [px(point.done), py(point[name])]))}));
  nodes.push(s("circle", {cx: px(last.done), cy: py(last[name]), r: 3.5}));
  return {nodes, label: `${titleOf(name)}: ${format(first[name])} at step ${first.done}, ${format(last[name])} at step ${last.done}`};
}

function spread(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.06 * (high - low || Math.abs(high) || 1);
  return [low - margin, high + margin];
}

function interval(points, _, width, height, job) {
  const seen = points.filter((point) => point.n > 0);
  const last = seen.at(-1);
  const y = [Math.min(0.45, ...seen.map((point) => point.lower)), 1];
  const {nodes, px, py} = axes({x: [seen[0].n, last.n], y, width, height, log: true, format: (v) => percent(v, 0), name: "samples (log)"});
  const curve = (key) => seen.map((point) => [px(point.n), py(key(point))]);
  nodes.push(s("path.band", {d: `${path([...curve((p) => p.upper), ...curve((p) => p.lower).reverse()])}Z`}));
  nodes.push(s("path.line", {d: path(curve((p) => p.hits / p.n))}));
  for (const [p, name] of [[0.5, "1/2"], [neededProbability(job.parameters), "needed for the target"]]) {
    if (p) nodes.push(line("mark", width, py(p)), s("text.marked", {x: width - RIGHT - 4, y: py(p) - 5}, name));
  }
  const bounds = `between ${percent(last.lower)} and ${percent(last.upper)}`;
  return {nodes, label: `After ${count(last.n)} samples, ${percent(last.hits / last.n)} of them hits, the probability lies ${bounds}`};
}

/** The class probability that certifies the requested radius under Gaussian noise: Φ(r/σ). */
export const neededProbability = ({target_radius: radius, sigma}) => (radius && sigma ? normal(radius / sigma) : null);

/** The standard normal distribution function, by Simpson's rule: accurate to more digits than are shown. */
export function normal(z) {
  const n = 200;
  const end = Math.min(8, Math.abs(z));
  const weight = (i) => (i === 0 || i === n ? 1 : i % 2 ? 4 : 2);
  let sum = 0;
  for (let i = 0; i <= n; i++) sum += weight(i) * Math.exp(-(((i * end) / n) ** 2) / 2);
  return 0.5 + (Math.sign(z) * sum * end) / (3 * n) / Math.sqrt(2 * Math.PI);
}
