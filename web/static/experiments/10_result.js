// The Experiments tab (web/experiments/payload.py makes its data). Texts reach the page only as text.
const { node, unzip, unpack, sameOrigin } = document.querySelector("#inspector .scope").parentElement.inspector.tools;
const $ = (selector) => element.querySelector(selector), root = $(".trial");
const items = (texts) => texts.map((text) => node("li", {}, text));
const link = (file, text) => file && node("a", { href: sameOrigin(file), download: file.name, class: "file" }, text || file.name);

function build(data) {
  $(".of").textContent = data.compared ? `${data.experiment} · two runs side by side` : `${data.experiment} · ${data.model}`;
  $(".question").textContent = data.question;
  $(".summary").replaceChildren(...items(data.summary));
  $(".notes").replaceChildren(...items(data.notes));
  $(".verdict").hidden = data.compared;
  judge(data.verdict);
  $(".acts").replaceChildren(node("span", {}, "Save"), ...data.files.map((file) => link(file, file.name.endsWith(".zip") ? `all files: ${file.name}` : file.name)));
  $(".figures").replaceChildren(...data.figures.map(figure));
  $(".tables").replaceChildren(...data.tables.flatMap(table));
  $(".about").replaceChildren(...data.facts.flatMap(([name, text]) => [node("dt", {}, name), node("dd", {}, text)]));
}

const SIGNS = { positive: "✓", negative: "✕", open: "○" };

function judge(verdict) {
  const box = $(".verdict");
  box.dataset.word = verdict ? verdict.word : "none";
  $(".word").textContent = verdict ? `${SIGNS[verdict.word]} Verdict: ${verdict.word}` : "No verdict";
  $(".means").textContent = verdict ? verdict.text : "This experiment only measures; it does not test a factor for A and B.";
  $(".conditions").replaceChildren(...(verdict ? verdict.conditions.map(condition) : []));
  $(".more").replaceChildren(...items(verdict ? verdict.more : []));
}

function condition({ key, name, meaning, holds, word, text, threshold }) {
  return node("div", { class: "condition", "data-holds": holds == null ? "open" : `${holds}` },
    node("h4", {}, `${key} ${name}: `, node("b", {}, word)),
    node("p", {}, text || meaning),
    threshold && node("p", { class: "threshold" }, `Holds if ${threshold}.`));
}

// All figures have one scale, so that their text has one size; a click opens the picture itself.
function figure({ alt, note, size, png, pdf }) {
  const picture = node("img", { src: sameOrigin(png), alt, width: size[0], height: size[1] });
  return node("figure", { style: `width: ${Math.round(0.455 * size[0])}px` },
    node("a", { href: sameOrigin(png), target: "_blank", rel: "noopener" }, picture),
    node("figcaption", {}, node("span", {}, note), link(png, "PNG"), link(pdf, "PDF")));
}

function table({ title, columns, texts, keys, rows, note, left, csv }) {
  const side = (i) => (texts[i] ? null : "number");
  const head = node("tr", {}, ...columns.map((text, i) => node("th", { scope: "col", class: side(i) }, text)));
  const body = rows.map((row) => node("tr", {}, ...row.map((text, i) => node(i < keys ? "th" : "td", { scope: i < keys ? "row" : null, class: side(i) }, text))));
  return [node("h3", {}, title, " ", link(csv, "CSV")),
    node("div", { class: "scroll", role: "region", "aria-label": title, tabindex: 0 }, node("table", {}, node("thead", {}, head), node("tbody", {}, ...body))),
    node("p", { class: "read" }, [left, note].filter(Boolean).join(" "))];
}
