// Methods that need the model (web/explore/explaining.py): computed on demand, with their maps side by side and their
// correlations. A click on a map shows it over the photo. Requested by an event that waits in the model's queue; the results
// are values of phase "explain". Maps that are computed already come by a server function, for any layers and heads.
const explanations = new Map(); // results by side and method, under run, tokens, layers, heads and how these are combined
const EXPLANATIONS_MOST = 24;
let explaining = null; // the running job: { ask, key, at, message, fraction }
let comparing = false; // whether the small maps are open

const explainKey = () => run && [run.id, view.t0, view.t1, chosenKey(), view.combine].join();
const explainedHere = () => explanations.get(explainKey()) || null;
const explains = () => explaining && Date.now() - explaining.at < 600000; // a server that has ended must not lock it for ever

function explainedOf(name, variant) {
  if (hasOwn(variant)) return null; // they need one choice of tokens
  const here = explainedHere(), side = here && here.sides && here.sides[variant.name];
  return (side && side[name]) || null;
}

// The map of a computed method on a side's cells: Float32Array (V); null if there is none (yet).
function explainedMap(name, variant) {
  const made = view.part === "answer" ? explainedOf(name, variant) : null;
  if (!made || !made.values || made.values.length !== variant.V) return null;
  made.map = made.map || Float32Array.from(made.values, (x) => (x == null ? NaN : x));
  return made.map;
}

function waitingWords(variant) {
  if (view.part !== "answer") return `${method().label} explains words of the answer.`;
  if (hasOwn(variant)) return `${method().label} is computed for one choice on both sides: end “own choice”.`;
  const made = explainedOf(method().name, variant) || { why: method().why[variant.name] };
  if (made.why) return `${method().label} is not possible: ${made.why}.`;
  return explains() ? `${explaining.message} …` : `${method().label} is not computed for this word yet: see “Other explanations”.`;
}

const explainAsk = (methods) => ({
  ...asking(run.id), methods, t0: view.t0, t1: view.t1, reduce: view.combine,
  layers: run.layers.slice(view.l0, view.l1 + 1), heads: run.heads.slice(view.h0, view.h1 + 1),
  pairs: view.picked && view.picked.pairs,
});

function keepExplained(key, sides) {
  const had = explanations.get(key) || {};
  explanations.delete(key);
  explanations.set(key, { ...had, sides: sides || had.sides || {} });
  for (const old of explanations.keys()) if (explanations.size > EXPLANATIONS_MOST) explanations.delete(old);
  return explanations.get(key);
}

// The server's maps for this selection; requested once.
async function lookUpExplained() {
  const key = explainKey();
  if (!served || view.part !== "answer" || explanations.has(key)) return;
  keepExplained(key, null);
  const answer = await server.explained(explainAsk(null)).catch(() => null);
  if (answer && answer.sides) keepExplained(key, answer.sides);
  else keepExplained(key, null).error = (answer && answer.error) || "The server cannot be reached.";
  if (run && key === explainKey()) repaint();
}

function computeExplained(methods) {
  if (!served || !run || explains() || root.dataset.phase === "streaming") return;
  const ask = crypto.getRandomValues(new Uint32Array(4)).join("-"), key = explainKey();
  explaining = { ask, key, at: Date.now(), message: "Waiting for the server", fraction: 0 };
  keepExplained(key, null).error = null;
  trigger("play", { ask, ...explainAsk(methods) });
  comparing = comparing || methods == null;
  repaint();
}

function showExplained(value) {
  if (!explaining || value.ask !== explaining.ask) return;
  const { key } = explaining, over = value.done || value.error;
  Object.assign(explaining, { at: Date.now(), message: value.message || explaining.message, fraction: value.fraction || 0 });
  const made = explanations.get(key) || keepExplained(key, null);
  // A job may compute only one method; results of the others stay.
  for (const [name, found] of Object.entries(value.sides || {})) made.sides[name] = { ...made.sides[name], ...found };
  made.error = value.error;
  if (over) {
    explaining = null;
    $(".live").textContent = value.error || "The explanations are ready.";
  }
  if (run && key === explainKey()) repaint();
  else paintExplained();
}

function paintExplained() {
  const box = $(".card.explained");
  box.hidden = !served || view.part !== "answer";
  if (box.hidden) return;
  if (comparing || method().computed) lookUpExplained();
  const here = explainedHere(), busy = explains(), one = method();
  // The rest changes with few clicks, unless small maps are shown.
  const lacks = one.computed && run.variants.some((v) => tokensOf(v) && !one.why[v.name] && !explainedMap(one.name, v)), open = missingHere().length;
  const progress = busy && [explaining.message, explaining.fraction, explaining.key === explainKey()].join();
  if (!changed(box, [run, comparing ? {} : null, one.name, lacks, open, progress, here && here.error])) return;
  const line = node("p", { class: "acts" });
  if (busy) {
    line.append(node("span", { class: "bar-done", style: `--p:${explaining.fraction}`, "aria-hidden": "true" }),
      node("span", { class: "status-text" }, (explaining.key === explainKey() ? "" : "Another word: ") + explaining.message),
      node("button", { type: "button", class: "plain", "data-do": "stop-explain", "data-testid": "explain-stop", onclick: () => trigger("end", {}) }, "Stop"));
  } else {
    if (lacks) line.append(node("button", { type: "button", class: "plain ask", "data-do": "explain-one", "data-testid": "explain-one", onclick: () => computeExplained([one.name]) }, `Compute ${one.label}`));
    if (open) line.append(node("button", { type: "button", class: `plain ${lacks ? "" : "ask"}`, "data-do": "explain-all", "data-testid": "explain-all", onclick: () => computeExplained(null),
      title: "Occlusion and region search take longest; Stop keeps what is ready" }, open === run.methods.length ? "Compare all methods" : `Compute the other ${open}`));
    line.append(node("button", { type: "button", class: "plain", "data-do": "compare-methods", "aria-expanded": String(comparing), "data-testid": "explain-open", onclick: () => {
      comparing = !comparing;
      paintExplained();
    } }, comparing ? "Hide the maps" : "Show the maps"));
  }
  const made = [node("p", { class: "quiet" }, "Raw attention is a weak explanation, and methods disagree. Each map has its own unit and scale; a click shows it over the photo."), line];
  if (here && here.error) made.push(node("p", { class: "failed", "data-testid": "explain-error" }, here.error));
  if (comparing) for (const variant of run.variants) if (tokensOf(variant)) made.push(...smallMaps(variant));
  keepFocus(box.querySelector(".body"), made);
}

