// Quantities by token x layer, and by layer x head beside it on the same rows.
const DIFFERENCE = { name: "difference", label: "Difference" }; // second answer minus the first

function buildPanels() {
  const rows = [...run.variants, ...(canDiffer() ? [DIFFERENCE] : [])];
  const made = rows.map((variant) => node("div", { class: "pair", "data-variant": variant.name },
    panel("time", variant, "token × layer"), panel("heads", variant, "layer × head")));
  $(".panels .pairs").replaceChildren(...made);
}

function panel(kind, variant, words) {
  const canvas = node("canvas", { role: "img", "aria-label": `${variant.label}, ${words}`, "data-testid": `${kind}-${variant.name}` });
  const axis = node("div", { class: "axis", "aria-hidden": "true" });
  const made = node("div", { class: `panel ${kind}` },
    node("div", { class: "caption" }, node("b", {}, run.variants.length > 1 ? variant.label : ""), node("span", { class: "what" }, words),
      node("span", { class: "key", "data-testid": `key-${kind}-${variant.name}` }, node("output", {}), node("canvas", { width: 64, height: 1 }), node("output", {}))),
    node("div", { class: "grid" }, axis, node("div", { class: "plot" }, canvas, node("div", { class: "frame" })),
      node("div", { class: "axis across", "aria-hidden": "true" })),
    node("p", { class: "read" }));
  canvas.addEventListener("pointermove", (event) => readPanel(kind, variant, made, panelCell(event, canvas, kind, variant)));
  canvas.addEventListener("pointerleave", () => readPanel(kind, variant, made, null));
  canvas.addEventListener("click", (event) => pickPanel(kind, variant, panelCell(event, canvas, kind, variant), event.shiftKey));
  return made;
}

function panelCell(event, canvas, kind, variant) {
  const r = canvas.getBoundingClientRect(), across = kind === "time" ? longest() : run.H;
  return {
    x: clamp(Math.floor(((event.clientX - r.left) / r.width) * across), 0, across - 1),
    l: clamp(Math.floor(((event.clientY - r.top) / r.height) * run.L), 0, run.L - 1),
  };
}

// A click selects the cell; a second click on it selects all again.
function pickPanel(kind, variant, { x, l }, extend) {
  const oneLayer = view.l0 === l && view.l1 === l;
  if (kind === "time") {
    const [t0, t1] = chosenOn(variant), same = t0 === x && t1 === x && oneLayer;
    view.picked = null;
    [view.l0, view.l1] = same ? [0, run.L - 1] : extend ? [Math.min(view.l0, l), Math.max(view.l1, l)] : [l, l];
    selectTokens(x, extend ? t0 : x, null, view.part, variant === DIFFERENCE ? null : variant.name);
    return;
  }
  const same = oneLayer && view.h0 === x && view.h1 === x;
  view.picked = null;
  if (same) [view.l0, view.l1, view.h0, view.h1] = [0, run.L - 1, 0, run.H - 1];
  else if (extend) {
    [view.l0, view.l1] = [Math.min(view.l0, l), Math.max(view.l1, l)];
    [view.h0, view.h1] = [Math.min(view.h0, x), Math.max(view.h1, x)];
  } else [view.l0, view.l1, view.h0, view.h1] = [l, l, x, x];
  repaint();
}

const amount = (x, quantity) => (quantity === "entropy" ? `${x.toFixed(2)} nats` : percent(x));

let grids = {}; // the panels' values, for their read-outs: (across, layer) -> value, or null

function paintPanels() {
  grids = {};
  const q = view.quantity, single = q === "box" ? "image" : q, whole = q === "sink" ? 1 : null; // this share goes up to 100 %
  for (const variant of sides()) {
    const span = shown.spans[variant.name], time = tokenLayer(variant, q), heads = span ? layerHead(variant, span[0], span[1], single) : null;
    grids[variant.name] = {
      time: (x, l) => (x < variant.T ? time[x * run.L + l] : null), // both sides over the same tokens, one below the other
      heads: (x, l) => (heads ? heads[l * run.H + x] : null),
      from: { time: [time], heads: [variant, single, ...(span || [null])] }, // what these depend on
    };
  }
  const names = sides().map((variant) => variant.name), differ = view.difference && canDiffer() && !view.four;
  if (differ) {
    const [first, second] = names.map((name) => grids[name]), both = (kind) => [...first.from[kind], ...second.from[kind]];
    const minus = (kind) => (x, l) => {
      const a = first[kind](x, l), b = second[kind](x, l);
      return a == null || b == null ? null : b - a;
    };
    grids.difference = { time: minus("time"), heads: minus("heads"), from: { time: both("time"), heads: both("heads") } };
  }
  const chosen = sides().map((variant) => shown.spans[variant.name]).find(Boolean);
  for (const [kind, across] of [["time", longest()], ["heads", run.H]]) {
    const top = whole || largest(names, kind, across), most = differ ? largest(["difference"], kind, across) : 0;
    for (const pair of element.querySelectorAll(".pair")) {
      const name = pair.dataset.variant, signed = name === "difference", made = pair.querySelector("." + kind);
      if (pair.hidden !== !grids[name]) pair.hidden = !grids[name];
      if (pair.hidden) continue;
      const span = signed ? chosen : shown.spans[name];
      const ranges = view.picked ? null : { x0: view.h0, x1: view.h1 };
      const frame = kind === "heads" ? ranges : span && { x0: span[0], x1: span[1] };
      if (kind === "time") write(made.querySelector(".what"), `${view.part === "prompt" ? "prompt " : ""}token × layer`);
      const high = signed ? most : top, low = signed ? -high : 0, table = COLOURS[signed ? "coolwarm" : view.colours];
      const canvas = made.querySelector("canvas[role=img]"), place = (value) => (high > low ? (value - low) / (high - low) : signed ? 0.5 : 0);
      if (changed(canvas, [run, across, low, high, table, ...grids[name].from[kind]])) drawGrid(canvas, across, grids[name][kind], place, table);
      frameGrid(made, across, frame);
      if (kind === "heads") markPicked(made);
      paintKey(made.querySelector(".key"), table, signed ? `−${amount(high, q)}` : amount(0, q), amount(high, q));
      paintAxes(made, across, kind === "heads" ? run.heads : null);
    }
  }
  for (const button of element.querySelectorAll(".quantity button")) {
    mark(button, "aria-pressed", button.dataset.value === q);
    if (button.dataset.value === "box" && button.disabled !== !view.box) button.disabled = !view.box;
  }
  write($(".panels .range"), (q === "box" ? "layer × head: image share" : "") +
    (differ ? `${q === "box" ? "; " : ""}difference: ${run.variants[1].label} − ${run.variants[0].label}` : ""));
}

