// The numbers beside the map: alternatives of the token, distribution of its attention, strongest patches, tokens of a box.
const SEGMENT_COLOURS = { system: "a", image: "b", user: "c", template: "d", answer: "e", assistant: "e" };

function buildReading() {
  $(".reading").replaceChildren(
    card("region", "Does this box matter?"), card("explained", "Other explanations of this word"), card("considered", "Considered here"), card("budget", "Where its attention went"),
    card("patches", "Strongest patches"), card("lookup", "Who looked here"));
  watchTop($(".patches .body"));
  for (const { var: report, label } of run.variants) {
    if (!report || !Array.isArray(report.layers)) continue;
    const made = card("moved", run.kind === "pair" ? `What VAR changed: ${label}` : "What VAR changed");
    $(".reading").append(made);
    showReport(report, made);
  }
}

// VAR's report by layer; it does not depend on the chosen token.
function showReport(report, cardNode) {
  const rows = report.layers.map((layer) => node("tr", {},
    node("th", { scope: "row" }, `layer ${layer.layer}`),
    node("td", {}, String((layer.positions || []).length)), node("td", {}, percent(layer.flagged)),
    node("td", {}, percent(layer.selected)), node("td", {}, percent(layer.moved))));
  const random = report.settings && report.settings.control === "random", treated = random ? "random patches" : "sinks"; // a control treats patches that are no sinks
  const head = ["", treated, "of all patches", "rows changed", "attention moved"];
  cardNode.querySelector(".body").replaceChildren(node("table", { title: `rows changed: of all (head, row) pairs that may be; attention moved: mean attention mass taken from the ${treated}` },
    node("thead", {}, node("tr", {}, ...head.map((text) => node("th", { scope: "col" }, text)))),
    node("tbody", {}, ...(rows.length ? rows : [node("tr", {}, node("td", {}, "no layer"))]))));
}

const card = (name, title) => node("section", { class: `card ${name}`, "data-testid": name },
  node("h3", {}, title), node("div", { class: "body" }));

function paintReading() {
  paintConsidered();
  paintBudget();
  paintTop();
  paintLookUp();
  paintRegion();
  paintExplained();
}

const sideTitle = (variant) => (run.variants.length > 1 ? node("h4", {}, variant.label) : null);

function paintConsidered() {
  if (!changed($(".considered"), sides().flatMap((side) => [side, ...(shown.spans[side.name] || [null])]))) return;
  const made = sides().map((variant) => {
    const column = node("div", {}, sideTitle(variant)), span = shown.spans[variant.name];
    if (!span) column.append(node("p", { class: "quiet" }, "no such token"));
    else if (view.part === "prompt") column.append(node("p", { class: "quiet" }, "Nothing: a token of the prompt is given. Its map is the row of the token itself, what it looked at when it was read."));
    else if (span[0] !== span[1]) {
      const some = variant.tokens.slice(span[0], span[1] + 1);
      const sum = some.reduce((s, token) => s + Math.log(Math.max(token.p, 1e-12)), 0);
      column.append(node("p", { class: "quiet" },
        `${some.length} tokens, probability ${Math.exp(sum / some.length).toFixed(3)} (geometric mean)`));
    } else column.append(alternatives(variant.tokens[span[0]]));
    return column;
  });
  renew($(".considered .body"), made);
}

function alternatives(token) {
  const rows = token.a.map(([text, p, own]) => [text, p, own]);
  if (!rows.some((row) => row[2])) rows.push([token.t, token.p, 1]);
  return node("ol", { class: "bars" }, ...rows.map(([text, p, own]) =>
    node("li", { class: own ? "own" : null, style: `--p:${p}` },
      node("span", { class: "text" }, glyphs(text)), node("i", {}), node("output", {}, p < 0.0005 ? "<.001" : p.toFixed(3)))));
}

