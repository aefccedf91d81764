// The view bar, the keys and the address: everything that changes the view without a request.
const SELECTS = ["method", "combine", "scale", "range", "colours", "overlay", "photo", "four"];
const TOGGLES = ["sinks", "smooth", "same", "difference"];

function setRange(name, low, high) {
  const top = (name === "l" ? run.L : run.H) - 1;
  view.picked = null;
  view[name + "0"] = clamp(Math.min(low, high), 0, top);
  view[name + "1"] = clamp(Math.max(low, high), 0, top);
}

function wireControls() {
  for (const name of ["l", "h"]) {
    const [low, high] = element.querySelectorAll(`.span[data-range="${name}"] input`);
    const read = (event) => {
      // The thumbs must not pass each other: the moving one stops at the other.
      if (event.target === low && +low.value > +high.value) low.value = high.value;
      if (event.target === high && +high.value < +low.value) high.value = low.value;
      setRange(name, +low.value, +high.value);
      repaint();
    };
    low.addEventListener("input", read);
    high.addEventListener("input", read);
  }
  for (const name of SELECTS) {
    $(`[data-set="${name}"]`).addEventListener("change", (event) => {
      view[name] = event.target.value;
      if (name === "four" && view.four) view.picked = null; // single layers have no list of heads
      repaint();
    });
  }
  for (const name of TOGGLES) {
    $(`[data-set="${name}"]`).addEventListener("change", (event) => {
      view[name] = event.target.checked;
      repaint();
    });
  }
  $('[data-set="opacity"]').addEventListener("input", (event) => {
    view.opacity = +event.target.value / 100;
    repaint();
  });
  $('[data-do="look"]').addEventListener("click", (event) => {
    const look = $(".look");
    look.hidden = !look.hidden;
    event.currentTarget.setAttribute("aria-expanded", !look.hidden);
    forgetSizes();
    if (run) paintFigures();
  });
  $('[data-do="reset"]').addEventListener("click", resetView);
  $('[data-do="strongest"]').addEventListener("click", strongestHead);
  for (const button of element.querySelectorAll(".quantity button")) {
    button.addEventListener("click", () => {
      view.quantity = button.dataset.value;
      if (run) paintPanels();
    });
  }
  // Keys also work at the start and if nothing has the focus (help was closed), not only inside the inspector.
  document.addEventListener("keydown", (event) => {
    const nowhere = event.target === document.body || event.target === document.documentElement;
    if (!element.isConnected || !(nowhere ? root.offsetParent : element.contains(event.target))) return;
    const afterPop = event.target.closest(".tools"); // which has the focus after a panel was closed by Escape
    if ((nowhere || afterPop) && run && stepTokens(event)) return;
    keys(event);
  });
}

function resetView() {
  if (!run) return;
  Object.assign(view, { l0: 0, l1: run.L - 1, h0: 0, h1: run.H - 1, picked: null, combine: "mean", box: null });
  if (view.quantity === "box") view.quantity = "image";
  repaint();
}

// The head with the most attention on the image outside the sinks, for the chosen tokens of the first answer that has them.
function strongestHead() {
  const variant = run && sides().find((v) => tokensOf(v));
  if (!variant) return;
  const [t0, t1] = tokensOf(variant), sums = new Float32Array(run.L * run.H);
  for (let t = t0; t <= t1; t++)
    for (let i = 0; i < sums.length; i++) {
      const k = t * sums.length + i;
      sums[i] += (variant.share[k] / 65535) * (1 - variant.sink[k] / 65535);
    }
  const best = sums.indexOf(Math.max(...sums)), l = Math.floor(best / run.H), h = best % run.H;
  [view.l0, view.l1, view.h0, view.h1] = [l, l, h, h];
  view.picked = null;
  repaint();
}

// Bracket keys go from "all" to a single layer (or head), then one at a time.
function walk(name, step) {
  const top = (name === "l" ? run.L : run.H) - 1, all = view[name + "0"] === 0 && view[name + "1"] === top;
  const next = all ? (step > 0 ? 0 : top) : clamp((step > 0 ? view[name + "1"] : view[name + "0"]) + step, 0, top);
  setRange(name, next, next);
}

