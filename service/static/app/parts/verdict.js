// What came of a job, in a sentence that can be read at a glance.

import {h} from "../dom.js";
import {capital, count, in255, norm, number, percent} from "../format.js";
import {to} from "../routes.js";
import {outcome} from "./badges.js";
import {short} from "./facts.js";

const AGREES = {true: "the bytes agree", false: "the bytes differ", null: "it has nothing left to compare with"};

/** The card with the sentence; null where there is no result. */
export function verdict(job, method, model) {
  const told = outcome(job);
  if (!told) return null;
  const {success, success_float: exact, rerun, statement} = job.result;
  const sentence = {attack: attacked, prediction: answered}[job.kind]?.(job, method, model) ?? [statement ?? told.text];
  const notes = [
    job.kind === "attack" && "The verdict was measured on the saved 8-bit PNG, the very file below.",
    exact && success === false && "The exact floating-point image reached the goal; rounding it to 8 bits undid that.",
    exact === false && success && "The exact floating-point image missed the goal; rounded to 8 bits it reaches it.",
    rerun && [h("a", {href: to("jobs", rerun.of)}, `Job ${short(rerun.of)}`), " was repeated here: ", AGREES[rerun.agrees], "."],
  ];
  return h("section.card.verdict", {data: {tone: told.tone}, "aria-label": "Result"},
    h("p.sentence", {}, h("strong", {}, capital(told.word)), ": ", sentence),
    notes.map((note) => note && h("p.hint", {}, note)));
}

function attacked({result, parameters, target, label}, method, model) {
  const named = (key, one) => h("b", {class: key}, `“${one?.name ?? "?"}” ${percent(one?.confidence ?? 0, 0)}`);
  const [was, is] = [named("was", result.original), named("is", result.adversarial)];
  const name = parameters.norm ?? method?.norms?.[0] ?? "linf";
  const size = (x) => `${name === "linf" ? in255(x) : number(x)} in ${norm(name)}`;
  const called = (one) => `“${model?.classes?.[one] ?? one}”`;
  const within = parameters.eps === undefined ? "" : ` within ${size(parameters.eps)}`;
  if (result.outcome === "already_misclassified") {
    const why = target !== undefined ? ", which is the target" : label !== undefined && ` of an image labelled ${called(label)}`;
    return ["the model says ", was, why, " before any change."];
  }
  if (result.success) return [was, " became ", is, ` with a change of at most ${size(result.perturbation?.[name] ?? 0)}.`];
  const goal = target === undefined ? "fools the model" : `makes it ${called(target)}`;
  return [`no change${within} was found that ${goal}; `, was, result.original?.label === result.adversarial?.label ? " is still " : " is now ", is, "."];
}

function answered({result: {original, smoothed}}) {
  const alone = [h("b", {}, `“${original.name}”`), ` with ${percent(original.confidence)}.`];
  if (!smoothed) return alone;
  const vote = smoothed.abstained
    ? "the vote under noise is too close to answer"
    : [h("b", {}, `“${smoothed.name}”`), ` with ${count(smoothed.counts_top5[0].count)} of ${count(smoothed.n)} noisy votes`];
  return [vote, "; without noise the model says ", alone];
}

const ADVICE = {
  worker_lost: "Every worker that tried it died or hung. If that repeats, look at the workers' logs.",
  deadline_exceeded: "Give it more time, or ask for less.",
  out_of_memory: "Take a smaller image or model.",
  non_finite_output: "Look at the model's normalisation and weights.",
};

/** Why there is no result, or only a part of one, and what to do; null for a job that did not end early. */
export function ended({status, error, result, id, image}) {
  const again = image && h("a", {href: to("new", null, {from: id})}, "Run it again with changes");
  const more = result ? "What it had shown until then stands here." : "It left no result.";
  if (status === "canceled") return h("section.notice", {}, h("h2", {}, "It was canceled"), h("p", {}, more, " ", again, again && "."));
  if (status !== "failed") return null;
  return h("section.failure", {}, h("h2", {}, "It failed"), h("p", {}, error?.detail),
    h("p.hint", {}, "Code ", h("code", {}, error?.code), ". ", ADVICE[error?.code], " ", again, again && "."));
}
