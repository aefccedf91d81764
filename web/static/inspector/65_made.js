// The settings that made this run (drawing/run_summary.py): under the header, in the list of runs and on pictures.
// For two runs side by side there is a table (84_runs.js).
const madeWords = () => (run.made ? run.made.split(" · ") : []);

function showMade() {
  const line = $(".made-by");
  const parts = [...madeWords(), ...(view.picked ? [`maps of ${pickedWords()}`] : [])].join(" · ");
  line.hidden = !parts;
  line.textContent = line.title = parts;
}
