// The photo with its map: one figure per variant, and one for their difference.
const picture = { images: [], bases: new Map() };
const tiny = document.createElement("canvas"); // one pixel per patch, scaled up when drawn

function buildFigures() {
  const names = run.variants.map((v) => v.name), labels = Object.fromEntries(run.variants.map((v) => [v.name, v.label]));
  if (names.length > 1) names.push("difference");
  const figures = [...names, "four-0", "four-1", "four-2", "four-3"].map((name, k) => {
    const slot = k - names.length;
    const title = slot < 0 ? node("b", {}, labels[name] || "Difference") : node("label", {}, "Layer ", layerChoice(slot));
    const figure = node("figure", { class: "figure", "data-variant": name, "data-testid": `panel-${name}` },
      node("figcaption", { class: "title" }, title, node("span", { class: "stat" })),
      node("div", { class: "stage", tabindex: 0, role: "img" },
        node("canvas", { class: "map" }), node("canvas", { class: "ink" }),
        node("p", { class: "note", hidden: true })),
      node("p", { class: "patch" }),
      node("div", { class: "scalebar" }, node("canvas", { width: 256, height: 1 }), node("div", { class: "ticks" })),
      node("p", { class: "words" }));
    watchStage(figure.querySelector(".stage"));
    return figure;
  });
  $(".figures").replaceChildren(...figures);
  delete $(".figures").dataset.names; // their sizes are not known yet
}

// Four layers at once: the layer of each of the four figures, initially spread over the depth.
function layerChoice(slot) {
  const change = (event) => {
    view.layers[slot] = +event.target.value;
    repaint();
  };
  return node("select", { onchange: change, "data-testid": `four-layer-${slot}` }, ...run.layers.map((n, l) => node("option", { value: l }, `${n}`)));
}

function fourLayers() {
  if (view.layers.length !== 4 || view.layers.some((l) => !(l < run.L))) {
    view.layers = [0, 1, 2, 3].map((k) => Math.floor(((k + 0.5) * run.L) / 4));
  }
  return view.layers;
}

// The figures on screen except the difference: name, rows, and the figure's own layer (null: as chosen).
const looks = () => (view.four ? fourLayers().map((l, k) => ({ name: `four-${k}`, side: sides().find((v) => v.name === view.four) || sides()[0], l }))
  : sides().map((side) => ({ name: side.name, side, l: null })));
const lookOf = (name) => looks().find((look) => look.name === name) || { name, side: sides()[0], l: null, both: true };

// The answer whose image a figure shows: its own, or for the difference the first one's.
const variantOf = (figure) => lookOf(figure.dataset.variant).side;

// Canvas size in device pixels; the stage itself is sized by CSS from the image's own proportions.
function fit(figure) {
  const stage = figure.querySelector(".stage"), variant = variantOf(figure), image = imageOf(variant);
  if (changed(stage, [image.width / image.height], "ratio")) stage.style.setProperty("--ratio", image.width / image.height);
  stage.wide ||= stage.clientWidth; // reading it after a change would cause a second layout
  const wide = stage.wide, dense = Math.min(2, window.devicePixelRatio || 1);
  const width = Math.max(1, Math.round(wide * dense));
  const height = Math.max(1, Math.round((width * image.height) / image.width));
  for (const canvas of stage.querySelectorAll("canvas")) {
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
  }
  return { ink: stage.querySelector(".map").getContext("2d"), width, height, dense, variant };
}

function forgetSizes() {
  for (const stage of element.querySelectorAll(".stage")) stage.wide = 0;
  fillWindow();
}

// As large as possible with the colour bar still in the window, without scrolling.
const BELOW = 58, LEAST = 240; // px: the read-out and the colour bar; the smallest height of a map
function fillWindow() {
  const title = $(".figure:not([hidden]) .title"), desk = $(".desk");
  if (!title || !desk.offsetParent) return;
  const top = desk.getBoundingClientRect().top + window.scrollY + title.offsetHeight;
  desk.style.setProperty("--free", `${Math.max(LEAST, Math.floor(window.innerHeight - top - BELOW))}px`);
}

