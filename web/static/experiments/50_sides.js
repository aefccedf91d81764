// Two finished runs of one experiment side by side. The list of runs is in the storage of this browser tab.
const RUNS = "sinkscope-experiment-runs", MOST = 20;
const isRun = (one) => one && typeof one.run === "string" && typeof one.text === "string" && Number.isInteger(one.number);
const runs = () => { // an unusable value counts as no list
  try { const kept = JSON.parse(sessionStorage.getItem(RUNS) || "[]"); return Array.isArray(kept) ? kept.filter(isRun) : []; } catch { return []; }
};
const pairs = (all) => all.filter((one) => all.some((other) => other.run !== one.run && other.experiment === one.experiment));

function remember({ experiment, label, compared }, run) {
  const all = runs();
  if (compared || all.some((one) => one.run === run)) return sides();
  const number = 1 + Math.max(0, ...all.map((one) => one.number));
  const at = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  sessionStorage.setItem(RUNS, JSON.stringify([...all, { run, experiment, number, text: `${number}: ${label} · ${at}` }].slice(-MOST)));
  const same = runs().filter((one) => one.experiment === experiment);
  sides(same.length > 1 ? same.at(-2).run : null, run);
}


// The choices: for A, any run whose experiment has another run; for B, a run of A's experiment.
function sides(a, b) {
  const form = $(".sides"), all = pairs(runs());
  form.hidden = !all.length;
  if (!all.length) return;
  fillIn(form.a, all, a || form.a.value);
  const experiment = all.find((one) => one.run === form.a.value).experiment;
  fillIn(form.b, all.filter((one) => one.experiment === experiment && one.run !== form.a.value), b || form.b.value);
}

function fillIn(select, all, chosen) {
  select.replaceChildren(...all.map(({ run, text }) => node("option", { value: run }, text)));
  select.value = all.some((one) => one.run === chosen) ? chosen : all.at(-1).run;
}

async function beside(what) {
  const { a, b } = $(".sides"), before = root.dataset.phase;
  if (/queued|running/.test(before)) return;
  root.dataset.phase = "running";
  $(".phase").textContent = what === "compare" ? "Setting two runs side by side" : "Opening";
  $(".facts").textContent = "";
  complain("");
  const asked = what === "compare" ? { a: a.value, b: b.value } : { run: what === "a" ? a.value : b.value };
  let found;
  try {
    found = await (what === "compare" ? server.compare_experiments(asked) : server.open_experiment(asked));
  } catch { found = { error: "The server does not answer." }; }
  if (root.dataset.phase !== "running" || $(".facts").textContent) return; // a run has begun in the meantime
  if (!found.error) return show(found);
  root.dataset.phase = before;
  $(".phase").textContent = "Nothing new";
  complain(found.error);
}

$(".sides").addEventListener("change", () => sides());
$(".sides").addEventListener("submit", (event) => { event.preventDefault(); beside("compare"); });
$(".sides").addEventListener("click", ({ target }) => { if (/^[ab]$/.test(target.dataset.does || "")) beside(target.dataset.does); });
