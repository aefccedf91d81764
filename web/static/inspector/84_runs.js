// Runs of this browser: a list in its own storage. The server keeps the runs and knows only their ids.
const RUNS_KEY = "sinkscope.runs", RUNS_MOST = 60;

function readRuns() {
  try {
    const list = JSON.parse(localStorage.getItem(RUNS_KEY) || "[]");
    return Array.isArray(list) ? list.filter((item) => item && typeof item.id === "string" && typeof item.name === "string") : [];
  } catch {
    return []; // no storage, or an unusable value: no list
  }
}

function writeRuns(list) {
  try {
    localStorage.setItem(RUNS_KEY, JSON.stringify(list.slice(0, RUNS_MOST)));
  } catch {
    complain("This browser keeps no list of runs: its storage is full or switched off.");
  }
}

function rememberRun() {
  if (run.kind === "run" && served) {
    const list = readRuns(), known = list.find((item) => item.id === run.id);
    if (!known) {
      const tokens = run.variants.map((v) => v.T).join(" | ");
      list.unshift({ id: run.id, name: run.prompt.slice(0, 200), model: run.model.id, tokens, at: run.created,
        made: madeWords().slice(1).join(" · "), thumb: thumbnail() });
      writeRuns(list);
    }
  }
  if (!$(".runs").hidden) listRuns();
}

// A picture of the run for the list: small enough for sixty of them in a browser's storage.
function thumbnail() {
  const photo = picture.images[0], canvas = node("canvas", { width: 56, height: 42 }), ink = canvas.getContext("2d");
  const scale = Math.max(56 / photo.width, 42 / photo.height), [w, h] = [photo.width * scale, photo.height * scale];
  ink.drawImage(photo, (56 - w) / 2, (42 - h) / 2, w, h);
  return canvas.toDataURL("image/jpeg", 0.7);
}

// The first side of a comparison, while the second is chosen: { id, answer }.
let picked = null;
const answersOf = (item) => (String(item.tokens).includes("|") ? ["baseline", "var"] : ["baseline"]);
const ANSWERS = { baseline: "baseline", var: "VAR" };

// The request to the server: a pair's sides have the names that this browser gave the runs.
function asking(id) {
  const known = new Map(readRuns().map((item) => [item.id, item.name]));
  return { run: id, names: id.split("~").map((side) => known.get(side.split(".")[0]) || "") };
}

const pressed = (text, onclick, testid) => node("button", { type: "button", class: "plain", onclick, "data-testid": testid }, text);

// Rename, Delete, Compare; or, after one run was picked, the answers to compare.
function actsOf(row, item) {
  const pick = (to) => {
    picked = to;
    listRuns();
  };
  if (!picked) {
    return [pressed("Compare", () => pick({ id: item.id, answer: "baseline" }), "compare-run"),
      pressed("Rename", () => renameRun(row, item)), pressed("Delete", () => forgetRun(item.id))];
  }
  if (picked.id !== item.id) {
    const several = answersOf(item).length > 1;
    return answersOf(item).map((answer) => pressed(several ? `with its ${ANSWERS[answer]}` : "with this", () => {
      const id = `${picked.id}.${picked.answer}~${item.id}.${answer}`;
      pick(null);
      openRun(id);
    }, "compare-with"));
  }
  const choice = node("select", { "aria-label": "Which answer of this run", onchange: (event) => (picked.answer = event.target.value) },
    ...answersOf(item).map((answer) => node("option", { value: answer, selected: answer === picked.answer }, `its ${ANSWERS[answer]}`)));
  return [answersOf(item).length > 1 ? choice : null, node("span", { class: "quiet" }, "with …"), pressed("Cancel", () => pick(null))];
}

