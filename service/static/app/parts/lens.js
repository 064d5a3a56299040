// One zoom and one place for several canvases that show images of one size.

const CLOSEST = 32; // screen pixels for a pixel of the image
const GRID_FROM = 10;
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const ZOOMS = {"+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0};

export class Lens {
  /** `panes`: `{canvas, source}`, drawn when something changed and never else; `pointed(x, y)` is told the pixel. */
  constructor({width, height}, glass, panes, pointed) {
    Object.assign(this, {width, height, glass, panes, pointed, zoom: 0, least: 0, point: null, fingers: new Map()});
    for (const {canvas} of panes) {
      canvas.style.setProperty("--ratio", clamp(width / height, 0.5, 4));
      this.#listen(canvas);
    }
    glass.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#resize()).observe(panes[0].canvas);
  }

  redraw() {
    this.due ??= requestAnimationFrame(() => ((this.due = null), this.room && this.#draw()));
  }

  fit() {
    this.zoomBy(0);
  }

  /** Zoom, and keep what is at this place (from the middle of a pane, in screen pixels) where it is. */
  zoomBy(factor, dx = 0, dy = 0) {
    const [x, y] = this.#at(dx, dy);
    this.zoom = clamp(this.zoom * factor, this.least, Math.max(CLOSEST, this.least));
    this.#go(x - dx / this.zoom, y - dy / this.zoom);
  }

  #at = (dx, dy) => [this.x + dx / this.zoom, this.y + dy / this.zoom];

  /** Have this point of the image in the middle, unless that would waste room. */
  #go(x, y) {
    const [across, down] = this.room;
    this.x = held(x, this.width, across / this.zoom);
    this.y = held(y, this.height, down / this.zoom);
    this.glass.classList.toggle("zoomed", this.zoom > this.least);
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
      // Where all is seen already, the wheel goes on to move the page.
      if (event.deltaY > 0 && this.zoom <= this.least) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...from(event));
    }, {passive: false});
    on("dblclick", (event) => this.zoomBy(event.shiftKey ? 0.4 : 2.5, ...from(event)));
    on("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, from(event));
      this.#look(...from(event));
    });
    on("pointermove", (event) => this.#move(event.pointerId, from(event)));
    on("pointerup pointercancel", (event) => this.fingers.delete(event.pointerId));
  }

  /** One finger or the pressed mouse moves the image, two zoom it, and none looks. */
  #move(id, [dx, dy]) {
    const before = this.fingers.get(id);
    if (!before) return this.#look(dx, dy);
    const other = [...this.fingers].find(([one]) => one !== id)?.[1];
    this.fingers.set(id, [dx, dy]);
    if (!other) return this.#go(this.x - (dx - before[0]) / this.zoom, this.y - (dy - before[1]) / this.zoom);
    const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
    this.zoomBy(apart([dx, dy]) / apart(before), (dx + other[0]) / 2, (dy + other[1]) / 2);
  }

  #look(dx, dy) {
    const [x, y] = this.#at(dx, dy).map(Math.floor);
    if (x >= 0 && y >= 0 && x < this.width && y < this.height) this.#read(x, y);
  }

  #read(x, y) {
    if (String(this.point) === String([x, y])) return;
    this.point = [x, y];
    this.pointed(x, y);
    this.redraw();
  }

  /** Arrows go from pixel to pixel (with Shift ten at a time), and the image follows. */
  #key(event) {
    const arrow = ARROWS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !(arrow || event.key in ZOOMS)) return;
    event.preventDefault();
    if (!arrow) return this.zoomBy(ZOOMS[event.key]);
    const stride = event.shiftKey ? 10 : 1;
    const [x, y] = this.point ?? [this.x, this.y].map(Math.floor);
    this.#read(clamp(x + stride * arrow[0], 0, this.width - 1), clamp(y + stride * arrow[1], 0, this.height - 1));
    this.#go(this.point[0] + 0.5, this.point[1] + 0.5);
  }

  #resize() {
    const {clientWidth, clientHeight} = this.panes[0].canvas;
    if (!clientWidth) return;
    const whole = this.zoom <= this.least;
    this.room = [clientWidth, clientHeight];
    this.least = Math.min(clientWidth / this.width, clientHeight / this.height);
    if (whole) Object.assign(this, {zoom: this.least, x: this.width / 2, y: this.height / 2});
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
      if (this.zoom >= GRID_FROM) grid(context, size, left, top, this);
      if (this.point) mark(context, size, left, top, this.point);
    }
  }
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/** A middle at which no room is wasted beside the image. */
const held = (middle, size, room) => (room >= size ? size / 2 : clamp(middle, room / 2, size - room / 2));

function grid(context, size, left, top, {width, height}) {
  const {canvas} = context;
  context.fillStyle = "rgb(128 128 128 / 45%)";
  for (let i = Math.max(0, Math.ceil(-left / size)); i <= width && left + i * size <= canvas.width; i++) {
    context.fillRect(Math.round(left + i * size), top, 1, height * size);
  }
  for (let i = Math.max(0, Math.ceil(-top / size)); i <= height && top + i * size <= canvas.height; i++) {
    context.fillRect(left, Math.round(top + i * size), width * size, 1);
  }
}

/** A frame around a pixel that shows on any colour. */
function mark(context, size, left, top, [x, y]) {
  const side = Math.max(size, 9);
  for (const [colour, line] of [["black", 3], ["white", 1]]) {
    Object.assign(context, {strokeStyle: colour, lineWidth: line});
    context.strokeRect(left + (x + 0.5) * size - side / 2, top + (y + 0.5) * size - side / 2, side, side);
  }
}