function largest(names, kind, across) {
  let top = 0;
  for (const name of names)
    for (let x = 0; x < across; x++)
      for (let l = 0; l < run.L; l++) top = Math.max(top, Math.abs(grids[name][kind](x, l) || 0));
  return top;
}

function drawGrid(canvas, across, value, place, table) {
  const down = run.L;
  if (canvas.width !== Math.max(1, across) || canvas.height !== down) Object.assign(canvas, { width: Math.max(1, across), height: down });
  const ink = canvas.getContext("2d"), pixels = ink.createImageData(canvas.width, down);
  for (let y = 0; y < down; y++)
    for (let x = 0; x < across; x++) {
      const here = value(x, y);
      if (here == null) continue; // this answer has no such token: blank
      const i = (y * across + x) * 4, q = Math.round(clamp(place(here), 0, 1) * 255) * 3;
      for (let c = 0; c < 3; c++) pixels.data[i + c] = table[q + c];
      pixels.data[i + 3] = 255;
    }
  ink.putImageData(pixels, 0, 0);
  canvas.parentElement.style.setProperty("--down", down);
}

// The frame of the selection.
function frameGrid(panelNode, across, chosen) {
  const frame = panelNode.querySelector(".frame"), down = run.L;
  if (!changed(frame, chosen ? [across, down, chosen.x0, chosen.x1, view.l0, view.l1] : [])) return;
  frame.hidden = !chosen;
  if (!chosen) return;
  const part = { left: chosen.x0 / across, top: view.l0 / down, width: (chosen.x1 - chosen.x0 + 1) / across, height: (view.l1 - view.l0 + 1) / down };
  for (const [side, size] of Object.entries(part)) frame.style[side] = `${100 * size}%`;
}

// The frames of single heads.
function markPicked(panelNode) {
  const plot = panelNode.querySelector(".plot"), size = `width:${100 / run.H}%;height:${100 / run.L}%`;
  for (const old of plot.querySelectorAll(".pick")) old.remove();
  if (!view.picked) return;
  plot.append(...pairSlots().map(([l, h]) => node("div", { class: "frame pick", style: `left:${(100 * h) / run.H}%;top:${(100 * l) / run.L}%;${size}` })));
}

function paintKey(key, table, low, high) {
  const canvas = key.querySelector("canvas");
  if (changed(canvas, [table])) paintTable(canvas, table);
  write(key.firstChild, low);
  write(key.lastChild, high);
}

// Axis numbers, each at the middle of its cell: token indices, and the model's own layer and head numbers.
function paintAxes(panelNode, across, heads) {
  if (!changed(panelNode, [across, heads])) return;
  const put = (axis, count, most, words) => {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => count / n <= most) || 5000, marks = [];
    for (let k = 0; k < count; k += step) marks.push(node("span", { style: `--at:${(k + 0.5) / count}` }, words(k)));
    axis.replaceChildren(...marks);
  };
  put(panelNode.querySelector(".axis"), run.L, Math.min(7, Math.max(2, run.L)), (k) => `${run.layers[k]}`);
  put(panelNode.querySelector(".across"), across, heads ? 8 : 12, (k) => (heads && heads[k] < 0 ? "mean" : `${heads ? heads[k] : k}`));
}

function readPanel(kind, variant, panelNode, at) {
  const line = panelNode.querySelector(".read"), value = at && grids[variant.name] && grids[variant.name][kind](at.x, at.l);
  if (value == null) {
    line.textContent = "";
    return;
  }
  const quantity = kind === "heads" && view.quantity === "box" ? "image" : view.quantity;
  const sign = variant === DIFFERENCE ? (value < 0 ? "−" : "+") : "", valueText = sign + amount(sign ? Math.abs(value) : value, quantity);
  const side = sides()[Math.max(0, run.variants.indexOf(variant))];
  line.textContent = kind === "time" ? `token ${at.x} ${quoted(side.tokens[at.x].t)} · layer ${run.layers[at.l]} · ${valueText}`
    : `layer ${run.layers[at.l]} · ${headWords(run.heads[at.x])} · ${valueText}`;
}
