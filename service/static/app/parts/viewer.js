// Images side by side with shared zoom, down to single pixel values.

import {send} from "../api.js";
import {fill, h} from "../dom.js";
import {Lens} from "./lens.js";

const BLINK_SECONDS = 0.45; // per image: about one flash a second, well below the three of WCAG 2.3.1

/** The decoded pixels of a file: `{width, height, data, gray, canvas}`. */
export async function pixelsOf(path, signal) {
  const blob = await (await send(path, {signal})).blob();
  const [colorType] = new Uint8Array(await blob.slice(25, 26).arrayBuffer());
  const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  const {width, height} = bitmap;
  const canvas = h("canvas", {width, height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  return {width, height, canvas, data: context.getImageData(0, 0, width, height).data, gray: colorType === 0};
}

/** The panes and their controls; `after` may be null. `captions` are nodes for both images. */
export function viewer(before, after, {captions, factor, signal}) {
  const change = after && difference(before, after, factor);
  const panes = [pane("Original", before.canvas, captions[0])];
  if (after) panes.push(pane("Adversarial", after.canvas, captions[1]), pane("Difference", change.canvas, change.times));
  const readout = h("output.readout", {}, "Point at a pixel to read its values.");
  const label = "Images: plus and minus zoom, arrow keys move from pixel to pixel, zero shows the whole image";
  const panesElement = h("div.panes", {role: "group", tabindex: 0, "aria-label": label}, panes.map((one) => one.figure));
  const lens = new Lens(before, panesElement, panes, (x, y) => fill(readout, values(before, after, x, y)));
  const button = (mark, name, onclick) => h("button.icon", {type: "button", "aria-label": name, title: name, onclick}, mark);
  if (after) change.onChange = () => lens.redraw();
  return h("section.card.viewer", {"aria-label": "Images"},
    h("div.row", {},
      button("−", "Zoom out", () => lens.zoomBy(0.5)),
      button("+", "Zoom in", () => lens.zoomBy(2)),
      h("button", {type: "button", onclick: () => lens.fit()}, "Fit"),
      after && blinkButton(lens, panes[1], before, after, signal),
      change?.controls),
    panesElement, readout,
    h("p.hint", {}, "Zoom with wheel, pinch or double click, down to single pixels; drag to move."));
}

function pane(name, source, caption) {
  const canvas = h("canvas", {role: "img", "aria-label": name});
  const title = h("strong", {}, name);
  return {source, canvas, title, figure: h("figure", {}, h("figcaption", {}, title, caption), canvas)};
}

/** A button that alternates both images in one pane; with reduced motion, they change only while it is held down. */
function blinkButton(lens, pane, before, after, signal) {
  const showOriginal = (original) => {
    pane.source = (original ? before : after).canvas;
    pane.title.textContent = original ? "Original" : "Adversarial";
    pane.figure.classList.toggle("swapped", original);
    lens.redraw();
  };
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return holdButton(showOriginal);
  let timer = null;
  const stop = () => (clearInterval(timer), (timer = null), showOriginal(false));
  signal.addEventListener("abort", stop, {once: true});
  const onclick = () => {
    if (timer) stop();
    else timer = setInterval(() => showOriginal(pane.source === after.canvas), 1000 * BLINK_SECONDS);
    button.setAttribute("aria-pressed", Boolean(timer));
  };
  const button = h("button", {type: "button", "aria-pressed": "false", onclick}, "Blink");
  return button;
}

function holdButton(showOriginal) {
  const showAdversarial = () => showOriginal(false);
  const onKey = (original) => ({key}) => [" ", "Enter"].includes(key) && showOriginal(original);
  const ends = {onpointerup: showAdversarial, onpointerleave: showAdversarial, onpointercancel: showAdversarial, onblur: showAdversarial, onkeyup: onKey(false)};
  return h("button", {type: "button", onpointerdown: () => showOriginal(true), onkeydown: onKey(true), ...ends}, "Hold for the original");
}

/** The difference times k, signed on mid-gray or absolute on black. */
function difference(before, after, factor) {
  const canvas = h("canvas", {width: before.width, height: before.height});
  const context = canvas.getContext("2d");
  const image = context.createImageData(before.width, before.height);
  const show = () => {
    paint(image.data, before.data, after.data, Number(slider.value), sign.value === "signed");
    context.putImageData(image, 0, 0);
    part.times.textContent = `× ${slider.value}`;
    part.onChange();
  };
  const slider = h("input", {type: "range", min: 1, max: 127, value: factor, oninput: show});
  const options = Object.entries({signed: "signed, on gray", absolute: "absolute, on black"});
  const sign = h("select", {"aria-label": "Difference shown", onchange: show}, options.map(([value, text]) => h("option", {value}, text)));
  const controls = h("span.row.change", {}, h("label.row", {}, "Difference times", slider), sign);
  const part = {canvas, controls, times: h("span", {}), onChange: () => {}};
  show();
  return part;
}

function paint(into, before, after, k, signed) {
  for (let i = 0; i < into.length; i++) {
    const d = k * (after[i] - before[i]);
    into[i] = i % 4 === 3 ? 255 : signed ? 128 + d : Math.abs(d);
  }
}

/** The values of a pixel: before → after and the difference, by channel. */
function values(before, after, x, y) {
  const at = 4 * (y * before.width + x);
  const names = before.gray ? ["Gray"] : ["R", "G", "B"];
  return [`x ${x}, y ${y}`, names.map((name, i) => {
    const [was, is] = [before.data[at + i], after?.data[at + i]];
    const change = after && [" → ", h("span.is", {}, is), ` (Δ ${is > was ? "+" : is < was ? "−" : ""}${Math.abs(is - was)}/255)`];
    return h("span", {}, name, " ", h("span.was", {}, was), change);
  })];
}
