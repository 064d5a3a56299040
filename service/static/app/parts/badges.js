// A job's status and outcome as a word with a color.

import {h} from "../dom.js";
import {norm, number} from "../format.js";

/** Whether the job has ended. */
export const isOver = (job) => !["queued", "running"].includes(job.status);

export function status(job) {
  return h("span.badge", {data: {status: job.status}}, job.status);
}

/** The outcome of a job: `{word, tone, text}`; null without a result. Tones: fooled, good, unsure. */
export function outcome(job) {
  const result = job.result;
  if (!result) return null;
  if (job.kind === "attack") return attackOutcome(result);
  if (job.kind === "certificate") return certificateOutcome(result);
  if (job.kind === "registration") return {word: "registered", tone: "good", text: `${job.model.id} can be used`};
  const prediction = result.smoothed ?? result.original ?? {};
  if (prediction.abstained) return {word: "abstained", tone: "unsure", text: "the vote is too close"};
  return {word: "predicted", tone: "good", text: prediction.name ?? ""};
}

function attackOutcome(result) {
  const {original = {}, adversarial = {}} = result;
  if (result.outcome === "already_misclassified") return {word: "misclassified", tone: "unsure", text: original.name ?? ""};
  if (result.outcome === "already_at_target") return {word: "at its target", tone: "unsure", text: original.name ?? ""};
  if (result.diagnostics?.includes("below_one_level")) return {word: "not attacked", tone: "unsure", text: "eps is below one level"};
  if (result.success) return {word: "fooled", tone: "fooled", text: `${original.name ?? "?"} → ${adversarial.name ?? "?"}`};
  return {word: "robust", tone: "good", text: `still ${adversarial.name ?? original.name ?? "?"}`};
}

function certificateOutcome(result) {
  if (result.abstained) return {word: "abstained", tone: "unsure", text: "no radius certified"};
  const text = `${norm(result.norm)} radius ${number(Math.floor(1e4 * result.radius) / 1e4, 4)}`;
  return result.decision && result.decision !== "certified"
    ? {word: result.decision, tone: "unsure", text}
    : {word: "certified", tone: "good", text};
}

export function outcomeBadge(job) {
  const summary = outcome(job);
  return summary && h("span.badge", {data: {tone: summary.tone}}, summary.word);
}