// The photo under the map, drawn once for each size and style.
function base(width, height, variant) {
  const photo = variant.photo + variant.images.indexOf(imageOf(variant)), key = `${photo}:${width}x${height}:${view.photo}`;
  if (picture.bases.has(key)) return picture.bases.get(key);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const ink = canvas.getContext("2d");
  ink.fillStyle = "#16181d";
  ink.fillRect(0, 0, width, height);
  if (view.photo !== "none") {
    ink.imageSmoothingQuality = "high";
    ink.drawImage(picture.images[photo], 0, 0, width, height);
  }
  if (view.photo === "dim") {
    ink.globalCompositeOperation = "saturation";
    ink.fillStyle = "hsla(0,0%,50%,.5)";
    ink.fillRect(0, 0, width, height);
    ink.globalCompositeOperation = "source-over";
    ink.fillStyle = "rgba(8,10,16,.26)";
    ink.fillRect(0, 0, width, height);
  }
  if (picture.bases.size > 8) picture.bases.clear();
  picture.bases.set(key, canvas);
  return canvas;
}

function drawMap(size, map, scale, sinks, treated = []) {
  const { ink, width, height, dense } = size, image = imageOf(size.variant);
  const { rows, columns, start } = image;
  ink.globalAlpha = 1;
  ink.drawImage(base(width, height, size.variant), 0, 0);
  if (map && scale.high > 0 && view.overlay !== "off") {
    const diverging = scale.kind === "signed";
    const table = COLOURS[diverging ? "coolwarm" : view.colours];
    tiny.width = columns;
    tiny.height = rows;
    const brush = tiny.getContext("2d"), pixels = brush.createImageData(columns, rows), d = pixels.data;
    for (let p = 0; p < rows * columns; p++) {
      const x = scale.at(map[start + p]), q = Math.round(x * 255) * 3;
      if (!(x >= 0)) continue; // missing: only the photo
      const size = diverging ? Math.abs(x - 0.5) * 2 : x;
      d[p * 4] = table[q];
      d[p * 4 + 1] = table[q + 1];
      d[p * 4 + 2] = table[q + 2];
      const alpha = view.overlay === "flat" ? 1 : Math.min(1, 1.3 * Math.pow(size, 0.7));
      d[p * 4 + 3] = Math.round(255 * view.opacity * alpha);
    }
    brush.putImageData(pixels, 0, 0);
    ink.imageSmoothingEnabled = view.smooth;
    ink.imageSmoothingQuality = "high";
    ink.drawImage(tiny, 0, 0, width, height);
  }
  if (!view.sinks) return;
  for (const [v, share] of sinks) drawSink(ink, v - start, share, image, width, height, dense);
  for (const v of treated) drawTreated(ink, v - start, image, width, height, dense);
}

// A patch that a control changed: a ring, to distinguish it from a sink.
function drawTreated(ink, patch, image, width, height, dense) {
  if (patch < 0 || patch >= image.rows * image.columns) return;
  const w = width / image.columns, h = height / image.rows;
  for (const [line, colour] of [[4 * dense, "rgba(0,0,0,.85)"], [1.8 * dense, "#5ad1ff"]]) {
    ink.lineWidth = line;
    ink.strokeStyle = colour;
    ink.beginPath();
    ink.arc(((patch % image.columns) + 0.5) * w, (Math.floor(patch / image.columns) + 0.5) * h, Math.min(w, h) * 0.36, 0, 2 * Math.PI);
    ink.stroke();
  }
}