// Methods that are possible but not computed, on any side.
const missingHere = () => run.methods.filter((m) => !whyNot(m) && run.variants.some((v) => {
  const made = tokensOf(v) && !m.why[v.name] ? explainedOf(m.name, v) : { why: "not possible" };
  return !made || (!made.values && !made.why);
}));

function smallMaps(variant) {
  const there = [], tiles = run.methods.map((m) => {
    const map = explainedMap(m.name, variant), made = explainedOf(m.name, variant), why = (made && made.why) || m.why[variant.name] || whyNot(m);
    if (map) there.push([m.label, ofImage(map, variant)]);
    const on = view.method === m.name, words = map ? "" : why || "not computed yet";
    const scale = map && smallScale(m, made, ofImage(map, variant));
    return node("button", { type: "button", class: `tile${on ? " on" : ""}`, "data-do": `tile-${variant.name}-${m.name}`, "data-testid": `tile-${variant.name}-${m.name}`,
      disabled: !map && m.computed, "aria-pressed": String(on), title: why || m.source || m.label, onclick: () => {
        view.method = m.name;
        repaint();
      } }, map ? smallMap(map, variant, scale) : node("span", { class: "empty" }, words),
    node("b", {}, m.label), node("span", { class: "unit" }, map ? `${scale.kind === "signed" ? "±" : "to "}${formatOfUnit(made.unit)(scale.high)}${formatOfUnit(made.unit) === plainNumber ? ` ${made.unit}` : ""}` : ""));
  });
  return [sideTitle(variant), node("div", { class: "tiles" }, ...tiles), there.length > 1 ? agreementTable(there) : null].filter(Boolean);
}

const smallScale = (m, made, values) => (made.signed ? makeSigned([values], formatOfUnit(made.unit)) : makeScale(view.scale, [values], formatOfUnit(made.unit)));

function smallMap(map, variant, scale) {
  const image = imageOf(variant), width = 160, height = Math.max(1, Math.round((width * image.height) / image.width));
  const canvas = node("canvas", { width, height, "aria-hidden": "true" });
  drawMap({ ink: canvas.getContext("2d"), width, height, dense: 1, variant }, map, scale, new Map());
  return canvas;
}

// Spearman's rank correlation of each two maps (methods/together.py).
function agreementTable(there) {
  const heads = there.map(([, ], k) => node("th", { scope: "col", title: there[k][0] }, String(k)));
  const rows = there.map(([label, a], i) => node("tr", {}, node("th", { scope: "row" }, `${i} ${label}`),
    ...there.map(([other, b]) => {
      const r = rankCorrelation(a, b);
      return node("td", { title: `${label} and ${other}`, style: r === r ? `--r:${Math.abs(r).toFixed(3)}` : null, "data-sign": r < 0 ? "-" : "+" }, r === r ? r.toFixed(2).replace("-", "−") : "–");
    })));
  return node("details", { class: "agreement", open: true, "data-testid": "agreement" }, node("summary", {}, "How far they agree (rank correlation of the patches)"),
    node("div", { class: "wide-table" }, node("table", {}, node("thead", {}, node("tr", {}, node("th", {}), ...heads)), node("tbody", {}, ...rows))));
}

function rankCorrelation(a, b) {
  const both = [...a.keys()].filter((i) => Number.isFinite(a[i]) && Number.isFinite(b[i]));
  if (both.length < 3) return NaN;
  const ranks = (values) => {
    const order = both.map((i, k) => [values[i], k]).sort((x, y) => x[0] - y[0]), made = new Float64Array(both.length);
    for (let i = 0; i < order.length;) {
      let j = i;
      while (j < order.length && order[j][0] === order[i][0]) j++;
      for (let k = i; k < j; k++) made[order[k][1]] = (i + j + 1) / 2; // equal values share the mean of their ranks
      i = j;
    }
    return made;
  };
  const x = ranks(a), y = ranks(b), mean = (both.length + 1) / 2;
  let xy = 0, xx = 0, yy = 0;
  for (let k = 0; k < x.length; k++) {
    xy += (x[k] - mean) * (y[k] - mean);
    xx += (x[k] - mean) ** 2;
    yy += (y[k] - mean) ** 2;
  }
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : NaN;
}
