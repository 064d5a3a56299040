// All models, one card each.

import {getAll} from "../api.js";
import {fill, h} from "../dom.js";
import {compact, count} from "../format.js";
import {accuracies} from "../parts/accuracy.js";
import {empty, loading} from "../parts/placeholders.js";
import {hrefTo, replaceRoute} from "../routes.js";

export const title = (route) => (route.query.has("new") ? "Register a model" : "Models");

export async function show(root, route, signal) {
  if (route.query.has("new")) return (await import("./register.js")).show(root, signal);
  let models = [];
  const shownCount = h("span.hint", {role: "status"}, loading("Loading the models"));
  const input = h("input", {type: "search", value: route.query.get("q") ?? "", oninput: applyFilter});
  const cards = h("div.model-cards");
  const none = empty("No matching models", "Try part of a name, or a class.");
  const filter = h("label.field.model-filter", {}, h("span", {}, "Filter by name, architecture, license or class"), input);
  none.hidden = true;
  fill(root, h("div.head", {}, h("h1", {}, "Models"), shownCount, h("a.button", {href: "#/models?new"}, "Register a model")), filter, cards, none);
  models = await getAll("/v1/models", signal);
  fill(cards, models.map(cardOf));
  applyFilter();

  function applyFilter() {
    const wanted = input.value.trim().toLowerCase();
    const matches = ({id, architecture, licence, classes}) =>
      [id, architecture, licence, ...classes].some((text) => text.toLowerCase().includes(wanted));
    models.forEach((model, i) => (cards.children[i].hidden = !matches(model)));
    const shown = models.filter(matches).length;
    none.hidden = shown > 0;
    shownCount.textContent = `${shown} of ${models.length}`;
    replaceRoute("models", null, {q: wanted});
  }
}

function cardOf(model) {
  const {channels, height, width} = model.input;
  const workers = model.resident.length;
  const traits = [
    [`${width} × ${height}`, channels === 1 ? "gray" : "color"],
    [count(model.classes.length), "classes"],
    [compact(model.parameters), "parameters"],
  ];
  return h(
    "article.card",
    {},
    h("h2", {}, h("a", {href: hrefTo("models", model.id)}, model.id)),
    h("span.soft", {}, model.architecture),
    h("ul.row.traits", {}, traits.map(([value, name]) => h("li", {}, h("strong", {}, value), " ", name))),
    accuracies(model),
    h("p.hint", {}, "License: ", model.licence),
    h(
      "div.row",
      {},
      h("a.button", {href: hrefTo("new", null, {model: model.id}), "aria-label": `Attack this model, ${model.id}`}, "Attack this model"),
      h("span.hint", {}, workers ? `Loaded on ${workers} ${workers > 1 ? "workers" : "worker"}` : "Not loaded"),
    ),
  );
}