function keys(event) {
  const pop = event.key === "Escape" && POPS.find((name) => !$("." + name).hidden);
  if (pop) {
    togglePop(pop, false);
    return $(`[data-do="${pop}"]`).focus();
  }
  if (!run || event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  if (event.target.matches("select, textarea, input:not([type=range]):not([type=checkbox])")) return;
  if (root.dataset.phase === "streaming") return;
  switch (event.key) {
    case "[": walk("l", -1); break;
    case "]": walk("l", 1); break;
    case "{": walk("h", -1); break;
    case "}": walk("h", 1); break;
    case "0": resetView(); break;
    case "b": strongestHead(); break;
    case "m": testRegion(); break;
    case "p": return togglePlay();
    case "d": view.difference = canDiffer() && !view.difference; break;
    case "s": view.sinks = !view.sinks; break;
    case "4":
      view.four = view.four || run.L < 2 ? "" : run.variants[0].name;
      if (view.four) view.picked = null;
      break;
    case "v":
      if (view.four) view.four = (run.variants.find((v) => v.name !== view.four) || run.variants[0]).name;
      else view.swapped = run.variants.length > 1 && !view.swapped;
      break;
    case "?": return togglePop("help");
    default: return;
  }
  event.preventDefault();
  repaint();
}

// Arrow keys if no token has the focus: they continue from the chosen one and focus it.
function stepTokens(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const here = step && $(`.strip[data-part="${view.part}"]:not([hidden]) [data-i="${view.t0}"]`);
  if (!here || event.altKey || event.ctrlKey || event.metaKey || root.dataset.phase === "streaming") return false;
  here.focus({ preventScroll: true });
  here.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, shiftKey: event.shiftKey, bubbles: true, cancelable: true }));
  event.preventDefault();
  return true;
}

// The panels above the answers open one at a time, so that the map stays visible.
const POPS = ["runs", "save", "help"];
function togglePop(name, open = $("." + name).hidden) {
  for (const other of POPS) {
    const shown = open && other === name;
    $("." + other).hidden = !shown;
    $(`[data-do="${other}"]`).setAttribute("aria-expanded", shown);
  }
  if (open && name === "runs") listRuns();
  if (open && name === "help") $(".help").focus();
  else if (!open && name === "help") document.activeElement.blur(); // keys then act on the answer
}

// Controls follow the view, whatever changed it; these have no control.
const CHOSEN = ["t0", "t1", "own", "cursor", "box", "note", "part", "prompt"];
function syncControls() {
  if (!changed(root, [run, ...Object.keys(view).filter((name) => !CHOSEN.includes(name)).map((name) => view[name])], "controls")) return;
  for (const [name, count, indices] of [["l", run.L, run.layers], ["h", run.H, run.heads]]) {
    const span = $(`.span[data-range="${name}"]`), [low, high] = span.querySelectorAll("input");
    for (const input of [low, high]) input.max = count - 1;
    low.value = view[name + "0"];
    high.value = view[name + "1"];
    const words = (k) => (name === "l" ? `layer ${indices[k]}` : headWords(indices[k]));
    low.setAttribute("aria-valuetext", words(view[name + "0"]));
    high.setAttribute("aria-valuetext", words(view[name + "1"]));
    span.style.setProperty("--from", count > 1 ? view[name + "0"] / (count - 1) : 0);
    span.style.setProperty("--to", count > 1 ? view[name + "1"] / (count - 1) : 1);
    // If both thumbs are at the right end, only the lower one can move.
    low.style.zIndex = view[name + "0"] === count - 1 ? 3 : "";
    span.querySelector("output").textContent = view.picked ? "list" : rangeWords(name);
  }
  syncPicked();
  const methods = $('[data-set="method"]');
  if (methods.dataset.run !== run.id) methods.replaceChildren(...run.methods.map((method) => {
    const why = whyNot(method);
    return node("option", { value: method.name, disabled: Boolean(why), title: why || method.source }, why ? `${method.label} (${why})` : method.label);
  }));
  methods.dataset.run = run.id;
  for (const name of SELECTS) $(`[data-set="${name}"]`).value = name === "method" ? method().name : view[name];
  for (const name of TOGGLES) $(`[data-set="${name}"]`).checked = view[name];
  $('[data-set="opacity"]').value = Math.round(view.opacity * 100);
  const two = run.variants.length > 1;
  $('[data-set="same"]').closest("label").hidden = !two && !view.four;
  $('[data-set="difference"]').closest("label").hidden = !canDiffer() || Boolean(view.four);
  root.toggleAttribute("data-swapped", view.swapped && two);
  const four = $('[data-set="four"]');
  four.closest("label").hidden = run.L < 2;
  if (four.dataset.run !== run.id) four.replaceChildren(node("option", { value: "" }, two ? "side by side" : "one map"),
    ...run.variants.map((v) => node("option", { value: v.name }, two ? `4 layers: ${v.label}` : "four layers")));
  four.dataset.run = run.id;
  four.value = view.four;
}

