// What a page shows while it loads, when it is empty, and after an error.

import {h} from "../dom.js";

/** A loading message. It appears with a delay, so that fast responses do not flicker. */
export function loading(text) {
  return h("p.loading", {role: "status"}, text, "…");
}

/** An empty state with advice: nodes or texts. */
export function empty(title, ...advice) {
  return h("div.empty", {}, h("h2", {}, title), h("p", {}, ...advice));
}

/** An error of the service, with a button to try again if there is a `retry`. */
export function failure(error, retry = null) {
  const hasCode = error.code && error.code !== "unknown";
  return h(
    "div.failure",
    {role: "alert"},
    h("p", {}, h("strong", {}, error.message || String(error))),
    hasCode && h("p.hint", {}, "Code ", h("code", {}, error.code), error.requestId && [", request ", h("code", {}, error.requestId)]),
    retry && h("button", {type: "button", onclick: retry}, "Try again"),
  );
}
