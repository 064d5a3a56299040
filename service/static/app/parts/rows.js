// A table of jobs whose rows stay when their jobs change, and with them focus and selection.

import {fill, h} from "../dom.js";
import {ago, between, count, moment, seconds} from "../format.js";
import {to} from "../routes.js";
import {outcome, outcomeBadge, status} from "./badges.js";

/** Enough of an id to tell jobs apart. */
export const short = (id) => id.slice(0, 8);


class Row {
  constructor(job) {
    this.box = h("input", {type: "checkbox", "aria-label": `Select job ${short(job.id)}`});
    this.link = h("a", {href: to("jobs", job.id), title: job.id, "aria-label": `Job ${short(job.id)}`}, short(job.id));
    this.age = h("td.age.soft", {title: moment(job.created_at)});
    [this.status, this.result, this.took] = [h("td.status"), h("td.result"), h("td.number")];
    this.element = h(
      "tr.fresh",
      {data: {id: job.id}},
      h("td.pick", {}, h("label", {}, this.box)),
      h("td.job", {}, this.link),
      this.status,
      h("td.method", {}, job.method, " ", h("span.hint", {}, job.kind)),
      h("td.model", {}, job.model.id),
      this.result,
      this.age,
      this.took,
    );
    this.show(job);
  }

  show(job) {
    this.job = job;
    fill(this.status, status(job));
    fill(this.result, job.status === "running" ? bar(job) : told(job));
    this.tick();
  }

  tick() {
    const {status, created_at, started_at, finished_at} = this.job;
    this.age.textContent = ago(created_at);
    this.took.textContent = started_at && status !== "queued" ? seconds(Math.max(0, between(started_at, finished_at))) : "–";
  }
}

export function bar({progress: {done, total}}) {
  if (!total) return null;
  return [h("progress", {"aria-label": "Progress", max: total, value: done}), h("span.hint", {}, `${count(done)} / ${count(total)}`)];
}

function told(job) {
  const text = job.error?.detail ?? outcome(job)?.text ?? "";
  return [outcomeBadge(job), h("span", {title: text}, text)];
}

/** Rows by job id, newest first; `selected` is told the selected jobs. */
export class Rows extends Map {
  constructor(selected) {
    super();
    this.selected = selected;
    this.body = h("tbody", {onclick: (event) => this.click(event)});
    this.all = h("input", {type: "checkbox", "aria-label": "Select all on this page", onchange: () => this.select(this.all.checked)});
    const names = ["Job", "Status", "Method", "Model", "Result", "Created"].map((name) => h("th", {scope: "col"}, name));
    this.element = h(
      "table",
      {},
      h("caption.unseen", {}, "Jobs, newest first"),
      h("thead", {}, h("tr", {}, h("th.pick", {scope: "col"}, h("label", {}, this.all)), names, h("th.number", {scope: "col"}, "Took"))),
      this.body,
    );
  }

  get picked() {
    return [...this.body.children].map((element) => this.get(element.dataset.id)).filter((row) => row.box.checked).map((row) => row.job);
  }

  /** Show these jobs; those that were shown keep their row. */
  replace(jobs) {
    const first = !this.size;
    const kept = new Set(jobs.map((job) => job.id));
    for (const id of this.keys()) if (!kept.has(id)) this.remove(id);
    for (const job of jobs) this.has(job.id) ? this.get(job.id).show(job) : this.set(job.id, new Row(job));
    if (first) for (const row of this.values()) row.element.classList.remove("fresh");
    jobs.forEach((job, place) => this.place(this.get(job.id).element, this.body.children[place]));
    this.note();
  }

  place(element, before) {
    // Moving an element takes its focus away, so one that stands in its place is left there.
    if (element !== before) this.body.insertBefore(element, before ?? null);
  }

  remove(id) {
    const {element} = this.get(id);
    const near = element.nextElementSibling ?? element.previousElementSibling;
    if (element.contains(document.activeElement)) near?.querySelector("a").focus();
    element.remove();
    this.delete(id);
  }

  select(checked) {
    for (const row of this.values()) row.box.checked = checked;
    this.note();
  }

  /** A click with shift selects all since the last click. */
  click({target, shiftKey}) {
    if (target.type !== "checkbox") return;
    const rows = [...this.body.children];
    const row = target.closest("tr");
    const ends = [rows.indexOf(row), shiftKey ? rows.indexOf(this.anchor) : -1].sort((a, b) => a - b);
    if (ends[0] >= 0) for (const one of rows.slice(ends[0], ends[1])) this.get(one.dataset.id).box.checked = target.checked;
    this.anchor = row;
    this.note();
  }

  note() {
    const {length} = this.picked;
    this.all.checked = length > 0 && length === this.size;
    this.all.indeterminate = length > 0 && length < this.size;
    this.selected(this.picked);
  }

  key(event) {
    const {key, target, ctrlKey, metaKey, altKey} = event;
    if (ctrlKey || metaKey || altKey || target.closest("input:not([type=checkbox]), select, dialog")) return;
    const row = target.closest("tbody tr");
    const way = {j: 1, k: -1, ...(row && {ArrowDown: 1, ArrowUp: -1})}[key];
    if (way) this.step(row, way);
    else if (row && key === "x") this.get(row.dataset.id).box.click();
    else if (row && key === "Enter") this.get(row.dataset.id).link.click();
    else return;
    event.preventDefault();
  }

  step(row, way) {
    const next = row ? (way > 0 ? row.nextElementSibling : row.previousElementSibling) : this.body.firstElementChild;
    next?.querySelector("a").focus();
  }
}
