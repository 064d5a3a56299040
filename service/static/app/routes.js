// URLs of the dashboard's pages: `#/jobs/ID?key=value`. Every view can be bookmarked and shared.

import {queryString} from "./format.js";

let lastRead = null; // the hash that was read last

/** The route of the current URL: the page's name, the id behind it, and the query parameters. */
export function currentRoute() {
  lastRead = location.hash;
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return {name: name || "new", id: rest[0] ?? null, query: new URLSearchParams(query)};
}

/** The URL of a page. */
export function hrefTo(name, id = null, query = {}) {
  return `#/${name}${id === null ? "" : `/${encodeURIComponent(id)}`}${queryString(query)}`;
}

/** Go to a page. */
export function goTo(...target) {
  location.hash = hrefTo(...target);
}

/** Replace the URL without a history entry; does nothing once the user has followed a link. */
export function replaceRoute(...target) {
  if (location.hash !== lastRead) return;
  history.replaceState(null, "", hrefTo(...target));
  lastRead = location.hash;
}
