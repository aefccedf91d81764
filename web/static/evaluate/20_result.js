// Scores and differences, during a run and at its end.
function figures(now, over) {
  $(".now").hidden = !now.scores.length;
  if (!now.scores.length) return;
  const { scores, differences, confidence } = now;
  $(".figure").textContent = `${now.figure[0].toUpperCase()}${now.figure.slice(1)} on ${now.questions} question${now.questions === 1 ? "" : "s"}`;
  $("[data-testid=evaluate-scores]").replaceChildren(plotted(scoreAxis(scores), share, ["Method", "Score", confidence, "By"],
    scores.map((one) => ({ name: one.method, one, texts: [one.text, one.between, one.how] }))));
  $(".apart").hidden = $(".early").hidden = !differences.length;
  $(".early").hidden = $(".early").hidden || over;
  $("[data-testid=evaluate-differences]").replaceChildren(differences.length ? plotted(differenceAxis(differences), points,
    ["Methods", "Difference", confidence, "Fixed", "Broken", "Same", ...(over ? ["Verdict"] : [])],
    differences.map((one) => ({ name: `${one.method} − ${one.against}`, one, texts: [one.text, one.between, ...[one.fixed, one.broken, one.same].map(String), ...(over ? [verdict(one)] : [])] }))) : "");
}

function typed() {
  const { types, methods, baseline } = data, others = methods.filter((name) => name !== baseline);
  $(".by-type").hidden = !types.length;
  if (!types.length) return;
  const pair = (one, ...more) => [one.text, node("span", { class: "under" }, ...more)];
  const head = ["Type", "Questions", ...methods, ...others.map((name) => `${name} − ${baseline}`)];
  $("[data-testid=evaluate-types]").replaceChildren(node("table", {}, node("thead", {}, node("tr", {}, ...head.map((text) => cell("th", text)))),
    node("tbody", {}, ...types.map((row) => node("tr", {}, node("th", { scope: "row" }, row.type), cell("td", row.questions == null ? "" : String(row.questions)),
      ...row.scores.map((one) => node("td", {}, ...pair(one, one.between))),
      ...row.differences.map((one) => node("td", {}, ...pair(one, `${one.between}, `, verdict(one)))))))));
}

// The verdict is the beginning of each sentence, up to its colon.
function sentence({ text, kind }) {
  const end = text.indexOf(": ");
  return end < 0 ? node("li", { class: kind }, text) : node("li", { class: kind }, node("b", {}, text.slice(0, end + 1)), text.slice(end + 1));
}

function build() {
  $(".title").textContent = data.title;
  $(".settings").textContent = data.settings;
  $(".settings").hidden = !data.settings;
  $(".state").textContent = data.state;
  $(".warnings").replaceChildren(...data.warnings.map((text) => node("li", {}, text)));
  $(".said").replaceChildren(...data.said.map(sentence));
  figures(data, true);
  typed();
  $(".failed").hidden = !data.failures.length;
  $(".failed ul").replaceChildren(...data.failures.map((text) => node("li", {}, text)));
  $(".tables").replaceChildren(...data.tables.flatMap((one) => [node("h3", {}, one.title),
    node("div", { class: "scroll", role: "region", "aria-label": one.title, tabindex: 0 }, table(one)), one.note ? node("p", { class: "note" }, one.note) : ""]));
  fillChoices();
  list();
}
