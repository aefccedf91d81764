// The list of questions: a filter, and a card for each question.
const MOST = 24; // cards, until "Show more"
const view = { show: "all", type: "", most: MOST };
const scoreOf = (one, method) => one.answers.find((answer) => answer.method === method)?.score ?? null;

// 1: better with the method, -1: worse, 0: unchanged or unknown.
function moved(one, method) {
  const before = scoreOf(one, data.baseline), after = scoreOf(one, method);
  return before == null || after == null ? 0 : Math.sign(after - before);
}

// Each choice: key, label, the compared method, and a test for its questions.
function choices() {
  const others = data.methods.filter((name) => name !== data.baseline), first = others[0] || data.methods[0];
  const made = [{ key: "all", words: "all", method: first, has: () => true }];
  for (const method of others) made.push(
    { key: `changed ${method}`, words: `changed by ${method}`, method, has: (one) => moved(one, method) !== 0 },
    { key: `fixed ${method}`, words: `fixed by ${method}`, method, has: (one) => moved(one, method) > 0 },
    { key: `broken ${method}`, words: `broken by ${method}`, method, has: (one) => moved(one, method) < 0 });
  for (const method of data.methods) made.push({ key: `wrong ${method}`, words: `wrong by ${method}`, method: method === data.baseline ? first : method, has: (one) => scoreOf(one, method) === 0 });
  made.push({ key: "failed", words: "without an answer", method: first, has: (one) => one.answers.some((answer) => answer.error) });
  return made;
}

function fillChoices() {
  const all = choices().map((choice) => ({ ...choice, count: data.asked.filter(choice.has).length }));
  const types = [...new Set(data.asked.map((one) => one.type))].filter(Boolean);
  $('[data-set="show"]').replaceChildren(...all.filter(({ key, count }) => count || !key.startsWith("failed")).map(({ key, words, count }) => node("option", { value: key }, `${words} (${count})`)));
  $('[data-set="type"]').replaceChildren(node("option", { value: "" }, "all"), ...types.map((type) => node("option", { value: type }, type)));
  Object.assign(view, { show: (all.find(({ key, count }) => key.startsWith("changed") && count) || all[0]).key, type: "", most: MOST });
}

function card(one, method) {
  const [sign, word] = [["worse-ink", "broken"], ["", ""], ["better-ink", "fixed"]][moved(one, method) + 1];
  const same = one.answers.length > 1 && one.answers.every(({ text, error }) => !error && text === one.answers[0].text);
  const answers = (same ? [{ ...one.answers[0], method: "all methods" }] : one.answers).flatMap(({ method: by, text, score, error }) => [node("dt", {}, by),
    node("dd", { class: error ? "wrong" : score === 1 ? "right" : score === 0 ? "wrong" : null }, error || text || "(nothing)")]);
  return node("li", { "data-question": one.id }, one.picture ? node("img", { src: sameOrigin({ url: one.picture }), alt: "", loading: "lazy", width: 92, height: 92 }) : node("span", {}),
    node("div", {}, node("p", { class: "top" }, node("span", {}, one.type), word ? node("span", { class: sign }, `${word} by ${method}`) : null), node("p", { class: "ask" }, one.text || one.id),
      node("dl", {}, node("dt", {}, "truth"), node("dd", {}, one.truth), ...answers),
      node("button", { type: "button", "data-open": one.id, "data-method": method, "aria-label": `Open in Explore: ${one.text || one.id} (${one.id})` }, "Open in Explore")));
}

function list() {
  for (const name of ["show", "type"]) $(`[data-set="${name}"]`).value = view[name];
  const choice = choices().find(({ key }) => key === view.show), found = data.asked.filter((one) => choice.has(one) && (!view.type || one.type === view.type));
  const shown = found.slice(0, view.most);
  $(".count").textContent = found.length ? `${shown.length} of ${found.length}` : "none";
  $(".cards").replaceChildren(...shown.map((one) => card(one, choice.method)));
  $('[data-do="more"]').hidden = shown.length === found.length;
}
