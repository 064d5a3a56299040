// A table of jobs whose rows are updated in place, which keeps focus and selection.

import {fill, h} from "../dom.js";
import {ago, between, count, moment, seconds, shortId} from "../format.js";
import {hrefTo} from "../routes.js";
import {outcome, outcomeBadge, status} from "./badges.js";

/** Enough of an id to tell jobs apart. */
class Row {
  constructor(job) {
    this.box = h("input", {type: "checkbox", "aria-label": `Select job ${shortId(job.id)}`});
    this.link = h("a", {href: hrefTo("jobs", job.id), title: job.id, "aria-label": `Job ${shortId(job.id)}`}, shortId(job.id));
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
    fill(this.result, job.status === "running" ? bar(job) : resultText(job));
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

function resultText(job) {
  const text = job.error?.detail ?? outcome(job)?.text ?? "";
  return [outcomeBadge(job), h("span", {title: text}, text)];
}

/** Rows by job id, newest first; `onSelect` is called with the selected jobs. */
export class Rows extends Map {
  constructor(onSelect) {
    super();
    this.onSelect = onSelect;
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

  get selectedJobs() {
    return [...this.body.children].map((element) => this.get(element.dataset.id)).filter((row) => row.box.checked).map((row) => row.job);
  }

  /** Show these jobs; jobs that were shown before keep their row. */
  setJobs(jobs) {
    const first = !this.size;
    const kept = new Set(jobs.map((job) => job.id));
    for (const id of this.keys()) if (!kept.has(id)) this.remove(id);
    for (const job of jobs) this.has(job.id) ? this.get(job.id).show(job) : this.set(job.id, new Row(job));
    if (first) for (const row of this.values()) row.element.classList.remove("fresh");
    jobs.forEach((job, index) => this.place(this.get(job.id).element, this.body.children[index]));
    this.updateSelection();
  }

  place(element, before) {
    // Moving an element removes its focus, so one that is in place already is not moved.
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
    this.updateSelection();
  }

  /** A click with Shift selects all rows since the last click. */
  click({target, shiftKey}) {
    if (target.type !== "checkbox") return;
    const rows = [...this.body.children];
    const row = target.closest("tr");
    const ends = [rows.indexOf(row), shiftKey ? rows.indexOf(this.anchor) : -1].sort((a, b) => a - b);
    if (ends[0] >= 0) for (const one of rows.slice(ends[0], ends[1])) this.get(one.dataset.id).box.checked = target.checked;
    this.anchor = row;
    this.updateSelection();
  }

  updateSelection() {
    const {length} = this.selectedJobs;
    this.all.checked = length > 0 && length === this.size;
    this.all.indeterminate = length > 0 && length < this.size;
    this.onSelect(this.selectedJobs);
  }

  key(event) {
    const {key, target, ctrlKey, metaKey, altKey} = event;
    if (ctrlKey || metaKey || altKey || target.closest("input:not([type=checkbox]), select, dialog")) return;
    const row = target.closest("tbody tr");
    const direction = {j: 1, k: -1, ...(row && {ArrowDown: 1, ArrowUp: -1})}[key];
    if (direction) this.step(row, direction);
    else if (row && key === "x") this.get(row.dataset.id).box.click();
    else if (row && key === "Enter") this.get(row.dataset.id).link.click();
    else return;
    event.preventDefault();
  }

  step(row, direction) {
    const next = row ? (direction > 0 ? row.nextElementSibling : row.previousElementSibling) : this.body.firstElementChild;
    next?.querySelector("a").focus();
  }
}
