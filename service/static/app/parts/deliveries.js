// Who was told of a job's end, and how that went; followed while somebody is still to be told.

import {address, get, post} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, between, count, moment, seconds, words} from "../format.js";
import {failure} from "./states.js";

const LOOK_SECONDS = 3;
const PATH = "/v1/webhooks/deliveries";
const KEPT = 20;
const LOOKS = {delivered: "succeeded", pending: "queued", failed: "failed"};
const HEADS = ["Told to", "State", "Attempts", "Last answer", "Next attempt", ""];

/** A card with a row for each receiver; nothing where there is none. */
export function deliveries(job, signal) {
  const place = h("div.place", {});
  const rows = new Map();
  const said = h("p.unseen", {role: "status"});
  const trouble = h("div", {});
  const body = h("tbody", {});
  const caption = h("caption.unseen", {}, "Who was told of this job's end");
  const heads = h("thead", {}, h("tr", {}, HEADS.map((name) => (name ? h("th", {scope: "col"}, name) : h("td", {})))));
  const card = h("section.card.told", {}, h("h2", {}, "Webhooks"), said, trouble, h("div.scroll", {}, h("table", {}, caption, heads, body)));
  let [asking, turn] = [0, 0];
  look();
  return place;

  async function look() {
    clearTimeout(asking);
    const mine = ++turn;
    const items = document.hidden ? null : await ask();
    if (mine !== turn) return; // another has been asked for since
    for (const one of items ?? []) show(one);
    if (rows.size && !place.firstChild) fill(place, card);
    const waits = items === null || items.some((one) => one.status === "pending");
    if (waits && !signal.aborted) asking = setTimeout(look, 1000 * LOOK_SECONDS);
  }

  /** Null where the service does not answer at the moment; nothing where it will not tell, or the reader gives no key. */
  async function ask() {
    try {
      return (await get(address(PATH, {job: job.id}), {signal})).items;
    } catch ({name, status = 0}) {
      return name === "AbortError" || (status && status < 500) ? [] : null;
    }
  }

  function show(delivery) {
    if (!rows.has(delivery.id)) {
      const row = new Row(delivery, () => replay(delivery.id));
      rows.set(delivery.id, row);
      body.append(row.element);
    }
    rows.get(delivery.id).show(delivery);
  }

  async function replay(id) {
    fill(trouble);
    try {
      show(await post(`${PATH}/${id}/replay`));
      said.textContent = "It is being sent again.";
    } catch (error) {
      fill(trouble, failure(error));
    }
    await look();
  }
}

/** A row whose button stays while what is told beside it changes. */
class Row {
  constructor({url}, onclick) {
    this.cells = HEADS.slice(1, -1).map(() => h("td", {}));
    const button = h("button", {type: "button", onclick, "aria-label": `Send again to ${url}`}, "Send again");
    this.element = h("tr", {}, h("th", {scope: "row"}, url), this.cells, h("td", {}, button));
  }

  show({status, attempts, next_attempt_at: next}) {
    const badge = h("span.badge", {data: {status: LOOKS[status]}}, status);
    const tried = attempts.length < KEPT ? count(attempts.length) : `${KEPT} or more`;
    const told = [badge, tried, answer(attempts.at(-1)), next && h("time", {datetime: next, title: moment(next)}, ahead(next))];
    told.forEach((one, place) => fill(this.cells[place], one ?? "–"));
  }
}

function answer(attempt) {
  if (!attempt) return null;
  const {status, error, ms, at} = attempt;
  const what = [status, error && words(error).toLowerCase()].filter(Boolean).join(", ");
  return [what, h("span.hint", {title: moment(at)}, ` after ${seconds(ms / 1000)}, ${ago(at)}`)];
}

function ahead(time) {
  const left = between(Date.now(), time);
  return left > 0.5 ? `in ${seconds(left)}` : "now";
}
