// The models that can be tried, a card each.

import {all} from "../api.js";
import {fill, h} from "../dom.js";
import {compact, count} from "../format.js";
import {accuracies} from "../parts/accuracy.js";
import {empty, loading} from "../parts/states.js";
import {restate, to} from "../routes.js";

export const title = (route) => (route.query.has("new") ? "Register a model" : "Models");

export async function show(root, route, signal) {
  if (route.query.has("new")) return (await import("./register.js")).show(root, signal);
  let models = [];
  const told = h("span.hint", {role: "status"}, loading("Asking for them"));
  const input = h("input", {type: "search", value: route.query.get("q") ?? "", oninput: sift});
  const cards = h("div.shelf");
  const none = empty("No model fits", "Try a part of its name, or a class that it should know.");
  const filter = h("label.field.sieve", {}, h("span", {}, "Filter by name, architecture, licence or class"), input);
  none.hidden = true;
  fill(root, h("div.head", {}, h("h1", {}, "Models"), told, h("a.button", {href: "#/models?new"}, "Register one")), filter, cards, none);
  models = await all("/v1/models", signal);
  fill(cards, models.map(cardOf));
  sift();

  function sift() {
    const wanted = input.value.trim().toLowerCase();
    const fits = ({id, architecture, licence, classes}) =>
      [id, architecture, licence, ...classes].some((text) => text.toLowerCase().includes(wanted));
    models.forEach((model, i) => (cards.children[i].hidden = !fits(model)));
    const left = models.filter(fits).length;
    none.hidden = left > 0;
    told.textContent = `${left} of ${models.length}`;
    restate("models", null, {q: wanted});
  }
}

function cardOf(model) {
  const {channels, height, width} = model.input;
  const workers = model.resident.length;
  const traits = [
    [`${width} × ${height}`, channels === 1 ? "grey" : "colour"],
    [count(model.classes.length), "classes"],
    [compact(model.parameters), "parameters"],
  ];
  return h(
    "article.card",
    {},
    h("h2", {}, h("a", {href: to("models", model.id)}, model.id)),
    h("span.soft", {}, model.architecture),
    h("ul.row.traits", {}, traits.map(([value, name]) => h("li", {}, h("strong", {}, value), " ", name))),
    accuracies(model),
    h("p.hint", {}, "Licence: ", model.licence),
    h(
      "div.row",
      {},
      h("a.button", {href: to("new", null, {model: model.id}), "aria-label": `Attack this model, ${model.id}`}, "Attack this model"),
      h("span.hint", {}, workers ? `Loaded on ${workers} ${workers > 1 ? "workers" : "worker"}` : "Not loaded"),
    ),
  );
}
