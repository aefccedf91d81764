// Where in the model it happens: token x layer, and layer x head beside it on the same rows.
const QUANTITIES = { image: "image share", sink: "sink share", entropy: "entropy", box: "on the box" };

function buildPanels() {
  const made = run.variants.map((variant) => node("div", { class: "pair", "data-variant": variant.name },
    panel("time", variant, "token × layer"), panel("heads", variant, "layer × head")));
  $(".panels .pairs").replaceChildren(...made);
}

function panel(kind, variant, words) {
  const canvas = node("canvas", { role: "img", "aria-label": `${variant.label}, ${words}`, "data-testid": `${kind}-${variant.name}` });
  const axis = node("div", { class: "axis", "aria-hidden": "true" });
  const made = node("div", { class: `panel ${kind}` },
    node("div", { class: "caption" }, node("b", {}, run.variants.length > 1 ? variant.label : ""), node("span", { class: "what" }, words)),
    node("div", { class: "grid" }, axis, node("div", { class: "plot" }, canvas, node("div", { class: "frame" }))),
    node("p", { class: "read" }));
  canvas.addEventListener("pointermove", (event) => readPanel(kind, variant, made, panelCell(event, canvas, kind, variant)));
  canvas.addEventListener("pointerleave", () => readPanel(kind, variant, made, null));
  canvas.addEventListener("click", (event) => pickPanel(kind, panelCell(event, canvas, kind, variant), event.shiftKey));
  return made;
}

function panelCell(event, canvas, kind, variant) {
  const r = canvas.getBoundingClientRect(), across = kind === "time" ? longest() : run.H;
  return {
    x: clamp(Math.floor(((event.clientX - r.left) / r.width) * across), 0, across - 1),
    l: clamp(Math.floor(((event.clientY - r.top) / r.height) * run.L), 0, run.L - 1),
  };
}

// A click goes there; a second click on the same place goes back to all.
function pickPanel(kind, { x, l }, extend) {
  const oneLayer = view.l0 === l && view.l1 === l;
  if (kind === "time") {
    const same = view.t0 === x && view.t1 === x && oneLayer;
    [view.l0, view.l1] = same ? [0, run.L - 1] : extend ? [Math.min(view.l0, l), Math.max(view.l1, l)] : [l, l];
    selectTokens(x, extend ? view.t0 : x);
    return;
  }
  const same = oneLayer && view.h0 === x && view.h1 === x;
  if (same) [view.l0, view.l1, view.h0, view.h1] = [0, run.L - 1, 0, run.H - 1];
  else if (extend) {
    [view.l0, view.l1] = [Math.min(view.l0, l), Math.max(view.l1, l)];
    [view.h0, view.h1] = [Math.min(view.h0, x), Math.max(view.h1, x)];
  } else [view.l0, view.l1, view.h0, view.h1] = [l, l, x, x];
  repaint();
}

const amount = (x, quantity) => (quantity === "entropy" ? `${x.toFixed(2)} nats` : percent(x));

let grids = {}; // what the panels show, for their read-outs

function paintPanels() {
  grids = {};
  const q = view.quantity, single = q === "box" ? "image" : q;
  let topTime = 0, topHeads = 0;
  for (const variant of sides()) {
    const span = shown.spans[variant.name];
    const time = tokenLayer(variant, q), heads = span ? layerHead(variant, span[0], span[1], single) : null;
    grids[variant.name] = { time, heads };
    for (const x of time) topTime = Math.max(topTime, x);
    if (heads) for (const x of heads) topHeads = Math.max(topHeads, x);
  }
  const whole = q === "sink" ? 1 : null; // a share of shares always runs to 100 %
  for (const variant of sides()) {
    const { time, heads } = grids[variant.name], pair = $(`.pair[data-variant="${variant.name}"]`);
    const span = shown.spans[variant.name];
    // Both sides over the same time axis, so that their tokens stand below each other.
    const at = (x, l) => (x < variant.T ? time[x * run.L + l] : null);
    pair.querySelector(".time .what").textContent = `${view.part === "prompt" ? "prompt " : ""}token × layer`;
    drawGrid(pair.querySelector(".time"), longest(), run.L, at, whole || topTime,
      span && { x0: span[0], x1: span[1], y0: view.l0, y1: view.l1 });
    drawGrid(pair.querySelector(".heads"), run.H, run.L, (x, l) => (heads ? heads[l * run.H + x] : 0), whole || topHeads,
      { x0: view.h0, x1: view.h1, y0: view.l0, y1: view.l1 });
  }
  for (const button of element.querySelectorAll(".quantity button")) {
    button.setAttribute("aria-pressed", button.dataset.value === q);
    if (button.dataset.value === "box") button.disabled = !view.box;
  }
  $(".panels .range").textContent = `0 – ${amount(whole || topTime, q)}` +
    (q === "box" ? "; layer × head: image share" : "") + `; ${view.colours}`;
}

function drawGrid(panelNode, across, down, value, top, chosen) {
  const canvas = panelNode.querySelector("canvas"), table = COLOURS[view.colours];
  canvas.width = Math.max(1, across);
  canvas.height = down;
  const ink = canvas.getContext("2d"), pixels = ink.createImageData(canvas.width, down);
  for (let y = 0; y < down; y++)
    for (let x = 0; x < across; x++) {
      const here = value(x, y), q = Math.round(clamp(top > 0 ? here / top : 0, 0, 1) * 255) * 3;
      if (here == null) continue; // this answer has no such token: leave it blank
      const i = (y * across + x) * 4;
      for (let c = 0; c < 3; c++) pixels.data[i + c] = table[q + c];
      pixels.data[i + 3] = 255;
    }
  ink.putImageData(pixels, 0, 0);
  const plot = panelNode.querySelector(".plot");
  plot.style.setProperty("--down", down);
  plot.style.setProperty("--across", Math.max(1, across));
  const frame = panelNode.querySelector(".frame");
  frame.hidden = !chosen;
  if (chosen) {
    const place = { left: chosen.x0 / across, top: chosen.y0 / down, width: (chosen.x1 - chosen.x0 + 1) / across,
      height: (chosen.y1 - chosen.y0 + 1) / down };
    for (const [side, part] of Object.entries(place)) frame.style[side] = `${100 * part}%`;
  }
  const labels = [run.layers[0], run.layers[down - 1]];
  panelNode.querySelector(".axis").replaceChildren(...labels.slice(0, down > 1 ? 2 : 1).map((n) => node("span", {}, String(n))));
}

function readPanel(kind, variant, panelNode, at) {
  const line = panelNode.querySelector(".read"), grid = grids[variant.name];
  if (!at || !grid || !grid[kind]) {
    line.textContent = "";
    return;
  }
  const layer = run.layers[at.l];
  if (kind === "time") {
    const token = sides()[run.variants.indexOf(variant)].tokens[at.x];
    line.textContent = token
      ? `token ${at.x} ${quoted(token.t)} · layer ${layer} · ${amount(grid.time[at.x * run.L + at.l], view.quantity)}` : "";
  } else {
    const single = view.quantity === "box" ? "image" : view.quantity;
    line.textContent = `layer ${layer} · ${headWords(run.heads[at.x])} · ${amount(grid.heads[at.l * run.H + at.x], single)}`;
  }
}
