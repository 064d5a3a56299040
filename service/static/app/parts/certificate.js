// A certificate: how far it reaches, what it rests on, and how anyone can check it.

import {h, s} from "../dom.js";
import {count, norm, number, percent} from "../format.js";
import {votes} from "./bars.js";
import {facts} from "./facts.js";
import {needed, normal} from "./plot.js";

const GUARANTEES = {
  statistical: "statistical: counted, and chance may deceive with probability α at most",
  deterministic: "deterministic: a proof without any chance",
  empirical: "empirical: evidence, and no proof",
};

/** The ball around the image, with the radius asked for and the largest that these samples could have shown. */
export function reach({result}, model) {
  const {sampling = {}} = result;
  const radii = [
    ["radius", "certified", result.radius],
    ["target", "asked for", result.target_radius],
    ["most", `the most that ${count(sampling.n_used ?? 0)} samples can show`, ceiling(result)],
  ].filter(([, , r]) => Number.isFinite(r));
  const end = Math.max(...radii.map(([, , r]) => r)) || 1;
  const label = `Balls in ${norm(result.norm)} around the image: ${radii.map(([, name, r]) => `${name} ${floored(r)}`).join(", ")}`;
  return h("section.card", {}, h("h2", {}, "How far it reaches"),
    h("div.reach", {},
      s("svg", {viewBox: "-100 -100 200 200", role: "img", "aria-label": label},
        [...radii].reverse().map(([key, , r]) => s("circle", {class: key, r: (97 * r) / end})), s("circle.image", {r: 3})),
      h("ul", {}, radii.map(([key, name, r]) => h("li", {class: key}, h("b", {}, floored(r)), ` ${name}`)),
        h("li.image", {}, `the image; distances in ${norm(result.norm)}`))),
    result.radius > 0 && plain(result, model),
    facts([
      ["Guarantee", GUARANTEES[result.guarantee] ?? result.guarantee],
      ["Decision", result.decision],
      ["Abstained", result.abstained && result.abstain_reason],
      ["Stopped by", result.stopped_by],
      ["Error α", sampling.alpha],
      ["Rule", sampling.rule && `${sampling.rule} (${sampling.alpha_rule})`],
      ["To check it", ["save certificate.json, then ", h("code", {}, "touchstone check certificate.json")]],
    ]));
}

const floored = (r) => number(Math.floor(r * 1e4) / 1e4, 4);

/** The radius if every vote had been for the class; null where a radius is not σ Φ⁻¹ of the lower bound. */
function ceiling({radius, sampling}) {
  const {n_used: n, alpha, looks, sigma, pA_lower: lower} = sampling ?? {};
  if (!n || !(radius > 0) || Math.abs(normal(radius / sigma) - lower) > 1e-5) return null;
  const against = (p) => -Math.log(n + 1) + Math.log1p(-(p ** (n + 1))) - Math.log1p(-p) - n * Math.log(p);
  const p = Array.isArray(looks) ? (alpha / looks.length) ** (1 / n) : root((one) => against(one) < -Math.log(alpha), 0, 1 - 1e-9);
  return sigma * root((z) => normal(z) > p, 0, 8);
}

/** Where a statement changes between two ends. */
function root(holds, low, high) {
  const last = holds(high);
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (holds(middle) === last) high = middle;
    else low = middle;
  }
  return low;
}

/** What a radius means for the values of an image. */
function plain({radius, norm: name}, model) {
  if (!model) return null;
  const {channels, height, width} = model.input;
  const n = channels * height * width;
  const each = radius / n ** ({l1: 1, l2: 1 / 2}[name] ?? 0);
  return h("p", {}, `That is room to change one value by ${levels(Math.min(1, radius))}, or each of the ${count(n)} by ${levels(each)}.`);
}

const levels = (x) => `${number(Math.floor(25500 * x) / 100)}/255`;

/** The votes that the radius rests on. */
export function counted({result, parameters}, model) {
  const {sampling, accuracy_under_noise_hint: hint} = result;
  if (!sampling) return null;
  const asked = needed(parameters);
  return h("section.card", {}, h("h2", {}, "Votes under noise"),
    h("p", {}, `The class has ${count(sampling.nA)} of ${count(sampling.n_used)} votes, so its probability lies between `,
      h("b", {}, percent(sampling.pA_lower, 2)), ` and ${percent(sampling.pA_upper, 2)}.`,
      asked && ` The radius asked for needs ${percent(asked, 2)}.`,
      sampling.pooled > 0 && ` Earlier jobs counted ${count(sampling.pooled)} of the votes.`),
    votes(sampling.counts_top5 ?? [], sampling.n_used || 1, model?.classes),
    hint?.note && h("p.notice", {}, hint.note));
}
