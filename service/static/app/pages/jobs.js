// All jobs, newest first, as they change: filtered, paged, and handled many at a time.

import {address, get, post, send} from "../api.js";
import {fill, h} from "../dom.js";
import {count} from "../format.js";
import {asked, controls, fits, read} from "../parts/filters.js";
import {isOver} from "../parts/badges.js";
import {Rows} from "../parts/rows.js";
import {empty, failure, loading} from "../parts/states.js";
import {to} from "../routes.js";
import {follow} from "../stream.js";

const LIMIT = 50;
const AT_ONCE = 6;
const MANY = 1000;
const [OFTEN, STILL, TICK] = [1000, 1500, 10_000];
const KEYS = [["j", "next row"], ["k", "row before"], ["x", "select"], ["Shift", "+ click: select up to there"], ["Enter", "open"]];

/** By a page's cursor: that of the page before, and the time that the list begins at, which the cursor is bound to. */
const pages = new Map();

export const title = () => "Jobs";

export async function show(root, route, signal) {
  const list = new List(read(route.query), route.query.get("cursor"), signal);
  fill(root, ...list.view());
  document.addEventListener("keydown", (event) => list.rows.key(event), {signal});
  const timer = setInterval(() => list.tick(), TICK);
  signal.addEventListener("abort", () => clearInterval(timer));
  // What happens between the list's answer and the stream's beginning would be missed, so the list is read again then.
  const state = (text) => text === "live" && list.load();
  follow("/v1/events", (type, data) => list.hear(type, data), {signal, state, ends: false}).catch(() => {});
  list.count();
  await list.load();
}

class List {
  constructor(filters, cursor, signal) {
    Object.assign(this, {filters, cursor, signal, news: new Map(), moves: new Map(), unseen: new Set()});
    this.rows = new Rows((picked) => this.offer(picked));
    this.loadSoon = seldom(() => this.load(), signal);
    this.countSoon = seldom(() => this.count(), signal);
  }

  view() {
    this.controls = controls(this.filters, (filters) => this.turn(null, filters));
    const leaf = (text, to) => ({to, button: h("button", {disabled: true, onclick: () => this.leaf(to())}, text)});
    this.leaves = [leaf("Newest", () => (this.cursor ? null : undefined)), leaf("Newer", () => pages.get(this.cursor)?.before), leaf("Older", () => this.next ?? undefined)];
    this.place = h("div", {onpointermove: () => (this.pointed = performance.now())});
    this.fresh = h("button.primary", {hidden: true, onclick: () => this.turn(null)});
    this.bulk = h("div.row", {role: "group", "aria-label": "Selected jobs"});
    this.told = h("span", {role: "status"});
    this.pager = h("nav.row", {"aria-label": "Pages of jobs"}, this.leaves.map((leaf) => leaf.button));
    const keys = KEYS.map(([key, what]) => [h("kbd", {}, key), ` ${what} `]);
    return [
      h("div.head", {}, h("h1", {}, "Jobs"), h("details", {}, h("summary", {title: "Keys", "aria-label": "Keys"}, "?"), h("span.hint", {}, keys))),
      this.controls,
      h("div.row.deeds", {}, this.bulk, this.told, this.fresh),
      this.place,
      this.pager,
    ];
  }

  /** Show another page of the list, or the first under other filters; Back comes back. */
  turn(cursor, filters = this.filters) {
    Object.assign(this, {cursor, filters});
    history.pushState(null, "", to("jobs", null, {...filters, cursor}));
    this.rows.select(false);
    fill(this.told);
    return this.load();
  }

  get query() {
    const query = asked(this.filters);
    return {...query, since: pages.get(this.cursor)?.since ?? query.since};
  }

  async load() {
    const turn = this.busy(Symbol());
    if (!this.rows.size) fill(this.place, loading("Loading the jobs"));
    const {query, cursor} = this;
    try {
      const page = await get(address("/v1/jobs", {...query, limit: LIMIT, cursor}), {signal: this.signal});
      if (turn !== this.loading) return;
      this.busy(null);
      this.fill(page, query);
    } catch (error) {
      if (error.name === "AbortError" || turn !== this.loading) return;
      this.busy(null);
      // A cursor of other filters, or of another service's list: begin at the beginning.
      if (error.code === "invalid_cursor" && cursor) return this.turn(null);
      fill(this.place, failure(error, () => this.load()));
    }
  }

  busy(turn) {
    this.place.setAttribute("aria-busy", turn !== null);
    return (this.loading = turn);
  }

  fill({items, cursor}, {since}) {
    if (cursor) pages.set(cursor, {before: this.cursor, since});
    this.next = cursor;
    this.unseen.clear();
    this.rows.replace(items);
    this.draw();
    this.flush();
  }

  draw() {
    const {rows, unseen, pager} = this;
    if (!rows.size) fill(this.place, this.nothing());
    else if (!rows.element.isConnected) fill(this.place, h("div.scroll", {}, rows.element));
    this.fresh.hidden = !unseen.size;
    this.fresh.textContent = `${count(unseen.size)}${unseen.size === MANY ? " or more" : ""} new ${unseen.size === 1 ? "job" : "jobs"}`;
    const focused = pager.contains(document.activeElement);
    for (const {button, to} of this.leaves) button.disabled = to() === undefined;
    pager.hidden = !pager.querySelector(":enabled");
    if (focused) (pager.contains(document.activeElement) && document.activeElement.matches(":enabled") ? document.activeElement : pager.querySelector(":enabled"))?.focus();
  }