// A sink: a boxed x with a double stroke, recognised by shape instead of colour; fainter if most chosen layers lack it.
function drawSink(ink, patch, share, image, width, height, dense) {
  if (patch < 0 || patch >= image.rows * image.columns) return;
  const w = width / image.columns, h = height / image.rows;
  const x = (patch % image.columns) * w, y = Math.floor(patch / image.columns) * h;
  const arm = Math.min(w, h, 26 * dense) * 0.26, cx = x + w / 2, cy = y + h / 2, inset = 1.5 * dense;
  for (const [line, colour] of [[3.2 * dense, "rgba(0,0,0,.85)"], [1.3 * dense, "#fff"]]) {
    ink.lineWidth = line;
    ink.strokeStyle = colour;
    ink.setLineDash(share < 0.5 ? [3 * dense, 3 * dense] : []);
    ink.strokeRect(x + inset, y + inset, w - 2 * inset, h - 2 * inset);
    ink.setLineDash([]);
    ink.beginPath();
    ink.moveTo(cx - arm, cy - arm);
    ink.lineTo(cx + arm, cy + arm);
    ink.moveTo(cx + arm, cy - arm);
    ink.lineTo(cx - arm, cy + arm);
    ink.stroke();
  }
}

// Cursor and chosen box, on a separate canvas, so that moving the mouse does not redraw the map.
function paintInk() {
  if (!run) return;
  for (const stage of element.querySelectorAll(".stage")) {
    const canvas = stage.querySelector(".ink"), ink = canvas.getContext("2d");
    const variant = variantOf(stage.closest(".figure")), image = imageOf(variant), { rows, columns } = image;
    const dense = Math.min(2, window.devicePixelRatio || 1), cursor = cellOn(view.cursor, imageOf(run.variants[0]), image);
    const w = canvas.width / columns, h = canvas.height / rows, box = view.box && boxOn(view.box, variant);
    if (!changed(canvas, [canvas.width, canvas.height, rows, columns, cursor ?? null, box && [box.r0, box.c0, box.r1, box.c1].join()])) continue;
    ink.clearRect(0, 0, canvas.width, canvas.height);
    const frame = (x, y, width, height, dash) => {
      for (const [line, colour] of [[4, "rgba(0,0,0,.8)"], [1.75, "#fff"]]) {
        ink.lineWidth = line * dense;
        ink.strokeStyle = colour;
        ink.setLineDash(dash && colour === "#fff" ? [5 * dense, 4 * dense] : []);
        ink.strokeRect(x, y, width, height);
      }
    };
    if (box) {
      const { r0, c0, r1, c1 } = box;
      frame(c0 * w, r0 * h, (c1 - c0 + 1) * w, (r1 - r0 + 1) * h, true);
    }
    if (cursor != null) frame((cursor % columns) * w, Math.floor(cursor / columns) * h, w, h, false);
  }
  paintPatch();
}

// Two runs with different images or grids have no difference map.
const canDiffer = () => run.variants.length > 1 && run.comparable !== false;

// Everything that the figures show, by the figure's name, computed once per repaint and kept for the hover read-out: raw
// maps, coloured values, and the numbers beside them.
let shown = { maps: {}, drawn: {}, scales: {}, shares: {}, spans: {} };

function paintFigures() {
  shown = { maps: {}, drawn: {}, scales: {}, shares: {}, spans: {} };
  const read = ({ name, side, l }) => onLayer(l, () => {
    const span = tokensOf(side);
    shown.spans[name] = span;
    shown.maps[name] = span ? mapOf(side, span[0], span[1]) : null;
    shown.drawn[name] = coloured(shown.maps[name], side);
    shown.shares[name] = span ? sharesOf(side, span[0], span[1]) : null;
  });
  sides().forEach((side) => read({ name: side.name, side, l: null })); // the numbers beside the figures are from these
  const here = looks();
  if (view.four) here.forEach(read);
  const there = here.filter(({ name }) => shown.maps[name]);
  // Over the whole answer a side that has ended counts too, so that its end does not change the colours.
  const shared = view.same && here.length > 1 ? scaleFor(overAnswer() ? here : there) : null;
  for (const look of there) shown.scales[look.name] = shared || scaleFor([look]);
  const names = here.map(({ name }) => name).concat(view.difference && canDiffer() && !view.four ? "difference" : []), box = $(".figures");
  const others = box.dataset.names !== names.join();
  if (others) Object.assign(box.dataset, { names: names.join(), count: names.length });
  for (const figure of box.children) if (figure.hidden === names.includes(figure.dataset.variant)) figure.hidden = !figure.hidden;
  if (others) forgetSizes();
  const sizes = here.map(({ name }) => fit($(`.figure[data-variant="${name}"]`))); // read before anything is written
  here.forEach((look, k) => onLayer(look.l, () => paintFigure(look, shared, sizes[k])));
  paintDifference();
  paintInk();
}

