// What a page shows while it waits, where there is nothing to show, and where something went wrong.

import {h} from "../dom.js";

/** Something is on its way. It appears after a moment only, so that quick answers do not flicker. */
export function loading(text) {
  return h("p.loading", {role: "status"}, text, "…");
}

/** There is nothing here yet, and this is what can be done about it: nodes or texts. */
export function empty(title, ...advice) {
  return h("div.empty", {}, h("h2", {}, title), h("p", {}, ...advice));
}

/** What went wrong, in the service's words, and a way to try again where there is one. */
export function failure(error, retry = null) {
  const known = error.code && error.code !== "unknown";
  return h(
    "div.failure",
    {role: "alert"},
    h("p", {}, h("strong", {}, error.message || String(error))),
    known && h("p.hint", {}, "Code ", h("code", {}, error.code), error.requestId && [", request ", h("code", {}, error.requestId)]),
    retry && h("button", {type: "button", onclick: retry}, "Try again"),
  );
}
