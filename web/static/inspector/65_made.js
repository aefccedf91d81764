// What made this run, in the words of its settings: under the header, in the list of runs and on pictures.
const trimmed = (x) => (typeof x === "number" ? String(+x.toPrecision(6)) : `${x}`);

// Of two runs side by side a table says it (84_runs.js).
function madeWords() {
  if (run.kind === "pair") return [];
  const first = run.variants[0], settings = first.settings || {}, report = run.variants.map((v) => v.var).find(Boolean);
  const words = [`model ${run.model.id}`];
  if (report) {
    const own = report.settings || {}, acted = own.layers || (report.layers || []).map((x) => x.layer);
    const numbers = [["VAR tau", own.tau], ["keep", own.keep], ["max sink share", own.max_sink_share]].filter(([, x]) => x != null);
    words.push(...(numbers.length ? numbers.map(([name, x]) => `${name} ${trimmed(x)}`) : ["VAR"]), acted.length ? `layers ${spell(acted)}` : "no layer",
      ...(own.heads ? [`heads ${own.heads.map((x) => x.join(".")).join(", ")}`] : []),
      ...(own.dialect ? [own.dialect] : []), `control ${own.control || "none"}`, run.same_text ? "same text" : "own text");
  } else words.push("no VAR");
  words.push(settings.decoding === "checkpoint" ? "decoded as the checkpoint says" : settings.temperature > 0 ? `temperature ${trimmed(settings.temperature)}` : "greedy");
  if (first.seed != null) words.push(`seed ${trimmed(first.seed)}`);
  return words;
}

function showMade() {
  const words = madeWords(), line = $(".made-by");
  line.hidden = !words.length;
  line.textContent = line.title = words.join(" · ");
}