  async leaf(cursor) {
    await this.turn(cursor);
    scrollTo(0, 0);
  }

  nothing() {
    if (Object.values(this.filters).some(Boolean) || this.cursor)
      return empty("No job fits", "One that does will appear here by itself. ", h("a", {href: "#/jobs"}, "Clear the filters"));
    return empty("No jobs yet", "Attack an image, certify it, or ask a model: ", h("a", {href: "#/new"}, "start a new job"));
  }

  /** Events may come by the hundred; the page changes once a frame. */
  hear(type, data) {
    if (type === "job") this.news.set(data.id, data);
    else if (type === "deleted") this.news.set(data.id, null);
    else if (type === "progress") for (const item of data.items) this.moves.set(item.id, item);
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = null;
    // What comes while a page is on its way may be newer than that page.
    if (this.loading || this.signal.aborted) return;
    const {rows, news, moves, query} = this;
    for (const [id, job] of news) this.settle(id, job && fits(job, query) ? job : null);
    for (const [id, progress] of moves) if (rows.get(id)?.job.status === "running") rows.get(id).show({...rows.get(id).job, progress});
    if (news.size) this.changed();
    news.clear();
    moves.clear();
  }

  settle(id, job) {
    if (this.rows.has(id)) job ? this.rows.get(id).show(job) : this.rows.remove(id);
    else if (!job) this.unseen.delete(id);
    else if (this.unseen.size < MANY) this.unseen.add(id);
  }

  changed() {
    const {rows, unseen, next} = this;
    rows.note();
    this.draw();
    this.countSoon();
    // Nothing moves under a hand: while rows are selected, or a pointer is on its way to one.
    const still = !rows.picked.length && !(performance.now() - this.pointed < STILL);
    if ((unseen.size && !this.cursor && still) || (next && rows.size < LIMIT / 2)) this.loadSoon();
  }

  tick() {
    const {query} = this;
    for (const [id, row] of this.rows) fits(row.job, query) ? row.tick() : this.rows.remove(id);
    if (!this.loading) this.changed();
  }

  async count() {
    const {jobs} = await get("/v1/operations", {signal: this.signal}).catch(() => ({}));
    if (!jobs) return;
    const all = Object.values(jobs).reduce((sum, n) => sum + n, 0);
    for (const span of this.controls.querySelectorAll("[data-count]")) span.textContent = count({...jobs, all}[span.dataset.count] ?? 0);
  }

  /** What can be done with the selected jobs; the buttons stay while that stays the same. */
  offer(picked) {
    const [over, active] = [picked.filter(isOver), picked.filter((job) => !isOver(job))];
    const key = picked.map((job) => job.id + isOver(job)).join();
    if (key === this.offered) return;
    this.offered = key;
    const button = (text, possible, onclick) => h("button", {disabled: !possible, onclick}, text);
    const compare = () => (location.hash = to("compare", null, {jobs: picked.map((job) => job.id)}));
    fill(
      this.bulk,
      picked.length > 0 && [
        h("strong", {}, `${picked.length} selected`),
        button("Compare", picked.length > 1 && picked.length < 5, compare),
        button(`Cancel ${active.length}`, active.length, () => this.act(cancel, active)),
        button(`Delete ${over.length}`, over.length, ({target}) => this.sure(target) && this.act(remove, over)),
      ],
    );
  }

  /** What cannot be undone takes a second press. */
  sure(button) {
    if (button.classList.contains("danger")) return true;
    button.classList.add("danger");
    fill(this.told, "Press Delete again: the jobs and their results will be gone for good.");
    return false;
  }

  async act(deed, jobs) {
    fill(this.told, await deed(jobs.map((job) => job.id)).catch((error) => h("span.wrong", {}, error.message)));
    this.rows.select(false);
    await this.load();
  }
}

async function cancel(ids) {
  const {items} = await post("/v1/jobs/cancel", {jobs: ids});
  const fate = ({code, status}) => (code ? (code === "job_conflict" ? "already ended" : "not there any more") : status === "canceled" ? status : "stopping");
  return summed(items.map(fate));
}

/** One request for each, a few at a time: a browser gives one server no more connections. */
async function remove(ids) {
  const fates = [];
  const one = (id) => send(`/v1/jobs/${id}`, {method: "DELETE"}).then(() => "deleted", (error) => error.message);
  const work = async () => {
    for (let id; (id = ids.pop()); ) fates.push(await one(id));
  };
  await Promise.all(Array.from({length: AT_ONCE}, work));
  return summed(fates);
}

function summed(fates) {
  const named = [...new Set(fates)].map((fate) => `${fates.filter((one) => one === fate).length} ${fate}`);
  return `${named.join(", ")}.`;
}

/** `work` at once, and then no more than once in a while, however often it is asked for. */
function seldom(work, signal) {
  let [timer, last] = [null, -OFTEN];
  const run = () => {
    timer = null;
    last = performance.now();
    work();
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  return () => (timer ??= setTimeout(run, last + OFTEN - performance.now()));
}
