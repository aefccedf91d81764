// "Does it matter?": how much the answers depend on the box, compared with other boxes of its size (web/explore/region.py).
// Requested by an event that waits in the model's queue; the results are values of phase "region".
const regions = new Map(); // results by side, under the run, image, box and way of the test
const REGIONS_MOST = 40;
let testing = null; // the running test: { ask, key, at, message, fraction }
let way = "cut";
const WAYS = { cut: "attention to it cut", grey: "its pixels greyed" };

const regionKey = () => run && view.box && [run.id, view.image, ...["r0", "c0", "r1", "c1"].map((n) => view.box[n]), way].join();
const regionHere = () => (view.box && regions.get(regionKey())) || null;
const inTime = () => testing && Date.now() - testing.at < 600000; // a server that has ended must not lock the button for ever

function boxWords({ r0, c0, r1, c1 }) {
  const span = (what, a, b) => (a === b ? `${what} ${a}` : `${what}s ${a}–${b}`);
  return r0 === r1 && c0 === c1 ? `patch ${r0}, ${c0}` : `${span("row", r0, r1)}, ${span("column", c0, c1)}`;
}

// For touch screens, on which dragging scrolls.
function largerBox() {
  const { rows, columns } = imageOf(run.variants[0]), { r0, c0, r1, c1 } = view.box;
  setBox([Math.max(0, r0 - 1), Math.max(0, c0 - 1)], [Math.min(rows - 1, r1 + 1), Math.min(columns - 1, c1 + 1)]);
}

function testRegion() {
  if (!served || !run || !view.box || inTime() || root.dataset.phase === "streaming") return;
  const boxes = Object.fromEntries(run.variants.map((variant) => {
    const { r0, c0, r1, c1 } = boxOn(view.box, variant);
    return [variant.name, { row: r0, column: c0, rows: r1 - r0 + 1, columns: c1 - c0 + 1, image: variant.images.indexOf(imageOf(variant)) }];
  }));
  const ask = crypto.getRandomValues(new Uint32Array(4)).join("-");
  testing = { ask, key: regionKey(), at: Date.now(), message: "Waiting for the server", fraction: 0 };
  keepRegion(testing.key, {});
  trigger("submit", { ask, ...asking(run.id), how: way, boxes });
  paintRegion();
  bringIntoView($(".card.region"));
}

function keepRegion(key, found) {
  regions.delete(key);
  regions.set(key, found);
  for (const old of regions.keys()) if (regions.size > REGIONS_MOST) regions.delete(old);
}

function showRegion(value) {
  if (!testing || value.ask !== testing.ask) return;
  Object.assign(testing, { at: Date.now(), message: value.message || testing.message, fraction: value.fraction || 0 });
  const had = regions.get(testing.key) || {};
  keepRegion(testing.key, { sides: value.found || had.sides, error: value.error });
  if (value.done || value.error) {
    const here = testing.key === regionKey();
    testing = null;
    if (here) $(".live").textContent = value.error || run.variants.map((v) => (value.found[v.name] || {}).headline || "").join(" ");
  }
  paintRegion();
  if (!testing && regionHere() && value.ask) bringIntoView($(".card.region"));
}

// The line above the maps (the box and its buttons), the card beside them, and the marks in the answers.
function paintRegion() {
  const line = $(".boxed"), found = regionHere(), busy = inTime(), mine = busy && testing.key === regionKey();
  line.hidden = !view.box && !busy;
  const made = [];
  if (view.box) made.push(node("span", {}, boxWords(view.box)));
  if (busy) {
    made.push(node("span", { class: "bar-done", style: `--p:${testing.fraction}`, "aria-hidden": "true" }),
      node("span", { class: "status-text" }, (mine ? "" : "Another box: ") + testing.message),
      node("button", { type: "button", class: "plain", "data-do": "stop-region", "data-testid": "region-stop", onclick: () => trigger("pause", {}) }, "Stop"));
  } else if (view.box && served && !(found && found.sides && !found.error)) {
    made.push(node("button", { type: "button", class: "plain ask", "data-do": "region", "data-testid": "region-test", onclick: testRegion,
      title: "Read the answer again without what is in the box, and compare with other boxes of its size (m)" }, "Does it matter?"));
  }
  if (view.box) made.push(node("button", { type: "button", class: "plain touch", "data-do": "larger", onclick: largerBox, title: "Add one patch on each side" }, "larger"),
    node("button", { type: "button", class: "plain", "data-do": "clear-box", onclick: () => setBox(null), title: "Choose no box (Escape on the image)" }, "clear"));
  keepFocus(line, made);
  const card = $(".card.region");
  card.hidden = !found;
  if (found) keepFocus(card.querySelector(".body"), regionCard(found, mine));
  markRegion(found);
}

