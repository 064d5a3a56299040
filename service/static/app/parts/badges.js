// A job's status and outcome in one word and one colour; the word alone says it, too.

import {h} from "../dom.js";
import {norm, number} from "../format.js";

/** Whether it has reached a status that never changes. */
export const isOver = (job) => !["queued", "running"].includes(job.status);

export function status(job) {
  return h("span.badge", {data: {status: job.status}}, job.status);
}

/** What came of a job, in a few words: `{word, tone, text}`; null while nothing has. Tones: fooled, held, unsure. */
export function outcome(job) {
  const result = job.result;
  if (!result) return null;
  if (job.kind === "attack") return attacked(result);
  if (job.kind === "certificate") return certified(result);
  if (job.kind === "registration") return {word: "registered", tone: "held", text: `${job.model.id} can be used`};
  const said = result.smoothed ?? result.original ?? {};
  if (said.abstained) return {word: "abstained", tone: "unsure", text: "the vote is too close"};
  return {word: "answered", tone: "held", text: said.name ?? ""};
}

function attacked(result) {
  const {original = {}, adversarial = {}} = result;
  if (result.outcome === "already_misclassified")
    return {word: "already wrong", tone: "unsure", text: original.name ?? ""};
  if (result.success) return {word: "fooled", tone: "fooled", text: `${original.name ?? "?"} → ${adversarial.name ?? "?"}`};
  return {word: "held", tone: "held", text: `still ${adversarial.name ?? original.name ?? "?"}`};
}

function certified(result) {
  if (result.abstained) return {word: "abstained", tone: "unsure", text: "no radius certified"};
  const text = `${norm(result.norm)} radius ${number(Math.floor(1e4 * result.radius) / 1e4, 4)}`;
  return result.decision && result.decision !== "certified"
    ? {word: result.decision, tone: "unsure", text}
    : {word: "certified", tone: "held", text};
}

export function outcomeBadge(job) {
  const told = outcome(job);
  return told && h("span.badge", {data: {tone: told.tone}}, told.word);
}
