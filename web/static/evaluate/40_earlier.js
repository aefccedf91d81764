// Ids of this browser's runs: an id gives access to the run, so ids stay in the browser.
const KEPT = "sinkscope-evaluations", MOST_KEPT = 30;

function earlier() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT) || "[]");
    return Array.isArray(kept) ? kept.filter((one) => one && typeof one.id === "string" && typeof one.title === "string") : [];
  } catch { return []; } // no storage, or an unusable value
}

function keep(list) {
  try { localStorage.setItem(KEPT, JSON.stringify(list.slice(0, MOST_KEPT))); } catch { tell("This browser keeps no list of runs."); }
  showEarlier();
}

function remember(id, title) {
  const known = earlier();
  const before = known.find((one) => one.id === id);
  keep([{ id, title, at: before ? before.at : Date.now() }, ...known.filter((one) => one.id !== id)]);
}

function showEarlier() {
  const others = earlier().filter((one) => !data || one.id !== data.run);
  $(".earlier").hidden = !others.length;
  $(".earlier ul").replaceChildren(...others.map(({ id, title, at }) => node("li", {}, node("time", {}, new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })),
    node("button", { type: "button", "data-run": id }, title), node("button", { type: "button", "data-drop": id, "aria-label": `Remove from this list: ${title}` }, "×"))));
}
