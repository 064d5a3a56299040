// The image of a job: dropped, pasted, chosen, or a sample.

import {send} from "../api.js";
import {fill, h} from "../dom.js";
import {bytes} from "../format.js";

const TINY = 64; // pixels: smaller images are shown pixelated, not smoothed

/**
 * The image field. `current()` is the image, `{blob, name, …source}`, whose blob may be a promise; `onChange` is called for
 * each new one; `load` takes one from the service; `sortFor` moves the samples that fit a model's input to the front,
 * `bestFor` returns them.
 */
export function imagePicker(samples, onChange, signal) {
  let current = {};
  const view = h("div.view#image-view");
  const wrong = h("p.wrong#image-wrong");
  const how = h("span.hint#image-how", {}, h("b", {}, "Choose an image"), ", drop or paste one");
  const labels = {"aria-labelledby": "image-how", "aria-describedby": "image-view image-wrong"};
  const input = h("input.unseen", {id: "image", type: "file", accept: "image/*", ...labels});
  const zone = h("label.zone", {}, view, input, how);
  const sampleList = h("div.samples");
  const thumbs = samples.map((sample) => thumb(sample, () => load(sample.href, {sample: sample.name}), signal));
  const showError = (message) => fill(wrong, message);

  async function take(image) {
    current = image;
    showError("");
    for (const {radio} of thumbs) radio.checked = radio.value === image.sample;
    onChange();
    try {
      const blob = await image.blob;
      if (current === image) preview(view, {...image, blob}, signal);
    } catch (error) {
      if (current === image && error.name !== "AbortError") showError(error.message);
    }
  }

  const load = (path, source) => take({blob: blobOf(path, signal), name: path.split("/").pop(), ...source});
  const takeFile = (file) => file && take({blob: file, name: file.name});
  input.addEventListener("change", () => takeFile(input.files[0]));
  acceptFiles(zone, takeFile, signal);
  const sortFor = (model) => fill(sampleList, thumbs.toSorted((a, b) => mismatch(a, model) - mismatch(b, model)).map(({element}) => element));
  const bestFor = (model) => {
    const least = Math.min(...samples.map((one) => mismatch(one, model)));
    return samples.filter((one) => mismatch(one, model) === least);
  };
  const element = h(
    "section.card",
    {"aria-label": "Image"},
    h("h2.unseen", {}, "Image"),
    zone,
    wrong,
    samples.length > 0 && h("fieldset", {}, h("legend.hint", {}, "or take a sample"), sampleList),
  );
  return {element, load, sortFor, bestFor, showError, input: () => input, current: () => current};
}

const mismatch = (sample, model) => 2 * (sample.channels !== model.channels) + (sample.width !== model.width);

const blobOf = async (path, signal) => (await send(path, {signal})).blob();

function urlOf(blob, signal) {
  const url = URL.createObjectURL(blob);
  signal.addEventListener("abort", () => URL.revokeObjectURL(url), {once: true});
  return url;
}

function preview(view, {blob, name}, signal) {
  const size = h("span", {}, bytes(blob.size));
  const showSize = () => {
    image.classList.toggle("tiny", image.naturalWidth <= TINY);
    size.prepend(`${image.naturalWidth} × ${image.naturalHeight}, `);
  };
  const showMissing = () => image.replaceWith(h("span.preview.hint", {}, "No preview: the browser cannot show this file."));
  const image = h("img.preview", {src: urlOf(blob, signal), alt: "", onload: showSize, onerror: showMissing});
  fill(view, image, h("div.row", {}, h("span.clip", {title: name}, name), size));
}

function thumb({name, title, thumbnail, width, channels}, chosen, signal) {
  const image = h("img", {alt: "", class: width <= TINY ? "tiny" : ""});
  const radio = h("input", {type: "radio", name: "sample", value: name, "aria-label": title, onchange: chosen});
  blobOf(thumbnail, signal).then((blob) => (image.src = urlOf(blob, signal)), () => {});
  return {channels, width, radio, element: h("label", {title}, radio, image)};
}

/** Accept files that are dropped anywhere on the page, or pasted. */
function acceptFiles(zone, take, signal) {
  const drag = (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
    take(event.dataTransfer.files[0]);
  };
  for (const type of ["dragover", "drop"]) document.addEventListener(type, drag, {signal});
  document.addEventListener("dragleave", () => zone.classList.remove("over"), {signal});
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]), {signal});
}