const ofImage = (map, side) => map.subarray(...patchesOfImage(side));

// Whether the range can be that of the whole answer: a large run has single heads of only some tokens.
const overAnswer = () => view.range === "answer" && !method().computed && !(needsHeads() && sides().some((side) => !side.full));

// The scale of one or several figures: over this selection's maps, or over every token's (which is expensive, so it is kept).
function scaleFor(some) {
  if (!overAnswer()) {
    const maps = some.map(({ name, side }) => ofImage(shown.drawn[name], side));
    return method().signed ? makeSigned(maps, valueFormat()) : makeScale(view.scale, maps, valueFormat());
  }
  const key = [some.map(({ name, l }) => [name, l]), view.part, view.four, chosenKey(), view.combine, method().name, view.scale, view.image].join();
  run.scales = run.scales || new Map();
  if (!run.scales.has(key)) {
    if (run.scales.size > 16) run.scales.clear();
    const all = some.flatMap(({ side, l }) => onLayer(l, () =>
      Array.from({ length: side.T }, (_, t) => ofImage(coloured(mapOf(side, t, t), side), side))));
    run.scales.set(key, makeScale(view.scale, all, valueFormat()));
  }
  return run.scales.get(key);
}

// The description of the colours. If the run cannot provide the chosen method, it gives the reason.
function scaleWords(scale, side, shared) {
  const wanted = methodCalled(view.method), why = whyNot(wanted), range = overAnswer() ? `; range of the whole ${side.part}` : "";
  return `${why ? `not ${wanted.label}, for ${why}; instead ` : ""}${method().words[side.name]} · ${scale.words}${range}` +
    (shared ? `; same scale on ${view.four ? "all" : "both sides"}` : "");
}

function paintFigure({ name, side, l }, shared, size) {
  const figure = $(`.figure[data-variant="${name}"]`);
  const map = shown.maps[name], span = shown.spans[name], scale = shown.scales[name];
  drawMap(size, shown.drawn[name], scale, sinksOf(side), treatedOf(side));
  const note = figure.querySelector(".note"), choice = figure.querySelector("select");
  if (choice && +choice.value !== l) choice.value = l;
  const waits = map && method().computed && !explainedMap(method().name, side);
  if (note.hidden !== (Boolean(map) && !waits)) note.hidden = !note.hidden;
  if (waits) note.textContent = waitingWords(side);
  else if (!map) {
    note.textContent = span ? "Fetching the heads of this token …"
      : `This ${side.part} ${side.T ? `ended before token ${chosenOn(side)[0]}` : "has no rows here"}.`;
  }
  const stat = node("span"), share = shown.shares[name];
  if (share) {
    stat.append(run.images.length > 1 ? "all images " : "image ", node("b", {}, percent(share.image)));
    if (side.sinks.some((s) => s.length)) stat.append(" · sinks hold ", node("b", {}, percent(share.sinks)), " of it");
  }
  renew(figure.querySelector(".stat"), [...stat.childNodes]);
  mark(figure.querySelector(".stage"), "aria-label",
    `${side.label}: attention over the image for ${selectionWords()}${imageWords()}. ` +
    (share ? `Image share ${percent(share.image)}, sinks hold ${percent(share.sinks)} of it. ` : "") +
    "Arrow keys move over the patches, with Shift they make a box; Enter looks up which tokens looked there.");
  const scaleText = map && scaleWords(scale, side, shared), again = shared && view.four && name !== "four-2"; // shown once for all four
  paintScale(figure, scale, waits ? null : scaleText, COLOURS[scale && scale.kind === "signed" ? "coolwarm" : view.colours], again ? "" : scaleText);
}