function listRuns() {
  const list = readRuns();
  if (picked && (list.length < 2 || !list.some((item) => item.id === picked.id))) picked = null;
  const rows = list.map((item) => {
    const here = run && run.id.split(/[.~]/).includes(item.id);
    const open = node("button", { type: "button", class: "open", "aria-current": here ? "true" : null,
      onclick: () => openRun(item.id) }, item.name);
    const when = new Date(item.at * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    const made = typeof item.made === "string" && item.made;
    const thumb = /^data:image\/jpeg;base64,[\w+/=]+$/.test(item.thumb || "") ? node("img", { src: item.thumb, alt: "", width: 56, height: 42 }) : node("span", {});
    const row = node("li", {}, thumb, node("span", { class: "who" }, open, made ? node("small", { title: made }, made) : null),
      node("small", {}, `${item.model} · ${item.tokens} tokens · ${when}`));
    row.append(node("span", { class: "acts" }, ...actsOf(row, item)));
    if (list.length < 2 && !picked) row.querySelector(".acts button").remove();
    return row;
  });
  if (deleted) rows.unshift(node("li", { "data-testid": "undo-row" }, node("span", {}), node("span", { class: "who" }, `Deleted: ${deleted.item.name}`), node("span", {}),
    node("span", { class: "acts" }, pressed("Undo", undoDelete, "undo-delete"))));
  $(".runs ul").replaceChildren(...(rows.length ? rows : [node("li", {}, node("span", { class: "quiet" }, "None yet. A run is listed here when it is done, and stays after a reload."))]));
}

function renameRun(row, item) {
  const input = node("input", { type: "text", value: item.name, maxlength: 200, "aria-label": "Name of the run" });
  const done = (keep) => {
    const list = readRuns(), mine = list.find((x) => x.id === item.id);
    if (keep && mine && input.value.trim()) {
      mine.name = input.value.trim();
      writeRuns(list);
    }
    listRuns();
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" || event.key === "Escape") done(event.key === "Enter");
  });
  input.addEventListener("blur", () => input.isConnected && done(true));
  row.querySelector(".open").replaceWith(input);
  input.focus();
  input.select();
}

async function openRun(id) {
  if (run && run.id === id && coming === id) { // already on screen: only the form must be updated
    if (run.kind !== "pair") trigger("apply", { run: id, fill: true });
    return;
  }
  const answer = await server.open_run(asking(id));
  if (!answer || answer.error) return complain(answer ? answer.error : "The server does not answer; is it still running?");
  pending = id;
  await showRun(answer, null, true).catch((error) => {
    coming = null;
    complain(`The run cannot be shown: ${error.message}.`);
  });
}

// A run leaves the list at once, and the server when deleting can no longer be undone.
const UNDO_MS = 10000;
let deleted = null; // { item, place, timer }
function forgetRun(id) {
  finishDelete();
  const list = readRuns(), place = list.findIndex((item) => item.id === id);
  if (place < 0) return;
  deleted = { item: list[place], place, timer: setTimeout(finishDelete, UNDO_MS) };
  writeRuns(list.filter((item) => item.id !== id));
  listRuns();
  $('[data-testid="undo-delete"]').focus();
}

function undoDelete() {
  const { item, place, timer } = deleted, list = readRuns();
  clearTimeout(timer);
  deleted = null;
  list.splice(place, 0, item);
  writeRuns(list);
  listRuns();
}

function finishDelete() {
  if (!deleted) return;
  clearTimeout(deleted.timer);
  server.forget_run({ run: deleted.item.id }).catch(() => {}); // a server that has ended has no runs
  deleted = null;
  if (!$(".runs").hidden) listRuns();
}

// For two runs side by side: the settings of both, with differences marked.
function buildSettings() {
  if (!run.settings) return;
  const cell = (tag, text, scope) => node(tag, { scope }, text);
  const rows = run.settings.map(([what, a, b]) => node("tr", { class: a === b ? null : "differs" },
    cell("th", what, "row"), cell("td", a), cell("td", b)));
  const made = card("settings", "What made them");
  made.querySelector(".body").append(node("table", { class: "wide" },
    node("thead", {}, node("tr", {}, ...["", ...run.variants.map((v) => v.label)].map((text) => cell("th", text, "col")))),
    node("tbody", {}, ...rows)));
  $(".reading").append(made);
}

function wireRuns() {
  const button = $('[data-do="runs"]');
  button.hidden = !served;
  button.addEventListener("click", () => togglePop("runs"));
  window.addEventListener("pagehide", finishDelete);
}
