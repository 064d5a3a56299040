// The list of jobs, newest first: live, filtered, paged, with bulk actions.

import {get, post, send, withQuery} from "../api.js";
import {fill, h} from "../dom.js";
import {count} from "../format.js";
import {controls, matches, read, toQuery} from "../parts/filters.js";
import {isOver} from "../parts/badges.js";
import {Rows} from "../parts/rows.js";
import {empty, failure, loading} from "../parts/placeholders.js";
import {hrefTo} from "../routes.js";
import {follow} from "../stream.js";

const PAGE_SIZE = 50;
const MAX_PARALLEL = 6;
const MAX_UNSEEN = 1000;
const [THROTTLE_MS, STILL_MS, TICK_MS] = [1000, 1500, 10_000];
const KEYS = [["j", "next row"], ["k", "previous row"], ["x", "select"], ["Shift", "+ click: select a range"], ["Enter", "open"]];

/** For a page's cursor: the cursor of the page before, and the start time that the cursor is bound to. */
const pages = new Map();

export const title = () => "Jobs";

export async function show(root, route, signal) {
  const list = new List(read(route.query), route.query.get("cursor"), signal);
  fill(root, ...list.view());
  document.addEventListener("keydown", (event) => list.rows.key(event), {signal});
  const timer = setInterval(() => list.tick(), TICK_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  // Events between the response and the start of the stream would be missed, so the list is loaded again then.
  const onState = (text) => text === "live" && list.load();
  follow("/v1/events", (type, data) => list.onEvent(type, data), {signal, onState, ends: false}).catch(() => {});
  list.count();
  await list.load();
}

class List {
  constructor(filters, cursor, signal) {
    Object.assign(this, {filters, cursor, signal, changes: new Map(), progressById: new Map(), unseen: new Set()});
    this.rows = new Rows((selectedJobs) => this.showActions(selectedJobs));
    this.loadSoon = throttle(() => this.load(), signal);
    this.countSoon = throttle(() => this.count(), signal);
  }

  view() {
    this.controls = controls(this.filters, (filters) => this.showPage(null, filters));
    const pageButton = (text, target) => ({target, button: h("button", {disabled: true, onclick: () => this.turnPage(target())}, text)});
    this.pageButtons = [pageButton("Newest", () => (this.cursor ? null : undefined)), pageButton("Newer", () => pages.get(this.cursor)?.before), pageButton("Older", () => this.next ?? undefined)];
    this.holder = h("div", {onpointermove: () => (this.pointedAt = performance.now())});
    this.newJobsButton = h("button.primary", {hidden: true, onclick: () => this.showPage(null)});
    this.bulk = h("div.row", {role: "group", "aria-label": "Selected jobs"});
    this.message = h("span", {role: "status"});
    this.pager = h("nav.row", {"aria-label": "Pages of jobs"}, this.pageButtons.map(({button}) => button));
    const keys = KEYS.map(([key, what]) => [h("kbd", {}, key), ` ${what} `]);
    return [
      h("div.head", {}, h("h1", {}, "Jobs"), h("details", {}, h("summary", {title: "Keys", "aria-label": "Keys"}, "?"), h("span.hint", {}, keys))),
      this.controls,
      h("div.row.bulk-actions", {}, this.bulk, this.message, this.newJobsButton),
      this.holder,
      this.pager,
    ];
  }

  /** Show another page of the list, or the first with other filters, with a history entry. */
  showPage(cursor, filters = this.filters) {
    Object.assign(this, {cursor, filters});
    history.pushState(null, "", hrefTo("jobs", null, {...filters, cursor}));
    this.rows.select(false);
    fill(this.message);
    return this.load();
  }

  get query() {
    const query = toQuery(this.filters);
    return {...query, since: pages.get(this.cursor)?.since ?? query.since};
  }

  async load() {
    const request = this.busy(Symbol());
    if (!this.rows.size) fill(this.holder, loading("Loading the jobs"));
    const {query, cursor} = this;
    try {
      const page = await get(withQuery("/v1/jobs", {...query, limit: PAGE_SIZE, cursor}), {signal: this.signal});
      if (request !== this.loading) return;
      this.busy(null);
      this.fill(page, query);
    } catch (error) {
      if (error.name === "AbortError" || request !== this.loading) return;
      this.busy(null);
      // A cursor of other filters or of another service: show the first page.
      if (error.code === "invalid_cursor" && cursor) return this.showPage(null);
      fill(this.holder, failure(error, () => this.load()));
    }
  }

  busy(request) {
    this.holder.setAttribute("aria-busy", request !== null);
    return (this.loading = request);
  }

  fill({items, cursor}, {since}) {
    if (cursor) pages.set(cursor, {before: this.cursor, since});
    this.next = cursor;
    this.unseen.clear();
    this.rows.setJobs(items);
    this.draw();
    this.flush();
  }

  draw() {
    const {rows, unseen, pager} = this;
    if (!rows.size) fill(this.holder, this.emptyState());
    else if (!rows.element.isConnected) fill(this.holder, h("div.scroll", {}, rows.element));
    this.newJobsButton.hidden = !unseen.size;
    this.newJobsButton.textContent = `${count(unseen.size)}${unseen.size === MAX_UNSEEN ? " or more" : ""} new ${unseen.size === 1 ? "job" : "jobs"}`;
    const focused = pager.contains(document.activeElement);
    for (const {button, target} of this.pageButtons) button.disabled = target() === undefined;
    pager.hidden = !pager.querySelector(":enabled");
    if (focused) (pager.contains(document.activeElement) && document.activeElement.matches(":enabled") ? document.activeElement : pager.querySelector(":enabled"))?.focus();
  }

  async turnPage(cursor) {
    await this.showPage(cursor);
    scrollTo(0, 0);
  }

  emptyState() {
    if (Object.values(this.filters).some(Boolean) || this.cursor)
      return empty("No matching jobs", "New matching jobs will appear here. ", h("a", {href: "#/jobs"}, "Clear filters"));
    return empty("No jobs yet", "Attack an image, certify a prediction, or run a model: ", h("a", {href: "#/new"}, "start a new job"));
  }

  /** Collect events, and update the page once a frame. */
  onEvent(type, data) {
    if (type === "job") this.changes.set(data.id, data);
    else if (type === "deleted") this.changes.set(data.id, null);
    else if (type === "progress") for (const item of data.items) this.progressById.set(item.id, item);
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = null;
    // Events that arrive while a page loads may be newer than that page.
    if (this.loading || this.signal.aborted) return;
    const {rows, changes, progressById, query} = this;
    for (const [id, job] of changes) this.applyChange(id, job && matches(job, query) ? job : null);
    for (const [id, progress] of progressById) if (rows.get(id)?.job.status === "running") rows.get(id).show({...rows.get(id).job, progress});
    if (changes.size) this.changed();
    changes.clear();
    progressById.clear();
  }

  applyChange(id, job) {
    if (this.rows.has(id)) job ? this.rows.get(id).show(job) : this.rows.remove(id);
    else if (!job) this.unseen.delete(id);
    else if (this.unseen.size < MAX_UNSEEN) this.unseen.add(id);
  }

  changed() {
    const {rows, unseen, next} = this;
    rows.updateSelection();
    this.draw();
    this.countSoon();
    // No rows move while some are selected or the pointer is moving over the table.
    const still = !rows.selectedJobs.length && !(performance.now() - this.pointedAt < STILL_MS);
    if ((unseen.size && !this.cursor && still) || (next && rows.size < PAGE_SIZE / 2)) this.loadSoon();
  }

  tick() {
    const {query} = this;
    for (const [id, row] of this.rows) matches(row.job, query) ? row.tick() : this.rows.remove(id);
    if (!this.loading) this.changed();
  }

  async count() {
    const {jobs} = await get("/v1/operations", {signal: this.signal}).catch(() => ({}));
    if (!jobs) return;
    const all = Object.values(jobs).reduce((sum, n) => sum + n, 0);
    for (const span of this.controls.querySelectorAll("[data-count]")) span.textContent = count({...jobs, all}[span.dataset.count] ?? 0);
  }

  /** Show the actions on the selected jobs; the buttons are kept while the selection is unchanged. */
  showActions(selectedJobs) {
    const [over, active] = [selectedJobs.filter(isOver), selectedJobs.filter((job) => !isOver(job))];
    const key = selectedJobs.map((job) => job.id + isOver(job)).join();
    if (key === this.shownFor) return;
    this.shownFor = key;
    const button = (text, enabled, onclick) => h("button", {disabled: !enabled, onclick}, text);
    const compare = () => (location.hash = hrefTo("compare", null, {jobs: selectedJobs.map((job) => job.id)}));
    fill(
      this.bulk,
      selectedJobs.length > 0 && [
        h("strong", {}, `${selectedJobs.length} selected`),
        button("Compare", selectedJobs.length > 1 && selectedJobs.length < 5, compare),
        button(`Cancel ${active.length}`, active.length, () => this.act(cancel, active)),
        button(`Delete ${over.length}`, over.length, ({target}) => this.confirmTwice(target) && this.act(remove, over)),
      ],
    );
  }

  /** Deleting takes a second press. */
  confirmTwice(button) {
    if (button.classList.contains("danger")) return true;
    button.classList.add("danger");
    fill(this.message, "Press Delete again to delete the jobs and their results permanently.");
    return false;
  }

  async act(action, jobs) {
    fill(this.message, await action(jobs.map((job) => job.id)).catch((error) => h("span.wrong", {}, error.message)));
    this.rows.select(false);
    await this.load();
  }
}

async function cancel(ids) {
  const {items} = await post("/v1/jobs/cancel", {jobs: ids});
  const outcome = ({code, status}) => (code ? (code === "job_conflict" ? "already ended" : "not found") : status === "canceled" ? status : "stopping");
  return summarize(items.map(outcome));
}

/** One request per job, a few in parallel: a browser limits the connections to one server. */
async function remove(ids) {
  const outcomes = [];
  const one = (id) => send(`/v1/jobs/${id}`, {method: "DELETE"}).then(() => "deleted", (error) => error.message);
  const work = async () => {
    for (let id; (id = ids.pop()); ) outcomes.push(await one(id));
  };
  await Promise.all(Array.from({length: MAX_PARALLEL}, work));
  return summarize(outcomes);
}

function summarize(outcomes) {
  const counts = [...new Set(outcomes)].map((outcome) => `${outcomes.filter((one) => one === outcome).length} ${outcome}`);
  return `${counts.join(", ")}.`;
}

/** Run `work` at once, and then at most once per interval. */
function throttle(work, signal) {
  let [timer, last] = [null, -THROTTLE_MS];
  const run = () => {
    timer = null;
    last = performance.now();
    work();
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  return () => (timer ??= setTimeout(run, last + THROTTLE_MS - performance.now()));
}