function rangeWords(name) {
  const [a, b] = [view[name + "0"], view[name + "1"]], indices = name === "l" ? run.layers : run.heads;
  if (a === 0 && b === indices.length - 1 && b > 0) return `all ${indices.length}`;
  if (indices[a] < 0) return "mean";
  return a === b ? `${indices[a]}` : `${indices[a]}–${indices[b]}`;
}

// The image, if there are several; on the page its button shows it.
const imageWords = () => (run.images.length > 1 ? `, image ${view.image}` : "");

function selectionWords() {
  const first = sides().find((v) => tokensOf(v)) || sides()[0], span = tokensOf(first);
  const words = span ? quoted(first.tokens.slice(span[0], span[1] + 1).map((t) => t.t).join("")) : "no token";
  const prompt = view.part === "prompt" ? "prompt " : "";
  const numbers = ([a, b]) => (a === b ? `token ${a}` : `tokens ${a}–${b} (mean)`), which = prompt + numbers([view.t0, view.t1]);
  const second = view.own && view.part === "answer" && tokensOf(run.variants[1]);
  const apart = second ? `; ${run.variants[1].label}: ${numbers(second)} ${quoted(run.variants[1].tokens.slice(second[0], second[1] + 1).map((t) => t.t).join(""))}` : "";
  const over = view.combine === "mean" ? "mean" : view.combine === "max" ? "maximum" : "minimum";
  if (view.picked) return `${which} ${words}${apart}, ${over} over ${pickedWords()}`;
  const spelt = (name, word, one) => {
    const range = rangeWords(name);
    return name === "h" && run.heads[0] < 0 ? headWords(run.heads[0]) : one ? `${word} ${range}` : range.startsWith("all") ? `${range} ${word}s` : `${word}s ${range}`;
  };
  const layers = view.four ? `layers ${fourLayers().map((l) => run.layers[l]).join(", ")} one by one` : spelt("l", "layer", view.l0 === view.l1), heads = spelt("h", "head", view.h0 === view.h1);
  const one = (view.four || view.l0 === view.l1) && view.h0 === view.h1;
  return `${which} ${words}${apart}, ${one ? `${layers}, ${heads}` : `${over} over ${layers} and ${heads}`}`;
}

// A run, or two of them side by side: one answer of each (web/runs/pairs.py).
const RUN_ID = /^[\w-]{16,64}(\.(baseline|var)~[\w-]{16,64}\.(baseline|var))?$/;

// The view in the address, so that a reload or a link opens this run in the same view. Since version 2, layers
// and heads are the model's own numbers; before, they were indices among the captured ones.
const LINK = 2;
// Other values of the view that a link has if they differ from the default, and their allowed values.
const LINKED = { range: ["token", "answer"], colours: ["inferno", "magma", "viridis", "cividis"], overlay: ["value", "flat", "off"], photo: ["dim", "full", "none"],
  quantity: ["image", "sink", "entropy", "box"], opacity: "part", image: "whole", sinks: "flag", smooth: "flag", same: "flag", swapped: "flag", note: "text" };
const AT_FIRST = { ...view };

