// Runs of this browser: a list in its own storage. The server keeps the runs, and knows them by id only.
const RUNS_KEY = "sinkscope.runs", RUNS_MOST = 60;

function readRuns() {
  try {
    const list = JSON.parse(localStorage.getItem(RUNS_KEY) || "[]");
    return Array.isArray(list) ? list.filter((item) => item && typeof item.id === "string") : [];
  } catch {
    return []; // no storage here, or not ours: then there is no list
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
  if (run.kind !== "example" && served) {
    const list = readRuns(), known = list.find((item) => item.id === run.id);
    if (!known) {
      const tokens = run.variants.map((v) => v.T).join(" | ");
      list.unshift({ id: run.id, name: run.prompt.slice(0, 200), model: run.model.id, tokens, at: run.created });
      writeRuns(list);
    }
  }
  if (!$(".runs").hidden) listRuns();
}

function listRuns() {
  const list = readRuns();
  const rows = list.map((item) => {
    const open = node("button", { type: "button", class: "open", "aria-current": run && item.id === run.id ? "true" : null,
      onclick: () => openRun(item.id) }, item.name);
    const when = new Date(item.at * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    const row = node("li", {}, open, node("small", {}, `${item.model} · ${item.tokens} tokens · ${when}`),
      node("button", { type: "button", class: "plain", onclick: () => renameRun(row, item) }, "Rename"),
      node("button", { type: "button", class: "plain", onclick: () => forgetRun(item.id) }, "Delete"));
    return row;
  });
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
  const answer = await server.open_run({ run: id });
  if (!answer || answer.error) return complain(answer ? answer.error : "The server does not answer; is it still running?");
  pending = id;
  await showRun(answer).catch((error) => {
    coming = null;
    complain(`The run cannot be shown: ${error.message}.`);
  });
}

async function forgetRun(id) {
  await server.forget_run({ run: id });
  writeRuns(readRuns().filter((item) => item.id !== id));
  listRuns();
}

function wireRuns() {
  const button = $('[data-do="runs"]');
  button.hidden = !served;
  button.addEventListener("click", () => {
    $(".runs").hidden = !$(".runs").hidden;
    button.setAttribute("aria-expanded", !$(".runs").hidden);
    if (!$(".runs").hidden) listRuns();
  });
}
