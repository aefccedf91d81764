// Small helpers. Text of a model reaches the page through textContent only (node(), text nodes).
const $ = (selector) => element.querySelector(selector);
const root = $(".scope");
const served = Boolean(element.closest("gradio-app")); // false in a saved page, which has no server
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

function node(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === false || value == null) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null)); // strings become text nodes
  return made;
}

// For each part of the page, what it was last drawn from: a browser lays out and paints whatever is written, even if it is
// unchanged. `key` has everything that the part depends on: numbers, texts or objects.
const drawnFrom = new WeakMap();
function changed(part, key, name = "") {
  if (!drawnFrom.has(part)) drawnFrom.set(part, {});
  const had = drawnFrom.get(part), before = had[name];
  had[name] = key;
  return !before || before.length !== key.length || key.some((x, i) => !Object.is(x, before[i]));
}

function write(part, text) {
  if (part.textContent !== text) part.textContent = text;
}

function mark(part, name, value) {
  if (part.getAttribute(name) !== `${value}`) part.setAttribute(name, value);
}

// Replaces children. Nodes of the same kind stay in place and get the new texts and attributes, so the new nodes must not
// have listeners of their own.
function renew(parent, made) {
  const had = [...parent.childNodes];
  if (had.length !== made.length) parent.replaceChildren(...made);
  else made.forEach((child, k) => alike(had[k], child) || had[k].replaceWith(child));
}

function alike(old, made) {
  if (old.nodeName !== made.nodeName) return false;
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return true;
  }
  for (const { name, value } of made.attributes) mark(old, name, value);
  for (const name of old.getAttributeNames()) if (!made.hasAttribute(name)) old.removeAttribute(name);
  renew(old, [...made.childNodes]);
  return true;
}

// 0.0123 -> "1.23 %": three significant digits, so that a small share is never shown as 0.
function percent(x) {
  const y = 100 * x;
  if (!Number.isFinite(y)) return "–";
  if (y === 0) return "0 %";
  const size = Math.abs(y);
  if (size >= 9.95) return y.toFixed(1) + " %";
  if (size >= 0.995) return y.toFixed(2) + " %";
  if (size >= 0.00095) return y.toPrecision(2) + " %";
  return y.toExponential(0) + " %";
}

const times = (x) => (x >= 9.95 ? x.toFixed(0) : x >= 0.995 ? x.toFixed(1) : x >= 0.00095 ? x.toPrecision(1) : x ? x.toExponential(0) : "0") + " ×";

// A token's text in a strip: spaces and control characters are made visible, the rest is unchanged.
function glyphs(text) {
  if (text === "") return "∅";
  const bidi = /[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
  const shown = text
    .replace(/^ (?=\S)/, "")
    .replace(/\n/g, "⏎")
    .replace(/\t/g, "⇥")
    .replace(bidi, "◌")
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
  return /^ +$/.test(shown) ? shown.replace(/ /g, "␣") : shown;
}

const quoted = (text) => `“${glyphs(text)}”`;

// The state of the view. Tokens, layers and heads are ranges of slots [from, to], both ends included. `own`: the second
// answer's tokens, if each answer has its own choice. `picked`: single heads instead of the ranges of
// layers and heads, { pairs: [[layer, head], ...] in the model's numbers, kind, from, file }.
const view = {
  t0: 0, t1: 0, own: null, l0: 0, l1: 0, h0: 0, h1: 0, picked: null,
  combine: "mean", method: "attention", scale: "percentile", range: "token", colours: "inferno", opacity: 0.8,
  overlay: "value", photo: "dim", smooth: false, sinks: true, same: true, difference: true,
  swapped: false, quantity: "image", image: 0, box: null, cursor: null,
  part: "answer", prompt: true, four: "", layers: [], note: "",
};
let run = null; // the run on screen: see data.js
let pending = null; // id of the run that the page is waiting for

// For scripts and tests: what is chosen, what is shown, and a way to choose.
element.inspector = {
  view,
  get run() { return run; },
  get shown() { return shown; },
  set(changes) {
    Object.assign(view, changes);
    markTokens();
    repaint();
  },
};

// A run may keep only the mean over its heads, as head -1.
function headWords(index) {
  return index < 0 ? "mean of the heads" : `head ${index}`;
}
