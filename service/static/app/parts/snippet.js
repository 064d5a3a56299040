// A submission as a curl command and as a Python program.

import {key} from "../api.js";
import {fill, h} from "../dom.js";
import {radios} from "./form.js";

const AUTHORIZATION = "Bearer YOUR-KEY";

/** A word quoted for a POSIX shell. */
const shellQuote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** A file name quoted for curl, which treats commas and semicolons specially. */
const quoteFileName = (name) => (/[;,"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name);

/** A form field; a value that curl would read as a file or as one with a content type needs --form-string. */
const formOption = ([name, value]) => `${/^[@<"]|;/.test(value) ? "--form-string" : "-F"} ${shellQuote(`${name}=${value}`)}`;

function curl(url, name, fields) {
  const authorization = key.get() ? [`-H ${shellQuote(`Authorization: ${AUTHORIZATION}`)}`] : [];
  return ["curl", ...authorization, `-F ${shellQuote(`image=@${quoteFileName(name)}`)}`, ...fields.map(formOption), shellQuote(url)].join(" \\\n  ");
}

/** JSON strings are valid Python strings. */
function python(url, name, fields) {
  const text = JSON.stringify;
  const data = fields.map(([field, value]) => `${text(field)}: ${text(value)}`).join(", ");
  const authorization = key.get() ? `    headers={"Authorization": ${text(AUTHORIZATION)}},\n` : "";
  return `import httpx

response = httpx.post(
    ${text(url)},
    files={"image": open(${text(name)}, "rb")},
    data={${data}},
${authorization})
print(response.json())`;
}

const LANGUAGES = {curl, Python: python};

/** The card; `show(path, file name, fields)` sets the request. */
export function snippet() {
  let request = null;
  const code = h("code");
  const copied = h("span.hint", {role: "status"});
  const tabs = radios({name: "language"}, Object.keys(LANGUAGES).map((name) => [name, name]), "curl");
  const draw = () => {
    fill(code, LANGUAGES[tabs.querySelector(":checked").value](...request));
    fill(copied);
  };
  tabs.addEventListener("change", draw);
  const element = h(
    "section.card.snippet",
    {"aria-label": "The same request as a program"},
    h("div.row", {}, h("h2", {}, "The same request as"), tabs, copied, h("button", {type: "button", onclick: () => copy(code, copied)}, "Copy")),
    h("pre", {tabindex: 0}, code),
  );
  const show = (path, name, fields) => ((request = [location.origin + path, name, Object.entries(fields)]), draw());
  return {element, show};
}

async function copy(code, status) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    fill(status, "Copied");
  } catch {
    // Without TLS a page cannot write to the clipboard; the selection can be copied by hand.
    getSelection().selectAllChildren(code);
    fill(status, "Selected");
  }
}