function paintScale(figure, scale, text, table, words = text) {
  figure.querySelector(".scalebar").classList.toggle("off", !text || view.overlay === "off");
  write(figure.querySelector(".words"), (text && words) || "");
  if (!text) return;
  const canvas = figure.querySelector(".scalebar canvas"), ticks = figure.querySelector(".ticks"), { length } = scale.ticks;
  if (changed(canvas, [table])) paintTable(canvas, table);
  if (changed(ticks, scale.ticks.map(([u]) => u), "places")) ticks.replaceChildren(...scale.ticks.map(([u, text]) =>
    node("span", { style: `--at:${u}`, "data-edge": u === 0 ? "low" : u === 1 ? "high" : null }, text)));
  else for (let k = 0; k < length; k++) write(ticks.children[k], scale.ticks[k][1]);
}

// All colours of a table, from low to high.
function paintTable(canvas, table) {
  const ink = canvas.getContext("2d"), pixels = ink.createImageData(canvas.width, 1);
  for (let i = 0; i < canvas.width; i++) {
    const q = Math.round((i / (canvas.width - 1)) * 255) * 3;
    pixels.data.set([table[q], table[q + 1], table[q + 2], 255], i * 4);
  }
  ink.putImageData(pixels, 0, 0);
}

function paintDifference() {
  const figure = $('.figure[data-variant="difference"]');
  if (!figure || figure.hidden) return;
  const [a, b] = run.variants.map((v) => shown.maps[v.name]);
  // If VAR changed nothing, the difference of two passes is rounding, and is not drawn.
  const idle = run.kind !== "pair" && run.variants.some((v) => v.var && v.var.changed === false);
  const both = a && b ? differenceOf(a, b, idle) : null, size = fit(figure);
  shown.maps.difference = shown.drawn.difference = both;
  const scale = makeSigned(both ? [ofImage(both, run.variants[0])] : []);
  if (scale.high) scale.words = `${run.variants[1].label} − ${run.variants[0].label}, attention mass · ${scale.words}`;
  shown.scales.difference = scale;
  drawMap(size, both, scale, sinksOf(run.variants[0]));
  const note = figure.querySelector(".note");
  if (note.hidden !== Boolean(both)) note.hidden = !note.hidden;
  write(note, both ? "" : "One of the answers has no such token.");
  const stat = figure.querySelector(".stat"), [s, v] = run.variants.map((x) => shown.shares[x.name]);
  const gained = s && v ? `${run.images.length > 1 ? "all images" : "image"} ${v.image === s.image ? "" : v.image > s.image ? "+" : "−"}${percent(Math.abs(v.image - s.image))} of the row` : "";
  write(stat, gained);
  mark(figure.querySelector(".stage"), "aria-label", `Difference of the two maps, ${run.variants[1].label} minus ${run.variants[0].label}`);
  paintScale(figure, scale, both && scale.words, COLOURS.coolwarm);
}

