// Asking for an API key, once, however many requests are waiting for it.

import {h} from "./dom.js";

let asking = null;
let declined = -Infinity; // when the reader last gave no key

/** Resolves once a key was given; rejects where the reader gave up, be it after the request was sent that needs one. */
export async function signIn(reason, key, sent, signal) {
  if (sent < declined) throw noKey();
  asking ??= ask(reason, key).finally(() => (asking = null));
  return Promise.race([asking, aborted(signal)]);
}

const noKey = () => new DOMException("no key", "AbortError");

function aborted(signal) {
  return new Promise((_, reject) =>
    signal?.addEventListener("abort", () => reject(new DOMException("left", "AbortError")), {once: true}),
  );
}

function ask(reason, key) {
  return new Promise((resolve, reject) => {
    const refused = key.get() !== null;
    key.drop();
    const input = h("input", {type: "password", name: "key", required: true, autocomplete: "off", spellcheck: "false"});
    const dialog = h(
      "dialog.sheet",
      {"aria-labelledby": "signin-title"},
      h(
        "form",
        {method: "dialog", onsubmit: () => key.set(input.value.trim())},
        h("h2#signin-title", {}, "Sign in"),
        h("p", {}, refused ? "The service refused that key. " : "This service needs an API key. ", reason),
        h("label.field", {}, h("span", {}, "API key"), input),
        h("p.hint", {}, "It is kept in this tab only, until you sign out or close it."),
        h("div.row.end", {}, h("button.primary", {type: "submit"}, "Sign in")),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      document.dispatchEvent(new Event("signed-in"));
      if (key.get() !== null) return resolve();
      declined = performance.now();
      reject(noKey());
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
