// The Evaluate tab (web/evaluate/payload.py makes its data). Texts reach the page only as text.
const { node, unzip, unpack, sameOrigin, clamp } = document.querySelector("#inspector .scope").parentElement.inspector.tools;
const $ = (selector) => element.querySelector(selector), root = $(".evaluation");
const cell = (tag, text, kind) => node(tag, { class: kind, scope: tag === "th" ? "col" : null }, text);

// A table of texts; `numbers` are the columns aligned to the right.
function table({ columns, rows, numbers = [] }) {
  const side = (i) => (numbers[i] ? "number" : null);
  return node("table", {}, node("thead", {}, node("tr", {}, ...columns.map((text, i) => cell("th", text, side(i))))),
    node("tbody", {}, ...rows.map((row) => node("tr", {}, ...row.map((text, i) => cell("td", text, side(i)))))));
}

// The position of a value on an axis, 0 to 100.
const place = (x, [low, high]) => 100 * clamp((x - low) / (high - low), 0, 1);

// A point with its interval on an axis, and a line at 0 if the axis has one.
function track(one, axis) {
  const parts = [];
  if (axis[0] < 0) parts.push(node("i", { class: "zero", style: `left:${place(0, axis)}%` }));
  if (one.low != null) parts.push(node("i", { class: "span", style: `left:${place(one.low, axis)}%;width:${place(one.high, axis) - place(one.low, axis)}%` }));
  if (one.value != null) parts.push(node("i", { class: "point", style: `left:${place(one.value, axis)}%` }));
  return node("span", { class: "track", "aria-hidden": "true" }, ...parts);
}

const ends = (list) => list.flatMap((one) => [one.low, one.high, one.value]).filter((x) => x != null);

function scoreAxis(list) { // multiples of 10 % around all intervals
  const all = ends(list);
  if (!all.length) return [0, 1];
  const low = Math.floor(Math.min(...all) * 10 - 0.2) / 10, high = Math.ceil(Math.max(...all) * 10 + 0.2) / 10;
  return [Math.max(0, low), Math.min(1, high)];
}

function differenceAxis(list) { // symmetric around 0
  const reach = Math.max(0.05, ...ends(list).map((x) => Math.abs(x)));
  return [-Math.ceil(reach * 20) / 20, Math.ceil(reach * 20) / 20];
}

const share = (x) => `${Math.round(100 * x)} %`, points = (x) => `${x > 0 ? "+" : x < 0 ? "−" : ""}${Math.round(100 * Math.abs(x))}`;

// Rows of a name, a plot and texts.
function plotted(axis, spell, columns, rows) {
  const middle = axis[0] < 0 ? [0] : [];
  const scale = node("th", { class: "plotted", scope: "col" }, node("span", {}, ...[axis[0], ...middle, axis[1]].map((x) => node("b", { style: "font-weight:400" }, spell(x)))));
  return node("table", {}, node("thead", {}, node("tr", {}, cell("th", columns[0]), scale, ...columns.slice(1).map((text) => cell("th", text)))),
    node("tbody", {}, ...rows.map(({ name, one, texts }) => node("tr", {}, node("th", { scope: "row" }, name), node("td", { class: "plotted" }, track(one, axis)),
      ...texts.map((text) => (text instanceof Node ? node("td", {}, text) : cell("td", text)))))));
}

const verdict = (one) => node("span", { class: one.kind === "none" ? "soft" : `${one.kind}-ink` }, one.verdict);
