// The methods and their fields, from the catalogue and the OpenAPI document.

import {get, getCached} from "../api.js";

const OPENAPI = "/openapi.json";
const PREDICTIONS = "/v1/predictions";
let openapi = null;

/** Every method as `{kind, name, title, path, …card, properties, own}`; `own` has the names of its own fields. */
export async function loadMethods() {
  openapi ??= get(OPENAPI).catch((error) => ((openapi = null), Promise.reject(error)));
  const [api, ...lists] = await Promise.all([openapi, getCached("/v1/attacks"), getCached("/v1/certificates")]);
  const methods = lists.flat().map((card) => toMethod(api, `/v1/${card.kind}s/${card.name}`, card));
  return [...methods, prediction(api, methods)];
}

function toMethod(api, path, card) {
  const {image, model, ...properties} = api.paths[path].post.requestBody.content["multipart/form-data"].schema.properties;
  return {...card, path, properties, own: Object.keys(card.schema?.properties ?? {})};
}

/** A prediction has no card; its own fields are those that no other method has. */
function prediction(api, methods) {
  const {summary, description} = api.paths[PREDICTIONS].post;
  const card = {kind: "prediction", name: "predict", title: summary, description, norms: []};
  const method = toMethod(api, PREDICTIONS, card);
  const common = new Set(methods.flatMap(({properties, own}) => Object.keys(properties).filter((name) => !own.includes(name))));
  return {...method, own: Object.keys(method.properties).filter((name) => !common.has(name))};
}
