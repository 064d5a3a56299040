// Addresses of the dashboard's pages: `#/jobs/ID?key=value`. Everything a page shows can be bookmarked and sent on.

let read = null; // the address that was read last

/** What the address says: the page's name, the rest of the path, and the parameters. */
export function here() {
  read = location.hash;
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return {name: name || "new", id: rest[0] ?? null, query: new URLSearchParams(query)};
}

/** The address of a page; parameters that are null or empty are left out. */
export function to(name, id = null, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(kept).toString();
  return `#/${name}${id === null ? "" : `/${encodeURIComponent(id)}`}${text ? `?${text}` : ""}`;
}

/** Go to a page. */
export function go(...where) {
  location.hash = to(...where);
}

/** Change the address without leaving the page or adding to the history; not once the reader has followed a link. */
export function restate(...where) {
  if (location.hash !== read) return;
  history.replaceState(null, "", to(...where));
  read = location.hash;
}
