// What made this run, in the words of its settings (drawing/run_summary.py): under the header, in the list of runs and on pictures.
// Of two runs side by side a table says it (84_runs.js).
const madeWords = () => (run.made ? run.made.split(" · ") : []);

function showMade() {
  const line = $(".made-by");
  const parts = [...madeWords(), ...(view.picked ? [`maps of ${pickedWords()}`] : [])].join(" · ");
  line.hidden = !parts;
  line.textContent = line.title = parts;
}
