// The sign-in dialog, opened once for all requests that wait for an API key.

import {h} from "./dom.js";

let dialogOpen = null;
let declinedAt = -Infinity; // when the user last dismissed the dialog

/** Resolves when a key was entered; rejects if the user dismissed the dialog after the request was sent. */
export async function signIn(reason, key, sentAt, signal) {
  if (sentAt < declinedAt) throw noKey();
  dialogOpen ??= openDialog(reason, key).finally(() => (dialogOpen = null));
  return Promise.race([dialogOpen, rejectOnAbort(signal)]);
}

const noKey = () => new DOMException("no key", "AbortError");

function rejectOnAbort(signal) {
  return new Promise((_, reject) =>
    signal?.addEventListener("abort", () => reject(new DOMException("left", "AbortError")), {once: true}),
  );
}

function openDialog(reason, key) {
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
        h("p.hint", {}, "The key is kept in this tab only, until you sign out or close it."),
        h("div.row.end", {}, h("button.primary", {type: "submit"}, "Sign in")),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      document.dispatchEvent(new Event("signed-in"));
      if (key.get() !== null) return resolve();
      declinedAt = performance.now();
      reject(noKey());
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
