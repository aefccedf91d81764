// The Sinks tab (web/sinks/payload.py makes its data). Texts reach the page only as text.
const { node, percent, COLOURS, unzip, unpack, drawSink, sameOrigin, loadImage, clamp } = document.querySelector("#inspector .scope").parentElement.inspector.tools;
const $ = (selector) => element.querySelector(selector), root = $(".finder");
let data = null; // the result on screen: header and arrays
let photo = null, coming = null;
const view = { sample: 0, layer: 0, tau: 0, cursor: null };

function table({ columns, rows }, kept = [], why = []) {
  return node("table", {}, node("thead", {}, node("tr", {}, ...columns.map((text) => node("th", { scope: "col" }, text)))),
    node("tbody", {}, ...rows.map((row, i) => node("tr", { class: kept[i] ? "kept" : null, title: why[i] },
      ...row.map((text, k) => node(k ? "td" : "th", k ? {} : { scope: "row" }, text))))));
}

function box(mark, x0, y0, x1, y1) { // as fractions of the image
  for (const [side, part] of Object.entries({ left: x0, top: y0, width: x1 - x0, height: y1 - y0 })) mark.style[side] = `${100 * part}%`;
}

// A matrix of down x across values with its axes, colour bar and read-out. If values share a pixel on a narrow screen, the
// largest is shown, so that no single sink is lost.
// `at` maps a value to 0 to 1; `point` is called with the position of pointer or keys, `pick` with the choice.
function matrix(host, { label, across, down, value, at, ticks, rows, under, each, words, read, point, pick }) {
  const canvas = node("canvas"), cell = node("i", { class: "spot", hidden: true }), row = node("i", { class: "spot row", hidden: true });
  const plot = node("div", { class: "plot", tabindex: 0, role: "img", "aria-label": `${label}. Arrow keys read it, Enter chooses.`, style: `--down:${down}` }, canvas, row, cell);
  const line = node("p", { class: "read", "aria-live": "polite" }), key = node("canvas", { width: 256, height: 1 }), right = node("div", { class: "axis" });
  const paint = (ink, wide, high, shade) => {
    const pixels = ink.createImageData(wide, high), d = pixels.data;
    for (let i = 0; i < wide * high; i++) {
      const x = shade(i % wide, Math.floor(i / wide)), q = 3 * Math.round(255 * clamp(x, 0, 1));
      if (x == null) continue; // blank
      for (let k = 0; k < 3; k++) d[4 * i + k] = COLOURS.viridis[q + k];
      d[4 * i + 3] = 255;
    }
    ink.putImageData(pixels, 0, 0);
  };
  host.replaceChildren(node("div", { class: "grid" }, node("div", { class: "axis" }, ...rows.map((text) => node("span", {}, text))), plot, right,
    node("div", { class: each ? "under each" : "under" }, ...under.map((text) => node("span", {}, text)))),
    node("div", { class: "key" }, node("span", {}, ticks[0]), key, node("span", {}, ticks[1])), node("p", { class: "read" }, words), line);
  const wide = Math.min(across, Math.max(300, Math.round((plot.clientWidth || 600) * (window.devicePixelRatio || 1))));
  Object.assign(canvas, { width: wide, height: down });
  paint(canvas.getContext("2d"), wide, down, (x, y) => {
    let most = null;
    for (let i = Math.floor((x * across) / wide); i < Math.ceil(((x + 1) * across) / wide); i++) {
      const here = value(i, y);
      if (here != null && (most == null || here > most)) most = here;
    }
    return most == null ? null : at(most);
  });
  paint(key.getContext("2d"), 256, 1, (x) => x / 255);
  let here = null;
  const go = (x, y) => {
    here = x == null ? null : [clamp(x, 0, across - 1), clamp(y, 0, down - 1)];
    made.show(...(here || []));
    if (point) point(...(here || [null]));
  };
  const made = { right, show(x, y) {
    cell.hidden = x == null;
    if (x != null) box(cell, x / across, y / down, (x + 1) / across, (y + 1) / down);
    line.textContent = x == null ? "" : read(x, y);
  }, choose(y) {
    row.hidden = y == null;
    if (y != null) box(row, 0, y / down, 1, (y + 1) / down);
  } };
  const under0 = (event) => {
    const r = plot.getBoundingClientRect();
    go(Math.floor(((event.clientX - r.left) / r.width) * across), Math.floor(((event.clientY - r.top) / r.height) * down));
  };
  plot.addEventListener("pointermove", under0);
  plot.addEventListener("pointerleave", () => go(null));
  plot.addEventListener("click", (event) => { under0(event); if (pick) pick(here[1]); });
  keys(plot, across, (step) => { const [x, y] = here || [0, 0]; go(clamp(x + (step % across), 0, across - 1), y + Math.trunc(step / across)); }, () => here && pick && pick(here[1]));
  return made;
}

// Arrow keys as steps over cells in row-major order.
function keys(stage, across, move, enter) {
  stage.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (step) move(step);
    else if (event.key === "Enter" || event.key === " ") enter();
    else return;
    event.preventDefault();
  };
}
