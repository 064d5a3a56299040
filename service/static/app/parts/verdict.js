// The result of a job in one sentence.

import {h} from "../dom.js";
import {capital, count, in255, norm, number, percent, shortId} from "../format.js";
import {hrefTo} from "../routes.js";
import {outcome} from "./badges.js";
import {diagnosticNotes} from "./diagnostics.js";

const AGREES = {true: "the bytes are identical", false: "the bytes differ", null: "its files no longer exist"};

/** The card with the sentence; null without a result. */
export function verdict(job, method, model) {
  const summary = outcome(job);
  if (!summary) return null;
  const {success, success_float: exact, rerun, statement} = job.result;
  const sentence = {attack: attackSentence, prediction: predictionSentence}[job.kind]?.(job, method, model) ?? [statement ?? summary.text];
  const notes = [
    job.kind === "attack" && "Measured on the saved 8-bit PNG shown below.",
    exact && success === false && "The floating-point image was adversarial; rounded to 8 bits, it no longer is.",
    exact === false && success && "The floating-point image was not adversarial; rounded to 8 bits, it is.",
    ...diagnosticNotes(job.result),
    rerun && ["Rerun of ", h("a", {href: hrefTo("jobs", rerun.of)}, `job ${shortId(rerun.of)}`), ": ", rerun.reason ?? AGREES[rerun.agrees], "."],
  ];
  return h("section.card.verdict", {data: {tone: summary.tone}, "aria-label": "Result"},
    h("p.sentence", {}, h("strong", {}, capital(summary.word)), ": ", sentence),
    notes.map((note) => note && h("p.hint", {}, note)));
}

function attackSentence({result, parameters, target, label}, method, model) {
  const prediction = (key, one) => h("b", {class: key}, `“${one?.name ?? "?"}” ${percent(one?.confidence ?? 0, 0)}`);
  const [was, is] = [prediction("was", result.original), prediction("is", result.adversarial)];
  const name = parameters.norm ?? method?.norms?.[0] ?? "linf";
  const formatSize = (x) => `${norm(name)} ${name === "linf" ? in255(x) : number(x)}`;
  const className = (one) => `“${model?.classes?.[one] ?? one}”`;
  const within = parameters.eps === undefined ? "" : ` within ${formatSize(parameters.eps)}`;
  if (result.outcome.startsWith("already_")) {
    const why = target !== undefined ? ", which is the target" : label !== undefined && ` for an image labeled ${className(label)}`;
    return ["the model predicts ", was, why, ", without any perturbation."];
  }
  if (result.success) return [was, " became ", is, ` with a perturbation of ${formatSize(result.perturbation?.[name] ?? 0)}.`];
  const goal = target === undefined ? "" : ` of class ${className(target)}`;
  return [`no adversarial example${goal} found${within}; predicted `, was, " before and ", is, " after the attack."];
}

function predictionSentence({result: {original, smoothed}}) {
  const clean = [h("b", {}, `“${original.name}”`), ` with ${percent(original.confidence)}.`];
  if (!smoothed) return clean;
  const vote = smoothed.abstained
    ? "the vote under noise is too close"
    : [h("b", {}, `“${smoothed.name}”`), ` with ${count(smoothed.counts_top5[0].count)} of ${count(smoothed.n)} noisy votes`];
  return [vote, "; without noise the model predicts ", clean];
}

const ADVICE = {
  worker_lost: "This job ended every process in which it ran alone, or let it hang. Use a smaller image or fewer steps; the workers' logs say more.",
  deadline_exceeded: "Raise the deadline, or use fewer steps or samples.",
  time_exceeded: "Use a smaller image.",
  out_of_memory: "Use a smaller image or model.",
  non_finite_output: "Check the model's normalization and weights.",
};

/** Why a job has no result or only part of one, and what to do; null if it succeeded or has not ended. */
export function failureNotice({status, error, result, id, image}) {
  const rerunLink = image && h("a", {href: hrefTo("new", null, {from: id})}, "Run again with changes");
  const more = result ? "The result up to that point is shown below." : "There is no result.";
  if (status === "canceled") return h("section.notice", {}, h("h2", {}, "Job canceled"), h("p", {}, more, " ", rerunLink, rerunLink && "."));
  if (status !== "failed") return null;
  return h("section.failure", {}, h("h2", {}, "Job failed"), h("p", {}, error?.detail),
    h("p.hint", {}, "Code ", h("code", {}, error?.code), ". ", ADVICE[error?.code], " ", rerunLink, rerunLink && "."));
}
