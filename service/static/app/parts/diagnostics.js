// Why an attack's outcome is to be read with care.

const SENTENCES = {
  zero_gradient: "Every gradient was zero, so the attack had no direction: use one without gradients.",
  non_finite_gradient: "A gradient had values that are NaN or infinite; they counted as 0.",
  non_finite_logits: "At a point within reach the model answered NaN or infinity, which counted as no prediction.",
  randomised: "The model answered the same image in two ways: average gradients with eot.",
  softmax_at_the_end: "The model answers probabilities, not logits: register it without its softmax.",
  saturated_output: "A confidence was rounded to 0 or 1, which leaves no gradient: use an attack without gradients.",
  below_one_level: "eps is smaller than one level of one value, so no PNG but the original is within reach. Nothing was queried.",
  black_box_beats_white_box: "Square found what the gradients did not show: distrust gradient-based attacks on this model.",
  deadline_exceeded: "The deadline passed before the attack's end; this is the best that it had found until then.",
};

/** A sentence for each sign in an attack's result; a code that is not known here is shown itself. */
export const diagnosticNotes = ({diagnostics = [], outcome, stopped_by: stopped}) =>
  (outcome && stopped ? [...diagnostics, stopped] : diagnostics).map((code) => SENTENCES[code] ?? code);
