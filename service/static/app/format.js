// Numbers, times and names for display.

const COUNT = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const SHORT = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});

export const count = (n) => COUNT.format(n);
export const compact = (n) => SHORT.format(n);
export const percent = (p, digits = 1) => `${(100 * p).toFixed(p > 0.9995 && p < 1 ? 2 : digits)} %`;

/** A number with this many significant digits, without an exponent where it is short enough. */
export function number(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  if (x === 0) return "0";
  if (Math.abs(x) >= 1e5) return COUNT.format(x);
  if (Math.abs(x) < 1e-4) return x.toExponential(digits - 1);
  return String(Number(x.toPrecision(digits)));
}

/** A distance as a multiple of 1/255, the step of 8-bit images. */
export function in255(x) {
  const n = x * 255;
  return Math.abs(n - Math.round(n)) < 1e-4 ? `${Math.round(n)}/255` : `${number(n, 3)}/255`;
}

export function seconds(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return "–";
  if (s < 0.0995) return `${(1000 * s).toFixed(s < 0.00995 ? 1 : 0)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 119.5) return `${Math.round(s)} s`;
  if (s < 7170) return `${Math.round(s / 60)} min`;
  if (s < 172_000) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} days`;
}

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    n /= 1000;
    if (n < 999.5) return `${n < 9.95 ? n.toFixed(1) : Math.round(n)} ${unit}`;
  }
  return `${Math.round(n)} TB`;
}

/** The age of a time, for a table. */
export function ago(time, now = Date.now()) {
  const s = Math.max(0, (now - new Date(time)) / 1000);
  return s < 5 ? "just now" : `${seconds(s < 10 ? Math.round(s) + 0.0001 : s).replace(".0 s", " s")} ago`;
}

/** A time to the second, in the local time zone. */
export const moment = (time) =>
  new Date(time).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});

/** Seconds between two times; the second defaults to now. */
export const between = (from, till) => (new Date(till ?? Date.now()) - new Date(from)) / 1000;

/** Enough of an id to tell jobs apart. */
export const shortId = (id) => id.slice(0, 8);

/** A query string with its "?"; parameters that are null or empty are left out. */
export function queryString(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => ![null, undefined, ""].includes(value));
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** `step_size` as "Step size". */
export const words = (name) => capital(name.replaceAll("_", " "));

const NORMS = {linf: "L∞", l2: "L2", l1: "L1", l0: "L0", tv: "Total variation", ssim: "Similarity (SSIM)"};

/** The symbol of a norm, or the name of another measure of distance. */
export const norm = (name) => NORMS[name] ?? name;
