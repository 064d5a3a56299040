// The HTTP API, as any other client uses it. Files come through `fetch`, too, since an <img> cannot carry a key.

import {signIn} from "./signin.js";

const KEY = "touchstone-key";

/** What the service answered instead of what was asked for: an RFC 9457 problem. */
export class Problem extends Error {
  constructor(status, members) {
    super(members.detail || members.title || `HTTP ${status}`);
    this.status = status;
    this.code = members.code ?? "unknown";
    this.field = members.field ?? null;
    this.errors = members.errors ?? [];
    this.members = members;
    this.requestId = null;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  drop: () => sessionStorage.removeItem(KEY),
};

/** Send a request; raises `Problem`. Where a key is needed and missing or wrong, asks for one and tries again. */
export async function send(path, options = {}) {
  for (;;) {
    const [known, since] = [key.get(), performance.now()];
    const response = await attempt(path, known, options);
    if (response.ok || response.status === 304) return response;
    const problem = await problemOf(response);
    if (problem.status !== 401) throw problem;
    options.signal?.throwIfAborted();
    // An answer may come after the reader has signed in; it says nothing of the key that was given since.
    if ([null, known].includes(key.get())) await signIn(problem.message, key, since, options.signal);
  }
}

async function attempt(path, known, {headers = {}, ...options}) {
  try {
    return await fetch(path, {...options, headers: {...headers, ...(known && {Authorization: `Bearer ${known}`})}});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, {code: "unreachable", detail: "The service does not answer. Is it running?"});
  }
}

async function problemOf(response) {
  let members = {};
  try {
    members = await response.json();
  } catch {
    // A proxy in between may answer with anything.
  }
  const problem = new Problem(response.status, members);
  problem.requestId = response.headers.get("X-Request-Id");
  return problem;
}

export async function get(path, options = {}) {
  return (await send(path, options)).json();
}

export async function post(path, body = null, options = {}) {
  const json = body !== null && !(body instanceof FormData);
  const headers = {...options.headers, ...(json && {"Content-Type": "application/json"})};
  const sent = await send(path, {...options, method: "POST", headers, body: json ? JSON.stringify(body) : body});
  return sent.json();
}

/** An Idempotency-Key that nobody else has: what is sent twice with it is done once. */
export const freshKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** `/v1/jobs` with parameters; those that are null or empty are left out. */
export function address(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return kept.length ? `${path}?${new URLSearchParams(kept)}` : path;
}

/** A file of the service as an address for <img> or a download, given up when the page is left. */
export async function file(path, signal) {
  const blob = await (await send(path, {signal})).blob();
  const url = URL.createObjectURL(blob);
  signal?.addEventListener("abort", () => URL.revokeObjectURL(url), {once: true});
  return url;
}

const remembered = new Map();

/** A list that hardly changes (methods, models), asked for once. */
export function once(path) {
  if (!remembered.has(path)) {
    const asked = all(path);
    asked.catch(() => remembered.delete(path));
    remembered.set(path, asked);
  }
  return remembered.get(path);
}

/** Ask for such a list again when it is wanted next. */
export const forget = (path) => remembered.delete(path);

/** Every item of a list, page by page. */
export async function all(path, signal) {
  const items = [];
  for (let cursor = null; ; ) {
    const page = await get(address(path, {cursor}), {signal});
    items.push(...page.items);
    cursor = page.cursor;
    if (!cursor) return items;
  }
}
