// What may be submitted, and with which fields: from the catalogue's cards and the OpenAPI description.

import {get, once} from "../api.js";

const DESCRIPTION = "/openapi.json";
const PREDICTIONS = "/v1/predictions";
let described = null;

/** Every method as `{kind, name, title, path, …its card, properties, own}`; `own` names the method's own fields. */
export async function offers() {
  described ??= get(DESCRIPTION).catch((error) => ((described = null), Promise.reject(error)));
  const [api, ...lists] = await Promise.all([described, once("/v1/attacks"), once("/v1/certificates")]);
  const methods = lists.flat().map((card) => offer(api, `/v1/${card.kind}s/${card.name}`, card));
  return [...methods, prediction(api, methods)];
}

function offer(api, path, card) {
  const {image, model, ...properties} = api.paths[path].post.requestBody.content["multipart/form-data"].schema.properties;
  return {...card, path, properties, own: Object.keys(card.schema?.properties ?? {})};
}

/** A prediction has no card; its own fields are those that no method's submission has in common with it. */
function prediction(api, methods) {
  const {summary, description} = api.paths[PREDICTIONS].post;
  const card = {kind: "prediction", name: "predict", title: summary, description, norms: []};
  const made = offer(api, PREDICTIONS, card);
  const common = new Set(methods.flatMap(({properties, own}) => Object.keys(properties).filter((name) => !own.includes(name))));
  return {...made, own: Object.keys(made.properties).filter((name) => !common.has(name))};
}
