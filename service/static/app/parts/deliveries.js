// The webhook deliveries of a job, polled while any of them is pending.

import {withQuery, get, post} from "../api.js";
import {fill, h} from "../dom.js";
import {ago, between, count, moment, seconds, words} from "../format.js";
import {failure} from "./placeholders.js";

const POLL_SECONDS = 3;
const PATH = "/v1/webhooks/deliveries";
const MAX_ATTEMPTS = 20;
const BADGES = {delivered: "succeeded", pending: "queued", failed: "failed"};
const HEADS = ["Endpoint", "Status", "Attempts", "Last response", "Next attempt", ""];

/** A card with a row for each delivery; empty if there is none. */
export function deliveries(job, signal) {
  const holder = h("div.holder", {});
  const rows = new Map();
  const announcement = h("p.unseen", {role: "status"});
  const alert = h("div", {});
  const body = h("tbody", {});
  const caption = h("caption.unseen", {}, "Webhook deliveries of this job");
  const heads = h("thead", {}, h("tr", {}, HEADS.map((name) => (name ? h("th", {scope: "col"}, name) : h("td", {})))));
  const card = h("section.card.webhooks", {}, h("h2", {}, "Webhooks"), announcement, alert, h("div.scroll", {}, h("table", {}, caption, heads, body)));
  let [timer, latest] = [0, 0];
  refresh();
  return holder;

  async function refresh() {
    clearTimeout(timer);
    const request = ++latest;
    const items = document.hidden ? null : await fetchDeliveries();
    if (request !== latest) return; // a newer request was sent meanwhile
    for (const one of items ?? []) show(one);
    if (rows.size && !holder.firstChild) fill(holder, card);
    const pending = items === null || items.some((one) => one.status === "pending");
    if (pending && !signal.aborted) timer = setTimeout(refresh, 1000 * POLL_SECONDS);
  }

  /** The deliveries: null if the service is unavailable, none if it refuses or the user dismisses the sign-in. */
  async function fetchDeliveries() {
    try {
      return (await get(withQuery(PATH, {job: job.id}), {signal})).items;
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
    fill(alert);
    try {
      show(await post(`${PATH}/${id}/replay`));
      announcement.textContent = "The delivery is being sent again.";
    } catch (error) {
      fill(alert, failure(error));
    }
    await refresh();
  }
}

/** A row whose button stays in place while its cells change. */
class Row {
  constructor({url}, onclick) {
    this.cells = HEADS.slice(1, -1).map(() => h("td", {}));
    const button = h("button", {type: "button", onclick, "aria-label": `Send again to ${url}`}, "Send again");
    this.element = h("tr", {}, h("th", {scope: "row"}, url), this.cells, h("td", {}, button));
  }

  show({status, attempts, next_attempt_at: next}) {
    const badge = h("span.badge", {data: {status: BADGES[status]}}, status);
    const attempted = attempts.length < MAX_ATTEMPTS ? count(attempts.length) : `${MAX_ATTEMPTS} or more`;
    const cells = [badge, attempted, formatResponse(attempts.at(-1)), next && h("time", {datetime: next, title: moment(next)}, untilNext(next))];
    cells.forEach((one, index) => fill(this.cells[index], one ?? "–"));
  }
}

function formatResponse(attempt) {
  if (!attempt) return null;
  const {status, error, ms, at} = attempt;
  const what = [status, error && words(error).toLowerCase()].filter(Boolean).join(", ");
  return [what, h("span.hint", {title: moment(at)}, ` after ${seconds(ms / 1000)}, ${ago(at)}`)];
}

function untilNext(time) {
  const left = between(Date.now(), time);
  return left > 0.5 ? `in ${seconds(left)}` : "now";
}