function linkedValue(name, kind, text) {
  if (text == null) return undefined;
  if (kind === "flag") return text === "1" ? true : text === "0" ? false : undefined;
  if (kind === "part") return /^(0|1|0?\.\d{1,6})$/.test(text) ? +text : undefined;
  if (kind === "whole") return /^\d{1,4}$/.test(text) ? +text : undefined;
  if (kind === "text") return plainNote(text);
  return kind.includes(text) ? text : undefined;
}
let addressTimer = 0;
function writeAddress() {
  clearTimeout(addressTimer);
  addressTimer = setTimeout(writeAddressNow, 250);
}

function writeAddressNow() {
  clearTimeout(addressTimer);
  if (!run) return;
  const ends = (list, a, b) => `${list[a]}-${list[b]}`;
  const part = { v: LINK, run: run.id, [view.part === "prompt" ? "p" : "t"]: `${view.t0}-${view.t1}`, l: ends(run.layers, view.l0, view.l1) };
  if (view.picked) part.heads = `${view.picked.kind}~${chosenKey()}`;
  if (run.heads[0] >= 0) part.h = ends(run.heads, view.h0, view.h1);
  if (view.own) part.u = view.own.join("-");
  if (view.combine !== "mean") part.combine = view.combine;
  if (view.method !== "attention") part.method = view.method;
  if (view.scale !== "percentile") part.scale = view.scale;
  if (canDiffer()) part.difference = view.difference ? 1 : 0;
  if (view.four) part.four = fourLayers().map((l) => run.layers[l]).join("-") + `.${view.four}`;
  for (const [name, kind] of Object.entries(LINKED)) {
    const now = kind === "flag" ? +view[name] : view[name];
    if (now !== (kind === "flag" ? +AT_FIRST[name] : AT_FIRST[name])) part[name] = now;
  }
  if (view.box) part.box = [view.box.r0, view.box.c0, view.box.r1, view.box.c1].join("-");
  if (run.kind === "example") delete part.run;
  else if (run.ask.prompt && JSON.stringify(run.ask).length < 1500) part.ask = JSON.stringify(run.ask);
  history.replaceState(history.state, "", "#" + new URLSearchParams(part));
}

function readAddress() {
  const part = new URLSearchParams(location.hash.slice(1)), made = { version: part.get("v") === "2" ? LINK : 1 };
  for (const name of ["t", "u", "p", "l", "h"]) {
    const hit = /^(\d{1,6})-(\d{1,6})$/.exec(part.get(name) || "");
    if (hit) made[name] = [+hit[1], +hit[2]];
  }
  try {
    const ask = JSON.parse(part.get("ask") || "null");
    if (ask && typeof ask === "object") made.ask = ask;
  } catch { // a truncated link: the form is unchanged
    made.ask = null;
  }
  if (RUN_ID.test(part.get("run") || "")) made.run = part.get("run");
  else made.broken = part.has("run");
  if (["max", "min"].includes(part.get("combine"))) made.combine = part.get("combine");
  // In older links some scales are methods, and the clip has another name.
  const old = { clip: ["percentile"], nosink: ["linear", "without_sinks"], relative: ["percentile", "relative"] };
  const scaleName = part.get("scale"), [scale, method] = Object.hasOwn(old, scaleName) ? old[scaleName] : [scaleName];
  if (["percentile", "linear", "log", "rank"].includes(scale)) made.scale = scale;
  if (/^\w{1,40}$/.test(part.get("method") || method || "")) made.method = part.get("method") || method;
  made.looks = {};
  for (const [name, kind] of Object.entries(LINKED)) {
    const value = linkedValue(name, kind, part.get(name));
    if (value !== undefined) made.looks[name] = value;
  }
  made.picked = readPicked(part.get("heads") || "");
  const box = /^(\d{1,4})-(\d{1,4})-(\d{1,4})-(\d{1,4})$/.exec(part.get("box") || "");
  if (box) made.box = box.slice(1).map(Number);
  if (["0", "1"].includes(part.get("difference"))) made.difference = part.get("difference") === "1";
  const four = /^(\d{1,4})-(\d{1,4})-(\d{1,4})-(\d{1,4})\.(\w{1,20})$/.exec(part.get("four") || "");
  if (four) Object.assign(made, { four: four[5], layers: four.slice(1, 5).map(Number) });
  return made;
}
