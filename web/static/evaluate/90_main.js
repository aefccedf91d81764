let data = null; // the result on screen
let coming = null; // id of the run whose data is being fetched
const tell = (text) => ($(".status-text").textContent = text);

function complain(text) {
  $(".alert").hidden = !text;
  $(".alert").textContent = text || "";
}

// Which part of the result is shown: the final one, or that of a running run.
function stage(busy) {
  for (const part of [".settings", ".state", ".warnings", ".said", ".acts", ".rest"]) $(part).hidden = busy;
  $(".blank").hidden = busy || Boolean(data);
  $(".work").hidden = !(busy || data);
}

async function show(value) {
  const { phase, position } = value, busy = phase === "queued" || phase === "running";
  root.dataset.phase = phase;
  $(".phase").textContent = phase === "queued" ? `Waiting: ${position} before yours` : phase === "error" ? "Nothing new" : value.message;
  $(".facts").textContent = [...(value.facts || []), value.text].filter(Boolean).join(" · ");
  const bar = $("progress");
  bar.hidden = phase !== "running";
  if (value.fraction == null) bar.removeAttribute("value");
  else bar.value = value.fraction;
  complain(phase === "error" && value.message);
  if (busy) {
    sessionStorage.setItem("sinkscope-evaluation", value.run); // so that a reload shows the answers
    coming = null;
    stage(true);
    $(".title").textContent = value.live ? "So far" : "";
    figures(value.live || { scores: [] }, false);
  } else if (!value.data) {
    stage(false);
    if (data) build();
  }
  if (!value.data || coming === value.data.url) return;
  coming = value.data.url;
  const answer = await fetch(sameOrigin(value.data));
  if (!answer.ok) return complain("This run is no longer on the server. Press Run to make it again.");
  const { header } = unpack(await unzip(answer));
  if (coming !== value.data.url) return;
  data = { ...header, run: value.run };
  $('[data-do="go-on"]').hidden = phase !== "stopped" && data.complete;
  tell("");
  stage(false);
  build();
  sessionStorage.setItem("sinkscope-evaluation", data.run); // for this tab only
  remember(data.run, [data.title, ...data.settings.split(", sink")[0].split("VAR: ").slice(1)].join(" · "));
  root.dataset.ready = data.run;
}

async function open(run) {
  const value = await server.open_evaluation({ run });
  if (value && !value.error) return show(value);
  complain(value ? value.error : "The server does not answer.");
  if (value) keep(earlier().filter((one) => one.id !== run));
}

async function save(what) {
  tell("Making the file …");
  const file = await server.evaluation_file({ run: data.run, what });
  if (!file || file.error) return tell(file ? file.error : "The server does not answer.");
  node("a", { href: sameOrigin(file), download: file.name }).click();
  tell(file.name);
}

async function forget() { // the run, its answers, and all files made from it
  if (!confirm("Delete this run, its answers and its files from the server?")) return;
  const { run } = data, result = await server.forget_evaluation({ run });
  if (!result || result.error) return tell(result ? result.error : "The server does not answer.");
  sessionStorage.removeItem("sinkscope-evaluation");
  data = coming = null;
  delete root.dataset.ready;
  keep(earlier().filter((one) => one.id !== run));
  show({ phase: "empty", message: "Deleted" });
}

element.addEventListener("change", ({ target }) => {
  const name = target.dataset.set;
  if (!name) return;
  Object.assign(view, { [name]: target.value, most: MOST });
  list();
});
element.addEventListener("click", ({ target }) => {
  const { do: what, save: file, open: question, method, run, drop } = target.dataset;
  if (what === "more") { view.most += MOST; list(); }
  if (what === "delete") forget();
  if (what === "go-on") trigger("submit", { run: data.run });
  if (file) save(file);
  if (question) { tell(""); trigger("select", { run: data.run, question, method }); }
  if (run) open(run);
  if (drop) keep(earlier().filter((one) => one.id !== drop));
});

element.evaluation = { view, get data() { return data; } }; // for scripts and tests
watch("value", () => props.value && props.value.phase && show(props.value));
showEarlier();
(async () => {
  const run = sessionStorage.getItem("sinkscope-evaluation"), value = props.value;
  if (value && value.phase && value.phase !== "empty") return show(value);
  const kept = run && (await server.open_evaluation({ run }));
  if (kept && !kept.error && !coming) show(kept);
})();
