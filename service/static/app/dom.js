// Elements from function calls. Text always becomes text nodes, so no external input is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: `h("button.primary#go", {type: "button", onclick}, "Go")`.
 *
 * Properties that start with `on` become listeners, `class` adds classes, `style` takes an object of CSS properties,
 * `value`, `checked` and the like are set as properties, everything else as attributes. Children are nodes, texts, numbers, or
 * lists of them. Null and false are left out.
 */
export function h(selector, properties, ...children) {
  return build(document.createElement(selector.split(/[.#]/, 1)[0] || "div"), selector, properties, children);
}

/** The same for SVG. */
export function s(selector, properties, ...children) {
  return build(document.createElementNS(SVG, selector.split(/[.#]/, 1)[0]), selector, properties, children);
}

/** Replace all children. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

const AS_PROPERTY = new Set(["value", "checked", "selected", "indeterminate", "files", "disabled", "hidden", "open"]);

function build(element, selector, properties, children) {
  for (const [mark, name] of [...selector.matchAll(/([.#])([\w-]+)/g)].map((m) => [m[1], m[2]])) {
    if (mark === "#") element.id = name;
    else element.classList.add(name);
  }
  // The value of a select can only be set once its options exist.
  element.append(...nodes(children));
  for (const [name, value] of Object.entries(properties ?? {})) set(element, name, value);
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "class") element.classList.add(...String(value).split(" ").filter(Boolean));
  else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (AS_PROPERTY.has(name) && name in element) element[name] = value;
  else if (value !== false) element.setAttribute(name, value === true ? "" : value);
}

function nodes(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}
