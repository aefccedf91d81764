// Replay: steps through the answer, one token per beat; choosing another token, or Stop, ends it.
const BEAT = 600; // ms
let playing = null; // { timer, at }: at is the token that was shown last

function wirePlay() {
  $('[data-do="play"]').addEventListener("click", togglePlay);
}

function togglePlay() {
  if (playing) return stopPlaying();
  if (!run || !longest() || root.dataset.phase === "streaming") return;
  if (view.part !== "answer") view.part = "answer";
  const ended = view.t0 >= longest() - 1;
  playing = { timer: setInterval(playOn, BEAT), at: ended ? 0 : view.t0 };
  showPlaying();
  selectTokens(playing.at, playing.at, null, "answer");
}

function playOn() {
  const chosen = view.part === "answer" && view.t0 === playing.at && view.t1 === playing.at;
  if (!chosen || !element.isConnected || playing.at >= longest() - 1) return stopPlaying();
  playing.at += 1;
  selectTokens(playing.at, playing.at, null, "answer");
}

function stopPlaying() {
  if (!playing) return;
  clearInterval(playing.timer);
  playing = null;
  showPlaying();
}

function showPlaying() {
  const button = $('[data-do="play"]');
  button.setAttribute("aria-pressed", Boolean(playing));
  button.textContent = playing ? "■ Stop" : "▶ Replay";
}
