// A certificate: its radius, its votes, and how to verify it.

import {h, s} from "../dom.js";
import {count, norm, number, percent} from "../format.js";
import {voteTable} from "./bars.js";
import {definitionList} from "./jobFacts.js";
import {neededProbability, normal} from "./plot.js";

const GUARANTEES = {
  statistical: "statistical: wrong with probability at most α",
  deterministic: "deterministic: a proof, with no error probability",
  empirical: "empirical: evidence, not a proof",
};

/** The certified radius, the requested one, and the largest that this number of samples can certify. */
export function radiusCard({result}, model) {
  const {sampling = {}} = result;
  const radii = [
    ["radius", "certified", result.radius],
    ["target", "requested", result.target_radius],
    ["largest", `largest that ${count(sampling.n_used ?? 0)} samples can certify`, largestRadius(result)],
  ].filter(([, , r]) => Number.isFinite(r));
  const end = Math.max(...radii.map(([, , r]) => r)) || 1;
  const label = `Balls in ${norm(result.norm)} around the image: ${radii.map(([, name, r]) => `${name} ${roundDown(r)}`).join(", ")}`;
  return h("section.card", {}, h("h2", {}, "Certified radius"),
    h("div.radii", {},
      s("svg", {viewBox: "-100 -100 200 200", role: "img", "aria-label": label},
        [...radii].reverse().map(([key, , r]) => s("circle", {class: key, r: (97 * r) / end})), s("circle.image", {r: 3})),
      h("ul", {}, radii.map(([key, name, r]) => h("li", {class: key}, h("b", {}, roundDown(r)), ` ${name}`)),
        h("li.image", {}, `the image; distances in ${norm(result.norm)}`))),
    result.radius > 0 && radiusInWords(result, model),
    definitionList([
      ["Guarantee", GUARANTEES[result.guarantee] ?? result.guarantee],
      ["Decision", result.decision],
      ["Abstained", result.abstained && result.abstain_reason],
      ["Stopped by", result.stopped_by],
      ["Error probability α", sampling.alpha],
      ["Stopping rule", sampling.rule && `${sampling.rule} (${sampling.alpha_rule})`],
      ["To verify it", ["save certificate.json, then run ", h("code", {}, "touchstone check certificate.json")]],
    ]));
}

const roundDown = (r) => number(Math.floor(r * 1e4) / 1e4, 4);

/** The radius of a unanimous vote; null if the radius is not σ Φ⁻¹(lower bound). */
function largestRadius({radius, sampling}) {
  const {n_used: n, alpha, looks, sigma, pA_lower: lower} = sampling ?? {};
  if (!n || !(radius > 0) || Math.abs(normal(radius / sigma) - lower) > 1e-5) return null;
  const against = (p) => -Math.log(n + 1) + Math.log1p(-(p ** (n + 1))) - Math.log1p(-p) - n * Math.log(p);
  const p = Array.isArray(looks) ? (alpha / looks.length) ** (1 / n) : bisect((one) => against(one) < -Math.log(alpha), 0, 1 - 1e-9);
  return sigma * bisect((z) => normal(z) > p, 0, 8);
}

/** The point between two ends where a predicate changes. */
function bisect(holds, low, high) {
  const last = holds(high);
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (holds(middle) === last) high = middle;
    else low = middle;
  }
  return low;
}

/** The radius as a change of pixel values. */
function radiusInWords({radius, norm: name}, model) {
  if (!model) return null;
  const {channels, height, width} = model.input;
  const n = channels * height * width;
  const each = radius / n ** ({l1: 1, l2: 1 / 2}[name] ?? 0);
  return h("p", {}, `This radius allows a change of one value by ${levels(Math.min(1, radius))}, or of each of the ${count(n)} values by ${levels(each)}.`);
}

const levels = (x) => `${number(Math.floor(25500 * x) / 100)}/255`;

/** The votes from which the radius was computed. */
export function votesCard({result, parameters}, model) {
  const {sampling, accuracy_under_noise_hint: hint} = result;
  if (!sampling) return null;
  const needed = neededProbability(parameters);
  return h("section.card", {}, h("h2", {}, "Votes under noise"),
    h("p", {}, `The class has ${count(sampling.nA)} of ${count(sampling.n_used)} votes, so its probability lies between `,
      h("b", {}, percent(sampling.pA_lower, 2)), ` and ${percent(sampling.pA_upper, 2)}.`,
      needed && ` The requested radius needs ${percent(needed, 2)}.`,
      sampling.pooled > 0 && ` ${count(sampling.pooled)} of the votes are from earlier jobs.`),
    voteTable(sampling.counts_top5 ?? [], sampling.n_used || 1, model?.classes),
    hint?.note && h("p.notice", {}, hint.note));
}