// Replaces children and keeps the focus.
function keepFocus(parent, made) {
  const held = parent.contains(document.activeElement) ? document.activeElement.dataset.do : null;
  parent.replaceChildren(...made.filter(Boolean));
  const again = held && (parent.querySelector(`[data-do="${held}"]`) || (held.endsWith("region") && parent.querySelector("button")));
  if (again) again.focus({ preventScroll: true });
}

function regionCard(found, mine) {
  const choice = node("select", { "data-do": "way", "data-testid": "region-way", "aria-label": "How the box is removed", onchange: (event) => {
    way = event.target.value;
    if (!regionHere()) keepRegion(regionKey(), {});
    paintRegion();
  } }, ...Object.entries(WAYS).map(([name, text]) => node("option", { value: name, selected: name === way }, text)));
  const made = [node("p", { class: "quiet wide" }, `${boxWords(view.box)}, with `, node("label", {}, choice))];
  if (found.error) made.push(node("p", { class: "wide failed", "data-testid": "region-error" }, found.error));
  for (const variant of run.variants) {
    const side = found.sides && found.sides[variant.name];
    if (side) made.push(side.error ? node("div", {}, regionTitle(variant), node("p", { class: "failed" }, side.error)) : regionSide(variant, side));
  }
  if (mine && !found.sides) made.push(node("p", { class: "quiet wide" }, `${testing.message} …`));
  if (!mine && !found.sides && !found.error) made.push(node("p", { class: "quiet wide" }, "Not tested this way yet."));
  return made;
}

// Numbers stay on one line with their units.
const tight = (text) => text.replace(/ (%|nats)/g, "\u00a0$1");

const regionTitle = (variant) => (run.variants.length > 1 ? node("h4", {}, variant.label) : null);

function regionSide(variant, side) {
  const [t0, t1] = chosenOn(variant), chosen = view.part === "answer" ? side.tokens.slice(t0, Math.min(t1, t0 + 2) + 1) : [];
  const whole = side.other_boxes === side.planned;
  return node("div", { "data-testid": `region-${variant.name}` }, regionTitle(variant),
    node("p", { class: "finding" }, tight(side.headline)), regionChart(variant, side),
    ...chosen.map((token) => node("p", { class: "chosen-token" }, tight(token.words))),
    node("p", {}, tight(side.whole)),
    node("p", { class: "quiet small" }, whole ? side.notes.join(" ") : `${side.other_boxes} of ${side.planned} other boxes so far.`));
}

// One column per token: its change in nats, over the range of 90 % of the other boxes.
function regionChart(variant, side) {
  const ends = side.tokens.flatMap(({ change, random_range: r }) => (r ? [change, r[1], r[3]] : [change]));
  const low = Math.min(-0.05, ...ends), high = Math.max(0.05, ...ends), at = (x) => (100 * (high - clamp(x, low, high))) / (high - low);
  const stretch = (a, b) => `top:${Math.min(at(a), at(b))}%;height:${Math.max(0.6, Math.abs(at(a) - at(b)))}%`;
  const [t0, t1] = chosenOn(variant), columns = side.tokens.map((token, t) => {
    const on = view.part === "answer" && t >= t0 && t <= t1, r = token.random_range;
    return node("button", { type: "button", tabindex: -1, class: on ? "on" : null, "data-verdict": token.verdict, onclick: () => selectTokens(t, t, variant.name, "answer", variant.name),
      title: `token ${t}. ${token.words}` }, r ? node("i", { class: "others", style: stretch(r[1], r[3]) }) : null, node("i", { class: "own", style: stretch(0, token.change) }));
  });
  const tick = (x) => node("span", { style: `top:${at(x)}%` }, x === 0 ? "0" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(Math.abs(x) < 9.95 ? 1 : 0)}`);
  const ticks = [0, ...[low, high].filter((x) => Math.abs(at(x) - at(0)) > 16)].map(tick);
  return node("div", { class: "nats", "aria-hidden": "true" }, node("div", { class: "ticks-y" }, ...ticks),
    node("div", { class: "columns", style: `--zero:${at(0)}%` }, ...columns),
    node("p", { class: "key" }, node("span", {}, "change of log p in nats, one column per token"), node("span", { class: "is-others" }, "where 90 % of the other boxes lie"), node("span", { class: "is-own" }, "this box, where it stands out")));
}

// Marks in the answers: the words for which the box stands out.
function markRegion(found) {
  for (const old of element.querySelectorAll("sup.region")) old.remove();
  if (!found || !found.sides || root.dataset.phase === "streaming") return;
  for (const variant of run.variants) {
    const side = found.sides[variant.name], box = stripOf(variant.name);
    if (!side || side.error || !box) continue;
    side.tokens.forEach(({ verdict, change }, t) => {
      const here = box.querySelector(`[data-i="${t}"]`);
      if (!here || verdict === "no more than others") return;
      here.append(node("sup", { class: `region ${verdict === "matters" ? "matters" : "hinders"}`, title: side.tokens[t].words }, `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(1)}`));
    });
  }
}
