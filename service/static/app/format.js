// Numbers and times as people read them.

const COUNT = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const SHORT = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});

export const count = (n) => COUNT.format(n);
export const compact = (n) => SHORT.format(n);
export const percent = (p, digits = 1) => `${(100 * p).toFixed(p > 0.9995 && p < 1 ? 2 : digits)} %`;

/** A number with so many significant digits, without an exponent where that is short. */
export function number(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  if (x === 0) return "0";
  if (Math.abs(x) >= 1e5) return COUNT.format(x);
  if (Math.abs(x) < 1e-4) return x.toExponential(digits - 1);
  return String(Number(x.toPrecision(digits)));
}

/** A distance on the 8-bit lattice as n/255, where it is one. */
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

/** How long ago, for a table. */
export function ago(time, now = Date.now()) {
  const s = Math.max(0, (now - new Date(time)) / 1000);
  return s < 5 ? "just now" : `${seconds(s < 10 ? Math.round(s) + 0.0001 : s).replace(".0 s", " s")} ago`;
}

/** The moment itself, to the second, where the reader is. */
export const moment = (time) =>
  new Date(time).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});

/** Seconds between two times; the second may be still to come. */
export const between = (from, till) => (new Date(till ?? Date.now()) - new Date(from)) / 1000;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** `step_size` as people write it. */
export const words = (name) => capital(name.replaceAll("_", " "));

const NORMS = {linf: "L∞", l2: "L2", l1: "L1", l0: "L0"};

/** A norm's name in the field's letters. */
export const norm = (name) => NORMS[name] ?? name;