// The patch under the cursor, in numbers, under every figure.
function paintPatch() {
  for (const figure of element.querySelectorAll(".figure")) {
    const owner = variantOf(figure), { columns, start } = imageOf(owner);
    const cursor = cellOn(view.cursor, imageOf(run.variants[0]), imageOf(owner));
    const line = figure.querySelector(".patch"), name = figure.dataset.variant, map = shown.maps[name];
    if (cursor == null || !map) {
      write(line, map ? "point at a patch to read it" : "");
      continue;
    }
    const v = start + cursor, row = Math.floor(cursor / columns), column = cursor % columns;
    const { side: variant, l, both } = lookOf(name);
    const there = map[v] === map[v]; // else it is missing
    let text = `patch ${row}, ${column}  ·  ${there ? `${both && map[v] ? (map[v] > 0 ? "+" : "−") : ""}${percent(Math.abs(map[v]))} of the row` : "left out"}`;
    if (!both && there) {
      if (method().computed) {
        const own = shown.drawn[name][v];
        text += own === own ? `  ·  ${method().label} ${valueFormat()(own)}` : "";
      }
      if (relative()) text += `  ·  ${times(shown.drawn[name][v])} generic`;
      const [p0, p1] = patchesOfImage(variant);
      let total = 0;
      for (let i = p0; i < p1; i++) total += map[i] || 0;
      if (total > 0) text += `  ·  ${percent(map[v] / total)} of this map`;
      const phi = onLayer(l, () => sinkScore(variant, v));
      if (phi != null) text += `  ·  sink, φ ${phi.toFixed(1)}`;
    }
    write(line, text);
  }
}

// The largest score that a patch reaches as a sink in the chosen layers.
function sinkScore(variant, v) {
  let best = null;
  for (const l of chosenLayers()) {
    const score = variant.scores.get(`${l}:${v}`);
    if (score != null && (best == null || score > best)) best = score;
  }
  return best;
}

// Pointer and keys on a figure: hovering shows values, a click or drag chooses patches for the reverse look-up.
function watchStage(stage) {
  let from = null;
  const cell = (event) => {
    const r = stage.getBoundingClientRect(), { rows, columns } = imageOf(run.variants[0]);
    const c = clamp(Math.floor(((event.clientX - r.left) / r.width) * columns), 0, columns - 1);
    return [clamp(Math.floor(((event.clientY - r.top) / r.height) * rows), 0, rows - 1), c];
  };
  const at = ([r, c]) => r * imageOf(run.variants[0]).columns + c;
  stage.addEventListener("pointermove", (event) => {
    if (!run) return;
    const here = cell(event);
    if (from && event.pointerType !== "touch") setBox(from, here);
    if (view.cursor !== at(here)) {
      view.cursor = at(here);
      paintInk();
    }
  });
  stage.addEventListener("pointerleave", () => {
    view.cursor = null;
    paintInk();
  });
  stage.addEventListener("pointerdown", (event) => {
    if (!run || event.button) return;
    from = cell(event);
    if (event.pointerType !== "touch") stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointerup", (event) => {
    if (!run || !from) return;
    const here = event.pointerType === "touch" ? from : cell(event), old = view.box;
    const again = old && !stage.moved && old.r0 === here[0] && old.c0 === here[1] && old.r1 === here[0] && old.c1 === here[1];
    const single = from[0] === here[0] && from[1] === here[1];
    if (single && again && stage.before === at(here)) setBox(null);
    else setBox(from, here);
    stage.before = view.box && single ? at(here) : null;
    from = null;
  });
  stage.addEventListener("keydown", (event) => {
    const { rows, columns } = imageOf(run.variants[0]);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step) {
      const now = view.cursor == null ? Math.floor(rows / 2) * columns + Math.floor(columns / 2) : view.cursor + step;
      const cell = (k) => [Math.floor(k / columns), k % columns], to = clamp(now, 0, rows * columns - 1);
      stage.corner = event.shiftKey ? stage.corner ?? view.cursor ?? to : null; // the start of a box that is extended with Shift
      view.cursor = to;
      if (event.shiftKey) setBox(cell(stage.corner), cell(to));
      paintInk();
      speak();
    } else if ((event.key === "Enter" || event.key === " ") && view.cursor != null) {
      const here = [Math.floor(view.cursor / columns), view.cursor % columns];
      setBox(here, here);
    } else if (event.key === "Escape") setBox(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function setBox(a, b) {
  view.box = a && { r0: Math.min(a[0], b[0]), r1: Math.max(a[0], b[0]), c0: Math.min(a[1], b[1]), c1: Math.max(a[1], b[1]) };
  if (!view.box && view.quantity === "box") view.quantity = "image";
  paintInk();
  paintReading();
  paintPanels();
  tintTokens();
}
