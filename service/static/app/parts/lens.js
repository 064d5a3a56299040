// Shared zoom and position of several canvases that show images of the same size.

const MAX_ZOOM = 32; // screen pixels per pixel of the image
const GRID_FROM = 10;
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const ZOOMS = {"+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0};

export class Lens {
  /** `panes` are `{canvas, source}`, drawn after a change only; `onPoint(x, y)` gets the pixel under the pointer. */
  constructor({width, height}, element, panes, onPoint) {
    Object.assign(this, {width, height, element, panes, onPoint, zoom: 0, minZoom: 0, point: null, fingers: new Map()});
    for (const {canvas} of panes) {
      canvas.style.setProperty("--ratio", clamp(width / height, 0.5, 4));
      this.#listen(canvas);
    }
    element.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#resize()).observe(panes[0].canvas);
  }

  redraw() {
    this.due ??= requestAnimationFrame(() => ((this.due = null), this.paneSize && this.#draw()));
  }

  fit() {
    this.zoomBy(0);
  }

  /** Zoom, keeping fixed the point at this offset from the center of a pane, in screen pixels. */
  zoomBy(factor, dx = 0, dy = 0) {
    const [x, y] = this.#toImage(dx, dy);
    this.zoom = clamp(this.zoom * factor, this.minZoom, Math.max(MAX_ZOOM, this.minZoom));
    this.#centerOn(x - dx / this.zoom, y - dy / this.zoom);
  }

  #toImage = (dx, dy) => [this.x + dx / this.zoom, this.y + dy / this.zoom];

  /** Center this point of the image, as far as that leaves no empty margin. */
  #centerOn(x, y) {
    const [across, down] = this.paneSize;
    this.x = clampCenter(x, this.width, across / this.zoom);
    this.y = clampCenter(y, this.height, down / this.zoom);
    this.element.classList.toggle("zoomed", this.zoom > this.minZoom);
    this.redraw();
  }

  #listen(canvas) {
    const on = (types, listener, options) => {
      for (const type of types.split(" ")) canvas.addEventListener(type, listener, options);
    };
    const from = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    };
    on("wheel", (event) => {
      // When the whole image is visible, the wheel scrolls the page.
      if (event.deltaY > 0 && this.zoom <= this.minZoom) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...from(event));
    }, {passive: false});
    on("dblclick", (event) => this.zoomBy(event.shiftKey ? 0.4 : 2.5, ...from(event)));
    on("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, from(event));
      this.#readAt(...from(event));
    });
    on("pointermove", (event) => this.#move(event.pointerId, from(event)));
    on("pointerup pointercancel", (event) => this.fingers.delete(event.pointerId));
  }

  /** One finger or a pressed button drags the image, two fingers zoom; otherwise the pixel under the pointer is read. */
  #move(id, [dx, dy]) {
    const before = this.fingers.get(id);
    if (!before) return this.#readAt(dx, dy);
    const other = [...this.fingers].find(([one]) => one !== id)?.[1];
    this.fingers.set(id, [dx, dy]);
    if (!other) return this.#centerOn(this.x - (dx - before[0]) / this.zoom, this.y - (dy - before[1]) / this.zoom);
    const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
    this.zoomBy(apart([dx, dy]) / apart(before), (dx + other[0]) / 2, (dy + other[1]) / 2);
  }

  #readAt(dx, dy) {
    const [x, y] = this.#toImage(dx, dy).map(Math.floor);
    if (x >= 0 && y >= 0 && x < this.width && y < this.height) this.#selectPixel(x, y);
  }

  #selectPixel(x, y) {
    if (String(this.point) === String([x, y])) return;
    this.point = [x, y];
    this.onPoint(x, y);
    this.redraw();
  }

  /** Arrow keys move from pixel to pixel (with Shift by ten), and the image scrolls along. */
  #key(event) {
    const arrow = ARROWS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !(arrow || event.key in ZOOMS)) return;
    event.preventDefault();
    if (!arrow) return this.zoomBy(ZOOMS[event.key]);
    const stride = event.shiftKey ? 10 : 1;
    const [x, y] = this.point ?? [this.x, this.y].map(Math.floor);
    this.#selectPixel(clamp(x + stride * arrow[0], 0, this.width - 1), clamp(y + stride * arrow[1], 0, this.height - 1));
    this.#centerOn(this.point[0] + 0.5, this.point[1] + 0.5);
  }

  #resize() {
    const {clientWidth, clientHeight} = this.panes[0].canvas;
    if (!clientWidth) return;
    const whole = this.zoom <= this.minZoom;
    this.paneSize = [clientWidth, clientHeight];
    this.minZoom = Math.min(clientWidth / this.width, clientHeight / this.height);
    if (whole) Object.assign(this, {zoom: this.minZoom, x: this.width / 2, y: this.height / 2});
    for (const {canvas} of this.panes) {
      Object.assign(canvas, {width: clientWidth * devicePixelRatio, height: clientHeight * devicePixelRatio});
    }
    this.zoomBy(1);
  }

  #draw() {
    const size = this.zoom * devicePixelRatio;
    for (const {canvas, source} of this.panes) {
      const context = canvas.getContext("2d");
      const [left, top] = [canvas.width / 2 - this.x * size, canvas.height / 2 - this.y * size].map(Math.round);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.imageSmoothingEnabled = size < 1;
      context.drawImage(source, left, top, this.width * size, this.height * size);
      if (this.zoom >= GRID_FROM) drawGrid(context, size, left, top, this);
      if (this.point) drawMarker(context, size, left, top, this.point);
    }
  }
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/** The closest center that leaves no empty margin. */
const clampCenter = (center, size, visible) => (visible >= size ? size / 2 : clamp(center, visible / 2, size - visible / 2));

function drawGrid(context, size, left, top, {width, height}) {
  const {canvas} = context;
  context.fillStyle = "rgb(128 128 128 / 45%)";
  for (let i = Math.max(0, Math.ceil(-left / size)); i <= width && left + i * size <= canvas.width; i++) {
    context.fillRect(Math.round(left + i * size), top, 1, height * size);
  }
  for (let i = Math.max(0, Math.ceil(-top / size)); i <= height && top + i * size <= canvas.height; i++) {
    context.fillRect(left, Math.round(top + i * size), width * size, 1);
  }
}

/** A frame around a pixel that is visible on any color. */
function drawMarker(context, size, left, top, [x, y]) {
  const side = Math.max(size, 9);
  for (const [color, line] of [["black", 3], ["white", 1]]) {
    Object.assign(context, {strokeStyle: color, lineWidth: line});
    context.strokeRect(left + (x + 0.5) * size - side / 2, top + (y + 0.5) * size - side / 2, side, side);
  }
}
