// The image of a job: dropped, pasted, chosen, or one of the samples.

import {send} from "../api.js";
import {fill, h} from "../dom.js";
import {bytes} from "../format.js";

const TINY = 64; // pixels: a smaller image is shown with them, not smoothed

/**
 * The picker. `current()` is the image, `{blob, name, …marks}`, whose bytes may be on their way; `changed` hears of another
 * one; `load` takes one from the service; `offer` shows the samples that suit a model's input first, `best` lists them.
 */
export function picture(samples, changed, signal) {
  let current = {};
  const view = h("div.view#image-view");
  const wrong = h("p.wrong#image-wrong");
  const how = h("span.hint#image-how", {}, h("b", {}, "Choose an image"), ", drop or paste one");
  const about = {"aria-labelledby": "image-how", "aria-describedby": "image-view image-wrong"};
  const input = h("input.unseen", {id: "image", type: "file", accept: "image/*", ...about});
  const zone = h("label.zone", {}, view, input, how);
  const strip = h("div.strip");
  const thumbs = samples.map((sample) => thumb(sample, () => load(sample.href, {sample: sample.name}), signal));
  const tell = (message) => fill(wrong, message);

  async function take(image) {
    current = image;
    tell("");
    for (const {radio} of thumbs) radio.checked = radio.value === image.sample;
    changed();
    try {
      const blob = await image.blob;
      if (current === image) preview(view, {...image, blob}, signal);
    } catch (error) {
      if (current === image && error.name !== "AbortError") tell(error.message);
    }
  }

  const load = (path, marks) => take({blob: blobOf(path, signal), name: path.split("/").pop(), ...marks});
  const own = (file) => file && take({blob: file, name: file.name});
  input.addEventListener("change", () => own(input.files[0]));
  receive(zone, own, signal);
  const offer = (model) => fill(strip, thumbs.toSorted((a, b) => misfit(a, model) - misfit(b, model)).map(({element}) => element));
  const best = (model) => {
    const least = Math.min(...samples.map((one) => misfit(one, model)));
    return samples.filter((one) => misfit(one, model) === least);
  };
  const element = h(
    "section.card",
    {"aria-label": "Image"},
    h("h2.unseen", {}, "Image"),
    zone,
    wrong,
    samples.length > 0 && h("fieldset", {}, h("legend.hint", {}, "or take a sample"), strip),
  );
  return {element, load, offer, best, tell, input: () => input, current: () => current};
}

const misfit = (sample, model) => 2 * (sample.channels !== model.channels) + (sample.width !== model.width);

const blobOf = async (path, signal) => (await send(path, {signal})).blob();

function addressOf(blob, signal) {
  const url = URL.createObjectURL(blob);
  signal.addEventListener("abort", () => URL.revokeObjectURL(url), {once: true});
  return url;
}

function preview(view, {blob, name}, signal) {
  const size = h("span", {}, bytes(blob.size));
  const sized = () => {
    image.classList.toggle("tiny", image.naturalWidth <= TINY);
    size.prepend(`${image.naturalWidth} × ${image.naturalHeight}, `);
  };
  const unseen = () => image.replaceWith(h("span.stage.hint", {}, "No preview: the browser cannot show this file."));
  const image = h("img.stage", {src: addressOf(blob, signal), alt: "", onload: sized, onerror: unseen});
  fill(view, image, h("div.row", {}, h("span.clip", {title: name}, name), size));
}

function thumb({name, title, thumbnail, width, channels}, chosen, signal) {
  const image = h("img", {alt: "", class: width <= TINY ? "tiny" : ""});
  const radio = h("input", {type: "radio", name: "sample", value: name, "aria-label": title, onchange: chosen});
  blobOf(thumbnail, signal).then((blob) => (image.src = addressOf(blob, signal)), () => {});
  return {channels, width, radio, element: h("label", {title}, radio, image)};
}

/** Files dropped anywhere on the page, or pasted. */
function receive(zone, take, signal) {
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
