// Lists of single heads: the localising heads or sink heads of this run (web/explore/head_lists.py), or those of a file.
// Maps are made from them instead of the ranges of layers and heads; they are in the label, the link and saved files.
const HEAD_KINDS = { "": "head", localising: "localising head", feeds_on_sinks: "sink head" };
const HEADS_NAMED = 12, HEADS_BYTES = 2e6, HEADS_MOST = 1000; // as in methods/head_list.py
let finding = null; // the running search: { ask, which, at, run }

function pickedWords() {
  const { pairs, kind } = view.picked, named = pairs.slice(0, HEADS_NAMED).map((pair) => pair.join("."));
  if (pairs.length > HEADS_NAMED) named.push("…");
  return `${pairs.length} ${HEAD_KINDS[kind]}${pairs.length === 1 ? "" : "s"} (${named.join(", ")})`;
}

const hasPairs = (pairs) => pairs.every(([l, h]) => run.layers.includes(l) && run.heads.includes(h));

// Meanwhile the ranges are used: the panels below show every layer and head.
function pickHeads(picked) {
  Object.assign(view, { picked, l0: 0, l1: run.L - 1, h0: 0, h1: run.H - 1, four: "" });
}

// "localising~4.1-4.3", from a link; null if it is not a list.
function readPicked(text) {
  const hit = /^(\w{0,20})~(\d{1,4}\.\d{1,4}(?:-\d{1,4}\.\d{1,4})*)$/.exec(text);
  if (!hit || !Object.hasOwn(HEAD_KINDS, hit[1])) return null;
  const pairs = [...new Set(hit[2].split("-"))].map((pair) => pair.split(".").map(Number));
  return pairs.length > HEADS_MOST ? null : { kind: hit[1], pairs: pairs.sort((a, b) => a[0] - b[0] || a[1] - b[1]) };
}

function openPicked({ pairs, kind }) {
  if (hasPairs(pairs)) pickHeads({ pairs, kind, from: "link", file: "" });
  else complain("The link names heads that this run did not keep; all that it kept are shown.");
}

function wireHeads() {
  $('[data-do="picks"]').addEventListener("change", (event) => {
    const which = event.target.value;
    if (which === "picked") return;
    if (which) return findHeads(which);
    view.picked = null;
    repaint();
  });
  const input = $('[data-testid="heads-file"]');
  $('[data-do="open-heads"]').addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = ""; // so that the same file can be opened again
    if (file && run) await openHeads(file);
  });
  $('[data-do="save-heads"]').addEventListener("click", () => {
    const { file, kind } = view.picked;
    downloadBlob(new Blob([file], { type: "application/json" }), `sinkscope-${run.id.slice(0, 8)}-${kind === "localising" ? "localising" : "sink"}-heads.json`);
  });
}

function findHeads(which) {
  if (!served || (finding && Date.now() - finding.at < 60000)) return syncPicked();
  complain("");
  finding = { ask: crypto.getRandomValues(new Uint32Array(4)).join("-"), which, at: Date.now(), run };
  trigger("expand", { ask: finding.ask, which, ...asking(run.id) });
  syncPicked();
}

function showHeads(value) {
  if (!finding || value.ask !== finding.ask) return;
  const mine = finding.run === run;
  finding = null;
  if (mine) takeHeads(value, "run");
  else syncPicked();
}

async function openHeads(file) {
  const mine = run;
  complain("");
  if (file.size > HEADS_BYTES) return complain(`${file.name} is not a list of heads: it has more than 2 MB.`);
  const answer = await server.read_heads({ ...asking(run.id), name: file.name, text: await file.text() }).catch(() => null);
  if (run === mine) takeHeads(answer || { error: "The server does not answer; is it still running?" }, "file");
}

function takeHeads(value, from) {
  if (value.error) complain(value.error);
  else pickHeads({ pairs: value.pairs, kind: value.kind, from, file: value.file });
  repaint();
  syncPicked(); // an error changes only the list
}

function syncPicked() {
  const select = $('[data-do="picks"]'), own = select.querySelector('[value="picked"]'), single = run.heads[0] >= 0;
  own.hidden = !view.picked;
  own.textContent = view.picked ? `list of ${view.picked.pairs.length}` : "";
  select.value = finding && finding.run === run ? finding.which : view.picked ? "picked" : "";
  select.disabled = !single;
  select.title = single ? "Make the map of single heads: those of this run that localise, or that feed on sinks" : "This run kept only the mean over its heads";
  for (const one of select.querySelectorAll('[value="localising"], [value="sinks"]')) one.disabled = !served;
  $('[data-do="open-heads"]').hidden = !served || !single;
  $('[data-do="save-heads"]').hidden = !(view.picked && view.picked.file);
}