function paintBudget() {
  const made = sides().map((variant) => {
    const labels = [...variant.parts.map((s) => s[1]), "answer so far"], kinds = [...variant.parts.map((s) => s[0]), "answer"];
    const share = shown.shares[variant.name], column = node("div", {}, sideTitle(variant));
    if (!share) return column;
    const merged = new Map();
    share.segments.forEach((x, s) => {
      const key = kinds[s] === "image" ? labels[s] : kinds[s];
      const had = merged.get(key) || { x: 0, kind: kinds[s], label: kinds[s] === "answer" ? "answer so far" : key === "user" ? "question" : key };
      merged.set(key, { ...had, x: had.x + x });
    });
    const parts = [...merged.values()];
    column.append(
      node("div", { class: "stack" }, ...parts.map((part) =>
        node("i", { class: `s-${SEGMENT_COLOURS[part.kind] || "d"}`, style: `flex-grow:${part.x.toFixed(5)}`, title: `${part.label} ${percent(part.x)}` }))),
      node("ul", { class: "legend" }, ...parts.map((part) =>
        node("li", {}, node("i", { class: `s-${SEGMENT_COLOURS[part.kind] || "d"}` }), node("span", {}, part.label), node("output", {}, percent(part.x))))),
      // Parts are kept as means over the heads; without this note they would seem to contradict the map's share.
      node("p", { class: "quiet" }, allHeads() ? `entropy ${share.entropy.toFixed(2)} nats`
        : `over all heads of these layers; the chosen heads: image ${percent(share.image)}, entropy ${share.entropy.toFixed(2)} nats`));
    return column;
  });
  renew($(".budget .body"), made);
}

function paintTop() {
  const made = sides().map((variant) => {
    const { columns, start } = imageOf(variant), [p0, p1] = patchesOfImage(variant);
    const map = shown.maps[variant.name], column = node("div", {}, sideTitle(variant));
    if (!map) return column;
    const order = Array.from({ length: p1 - p0 }, (_, k) => k).filter((k) => map[p0 + k] >= 0).sort((a, b) => map[p0 + b] - map[p0 + a]).slice(0, 5);
    let total = 0;
    for (let v = p0; v < p1; v++) total += map[v] || 0;
    const body = order.map((k) => {
      const sink = sinkScore(variant, start + k) != null;
      return node("tr", { "data-cell": cellOn(k, imageOf(variant), imageOf(run.variants[0])) },
        node("th", { scope: "row" }, `${Math.floor(k / columns)}, ${k % columns}`, sink ? node("span", { class: "sinkmark", title: "attention sink" }, "⊠") : null),
        node("td", {}, percent(map[p0 + k])), node("td", {}, total > 0 ? percent(map[p0 + k] / total) : "–"));
    });
    column.append(node("table", {},
      node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "patch"), node("th", { scope: "col" }, "of row"), node("th", { scope: "col" }, "of map"))),
      node("tbody", {}, ...body)));
    return column;
  });
  renew($(".patches .body"), made);
}

// Pointing at one of the strongest patches marks it on the images.
function watchTop(body) {
  const point = (event) => {
    const row = event.type === "pointermove" && event.target.closest("tr[data-cell]"), cell = row ? +row.dataset.cell : null;
    if (cell === view.cursor) return;
    view.cursor = cell;
    paintInk();
  };
  body.addEventListener("pointermove", point);
  body.addEventListener("pointerleave", point);
}

function paintLookUp() {
  const body = $(".lookup .body");
  if (!view.box) {
    if (body.querySelector("p:only-child") === null) body.replaceChildren(node("p", { class: "quiet" }, "Click a patch or drag a box on the image: the tokens that looked there most are listed here and tinted in the answer."));
    return;
  }
  const made = sides().map((variant) => {
    const looks = lookUp(variant).sort((a, b) => b.mass - a.mass).slice(0, 6), top = looks.length ? looks[0].mass : 1;
    return node("div", {}, sideTitle(variant), node("ol", { class: "bars looks" }, ...looks.map((look) =>
      node("li", { style: `--p:${top > 0 ? look.mass / top : 0}` },
        node("button", { type: "button", class: "text", title: `token ${look.t}; most in layer ${run.layers[look.layer]} (${percent(look.top)})`,
          onclick: () => selectTokens(look.t, look.t) }, glyphs(variant.tokens[look.t].t)),
        node("i", {}), node("output", {}, `${percent(look.mass)} · L${run.layers[look.layer]}`)))));
  });
  const clear = node("button", { type: "button", class: "plain", "data-testid": "clear-box", onclick: () => setBox(null) }, "clear");
  body.replaceChildren(node("p", { class: "quiet wide" }, `${boxWords(view.box)}, mean over all heads `, clear), ...made);
}
