// A submission as a command line and as a program.

import {key} from "../api.js";
import {fill, h} from "../dom.js";
import {radios} from "./form.js";

const AUTHORIZATION = "Bearer YOUR-KEY";

/** A word of a POSIX shell. */
const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** A file's name for curl, which would read something else into commas and semicolons. */
const upload = (name) => (/[;,"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name);

/** What could pass for a file or have a type behind it is said to be neither. */
const option = ([name, value]) => `${/^[@<"]|;/.test(value) ? "--form-string" : "-F"} ${word(`${name}=${value}`)}`;

function curl(url, name, fields) {
  const signed = key.get() ? [`-H ${word(`Authorization: ${AUTHORIZATION}`)}`] : [];
  return ["curl", ...signed, `-F ${word(`image=@${upload(name)}`)}`, ...fields.map(option), word(url)].join(" \\\n  ");
}

/** JSON's strings are Python's, too. */
function python(url, name, fields) {
  const text = JSON.stringify;
  const data = fields.map(([field, value]) => `${text(field)}: ${text(value)}`).join(", ");
  const signed = key.get() ? `    headers={"Authorization": ${text(AUTHORIZATION)}},\n` : "";
  return `import httpx

response = httpx.post(
    ${text(url)},
    files={"image": open(${text(name)}, "rb")},
    data={${data}},
${signed})
print(response.json())`;
}

const LANGUAGES = {curl, Python: python};

/** The card; `show(path, file name, fields)` says what of. */
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

async function copy(code, told) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    fill(told, "Copied");
  } catch {
    // Without TLS a page may not write to the clipboard; what is selected can be copied by hand.
    getSelection().selectAllChildren(code);
    fill(told, "Selected");
  }
}
