// A client of the HTTP API. Files are fetched as well, since an <img> cannot send an API key.

import {queryString} from "./format.js";
import {signIn} from "./signin.js";

const KEY = "touchstone-key";

/** An RFC 9457 problem that the service responded with. */
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

/** Send a request; throws `Problem`. After a 401, asks the user for a key and tries again. */
export async function send(path, options = {}) {
  for (;;) {
    const [sentKey, since] = [key.get(), performance.now()];
    const response = await attempt(path, sentKey, options);
    if (response.ok || response.status === 304) return response;
    const problem = await problemOf(response);
    if (problem.status !== 401) throw problem;
    options.signal?.throwIfAborted();
    // A late 401 says nothing about a key that was entered after the request was sent.
    if ([null, sentKey].includes(key.get())) await signIn(problem.message, key, since, options.signal);
  }
}

async function attempt(path, sentKey, {headers = {}, ...options}) {
  try {
    return await fetch(path, {...options, headers: {...headers, ...(sentKey && {Authorization: `Bearer ${sentKey}`})}});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, {code: "unreachable", detail: "The service does not respond. Is it running?"});
  }
}

async function problemOf(response) {
  let members = {};
  try {
    members = await response.json();
  } catch {
    // A proxy may respond with something other than JSON.
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

/** A random Idempotency-Key: a request that is sent twice with it takes effect once. */
export const freshKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

export const withQuery = (path, query) => path + queryString(query);

/** A file of the service as an object URL for <img> or a download, revoked when the page is left. */
export async function objectUrl(path, signal) {
  const blob = await (await send(path, {signal})).blob();
  const url = URL.createObjectURL(blob);
  signal?.addEventListener("abort", () => URL.revokeObjectURL(url), {once: true});
  return url;
}

const cache = new Map();

/** A list that rarely changes (methods, models), fetched once. */
export function getCached(path) {
  if (!cache.has(path)) {
    const promise = getAll(path);
    promise.catch(() => cache.delete(path));
    cache.set(path, promise);
  }
  return cache.get(path);
}

/** Fetch such a list again when it is needed next. */
export const invalidate = (path) => cache.delete(path);

/** All items of a list, fetched page by page. */
export async function getAll(path, signal) {
  const items = [];
  for (let cursor = null; ; ) {
    const page = await get(withQuery(path, {cursor}), {signal});
    items.push(...page.items);
    cursor = page.cursor;
    if (!cursor) return items;
  }
}
