// The component's life cycle: a value arrives (example, stream, result, error) and the page shows it.
const sameOrigin = (file) => {
  if (file.url.startsWith("data:")) return file.url; // a saved page contains everything
  const url = new URL(file.url, document.baseURI); // a proxy may have another host or scheme in it
  return url.pathname + url.search;
};

let speakTimer = 0;
function speak() {
  clearTimeout(speakTimer);
  speakTimer = setTimeout(() => {
    if (!run) return;
    const parts = [selectionWords() + imageWords()];
    for (const variant of sides()) {
      const share = shown.shares[variant.name];
      if (share) parts.push(`${variant.label}: image share ${percent(share.image)}`);
    }
    const patch = $(".figure .patch");
    if (view.cursor != null && patch.textContent) parts.push(patch.textContent);
    $(".live").textContent = parts.join(". ");
  }, 300);
}

function repaint() {
  if (!run) return;
  const begun = performance.now();
  syncControls();
  const row = view.part === "prompt" ? " · the row of the token itself" : " · the row that predicted it";
  const words = selectionWords();
  renew($(".selection"), [new Text(words), node("span", { class: "quiet" }, row)]);
  mark($(".selection"), "title", words + row); // a long one is cut
  paintFigures();
  showMade();
  markImages();
  paintPanels();
  paintReading();
  tintTokens();
  fetchHeads();
  writeAddress();
  speak();
  element.inspector.lastPaint = performance.now() - begun;
}

// A large run does not contain single heads: fetch those of the chosen tokens once, and keep the latest.
const headsWanted = () => [...sides().map((side) => ({ side, l: null })), ...looks()].flatMap(({ side: variant, l }) => {
  const span = tokensOf(variant);
  return !span || variant.full ? [] : [{ variant, l, span, key: onLayer(l, () => lazyKey(variant, ...span)) }];
});
async function fetchHeads() {
  if (!needsHeads() || sides().every((side) => side.full)) return;
  const mine = run;
  let fetched = false, next;
  while (run === mine && needsHeads() && (next = headsWanted().find(({ key }) => !mine.lazyMaps.has(key)))) {
    const { variant, l, span, key } = next;
    mine.lazyMaps.expect(key);
    const ask = { prompt: variant.part === "prompt", run: mine.id, variant: variant.name, start: span[0], stop: span[1] + 1, combine: view.combine,
      layers: l == null ? [view.l0, view.l1] : [l, l], heads: [view.h0, view.h1], pairs: view.picked && view.picked.pairs, whole: !key.split(":")[2] };
    const answer = await server.token_maps(ask);
    if (!answer || answer.error) {
      mine.lazyMaps.drop(key);
      if (run === mine) complain((answer && answer.error) || "The server does not answer; is it still running?");
      return;
    }
    const text = atob(answer.data), raw = new Uint8Array(text.length); // from() takes ten times as long
    for (let i = 0; i < raw.length; i++) raw[i] = text.charCodeAt(i);
    const buffer = await unzip(new Response(raw));
    const needed = run === mine ? headsWanted().map((one) => one.key) : [];
    mine.lazyMaps.put(key, unpack(buffer).arrays, buffer.byteLength, needed);
    fetched = true;
  }
  if (fetched && run === mine) repaint();
}

function complain(text) {
  const alert = $(".alert");
  alert.hidden = !text;
  alert.textContent = text || "";
  if (text) bringIntoView(alert);
}

// On a phone it is below the form; scroll to it, so that the new content is visible.
function bringIntoView(part, block = "nearest") {
  if (served) part.scrollIntoView({ block });
}

function setPhase(phase, words, facts) {
  root.dataset.phase = phase;
  if (words != null) $(".phase").textContent = words;
  if (facts != null) $(".facts").replaceChildren(...facts.map((x) => node("span", {}, x)));
}

function showQueued(value) {
  stopPlaying();
  pending = value.run;
  complain("");
  showLine();
  const words = value.position > 0
    ? `Waiting: ${value.position} ${value.position === 1 ? "run" : "runs"} before yours` : value.message || "Starting";
  setPhase("queued", words, []);
}

// On a phone the form fills the screen, so scroll to the answer.
const showLine = () => bringIntoView($(".line"), window.innerWidth > 640 ? "nearest" : "start");

// Deltas {from, new}: append new tokens without redrawing the old ones. A gap (the page was busy) is requested again.
const stream = { counts: {}, filling: false };
function showStream(value) {
  if (root.dataset.phase !== "streaming" || pending !== value.run) {
    pending = value.run;
    coming = null;
    complain("");
    stream.counts = {};
    $(".strips").replaceChildren(...value.variants.map(([name, label]) => emptyStrip(name, label)));
    $(".question").textContent = value.prompt;
    $(".asked").hidden = false;
    $(".blank").hidden = true;
    $(".work").hidden = false;
    root.removeAttribute("data-ready");
    showLine();
  }
  setPhase("streaming", value.message, value.facts);
  for (const [name, tokens] of Object.entries(value.new)) append(name, value.from[name] || 0, tokens);
}

function append(name, from, tokens) {
  const have = stream.counts[name] || 0;
  if (from > have) return fill(name, have);
  const fresh = tokens.slice(have - from), box = stripOf(name);
  if (!fresh.length || !box) return;
  box.append(...fresh.map((token, k) => chip(name, token, have + k, false, null)));
  box.scrollTop = box.scrollHeight;
  stream.counts[name] = have + fresh.length;
}

async function fill(name, from) {
  if (stream.filling) return;
  stream.filling = true;
  const mine = pending, answer = await server.tokens_since({ run: mine, variant: name, from });
  stream.filling = false;
  if (answer && !answer.error && pending === mine && root.dataset.phase === "streaming") append(name, from, answer.tokens);
}

function loadImage(url) {
  return new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => fail(new Error("the image cannot be loaded"));
    image.src = url;
  });
}

let coming = null; // the run being fetched or on screen: Gradio may send the same value twice
async function showRun(value, place, fill) {
  if (coming === value.run) return;
  coming = value.run;
  pending = value.run;
  complain("");
  const [unpacked, ...images] = await Promise.all([
    fetch(sameOrigin(value.data)).then((response) => {
      if (!response.ok) throw new Error("expired");
      return unzip(response);
    }).then(unpack),
    ...value.images.map((file) => loadImage(sameOrigin(file))),
  ]);
  if (pending !== value.run) return;
  stopPlaying();
  const before = run;
  run = makeRun(unpacked);
  picture.images = images;
  picture.bases.clear();
  startView(before, place || {}, value);
  $(".blank").hidden = true;
  $(".work").hidden = false;
  $(".question").textContent = run.prompt;
  root.dataset.variants = run.variants.length;
  buildStrips();
  buildImages();
  buildFigures();
  buildPanels();
  buildReading();
  buildSettings();
  showRemarks();
  showMade();
  showNote();
  setPhase(value.phase, value.message, value.facts);
  markTokens();
  repaint();
  watchSize();
  root.dataset.ready = run.id;
  rememberRun();
  if (served && run.kind !== "pair") trigger("apply", { run: run.id, fill: Boolean(fill) });
}

// The first view: from the address if it names this run, else the most informative token of the answer.
function startView(before, place, value) {
  const fits = before && before.L === run.L && before.H === run.H;
  if (!fits) Object.assign(view, { l0: 0, l1: run.L - 1, h0: 0, h1: run.H - 1 });
  Object.assign(view, { box: null, cursor: null, image: 0, swapped: false, own: null, note: "" });
  if (!(view.picked && view.picked.from === "file" && before && before.model.revision === run.model.revision && hasPairs(view.picked.pairs))) view.picked = null;
  if (view.quantity === "box") view.quantity = "image";
  const named = !place.run || place.run === value.run;
  view.part = "answer";
  marks = { answer: [0, 0], prompt: [0, 0] };
  view.t0 = view.t1 = marks.answer[0] = marks.answer[1] = tellingToken();
  if (!named) return;
  if (place.p && run.variants.some((v) => v.asked.T)) Object.assign(view, { part: "prompt", prompt: true });
  if (view.part === "prompt") place.t = place.p;
  if (place.t) [view.t0, view.t1] = place.t.map((t) => clamp(t, 0, longest() - 1)).sort((a, b) => a - b);
  if (place.u && canPart()) view.own = place.u.map((t) => clamp(t, 0, run.variants[1].T - 1)).sort((a, b) => a - b);
  // The index of a number among the captured ones, or of the nearest one.
  const placed = (list) => (n) => (place.version < LINK ? n : list.reduce((best, m, k) => (Math.abs(m - n) < Math.abs(list[best] - n) ? k : best), 0));
  if (place.l) setRange("l", ...place.l.map(placed(run.layers)));
  if (place.h) setRange("h", ...place.h.map(placed(run.heads)));
  if (place.picked) openPicked(place.picked);
  if (place.layers) view.layers = place.layers.map(placed(run.layers));
  for (const name of ["combine", "method", "scale", "difference", "four"]) if (place[name] != null) view[name] = place[name];
  Object.assign(view, place.looks || {});
  view.image = clamp(view.image, 0, run.images.length - 1);
  if (run.variants.length < 2) view.swapped = false;
  const { rows, columns } = imageOf(run.variants[0]), box = place.box;
  if (box && box[0] <= box[2] && box[1] <= box[3] && box[2] < rows && box[3] < columns) view.box = { r0: box[0], c0: box[1], r1: box[2], c1: box[3] };
  if (view.quantity === "box" && !view.box) view.quantity = "image";
  if (view.four && !run.variants.some((v) => v.name === view.four)) view.four = run.variants[0].name;
  if (view.four) view.picked = null;
}

// The word (no punctuation and no control token such as <end>) whose row has the most attention on the image outside the
// sinks. The example names its own word.
function tellingToken() {
  if (run.look_at != null) return run.look_at;
  const variant = run.variants[0], each = run.L * run.H;
  let best = 0, most = -1;
  for (let t = 0; t < variant.T; t++) {
    if (!/[\p{L}\p{N}]{3}/u.test(variant.tokens[t].t) || /^<.*>$/.test(variant.tokens[t].t)) continue;
    let sum = 0;
    for (let i = 0; i < each; i++) {
      const k = t * each + i;
      sum += variant.share[k] * (65535 - variant.sink[k]);
    }
    if (sum > most) [best, most] = [t, sum];
  }
  return best;
}

// Remarks: nothing detected, nothing changed, same texts.
function showRemarks() {
  const remarks = [];
  for (const variant of run.variants) {
    for (const text of variant.var ? [variant.var.reason, ...(variant.var.warnings || [])] : []) {
      if (text) remarks.push([text, "warn"]);
    }
  }
  const texts = run.variants.map((v) => v.tokens.map((t) => t.t).join(""));
  for (const text of run.remarks || []) remarks.push([text]);
  if (run.variants.length > 1) {
    if (run.same_text) remarks.push(["VAR was forced onto the baseline’s text: the tokens are the same by construction, the probabilities are not."]);
    else if (texts[0] === texts[1]) remarks.push(["Both answers are the same text."]);
  }
  if (!run.variants.some((v) => v.sinks.some((s) => s.length))) {
    remarks.push([run.sinks_known ? "No sinks were found in this image."
      : "No sink dimensions are known for this model, so no sinks are marked."]);
  }
  if (run.variants.some((v) => v.treated.some((cells) => cells.length))) {
    remarks.push(["Control: a ring marks a patch that was changed instead of the sinks, in a chosen layer."]);
  }
  $(".remarks").replaceChildren(...remarks.map(([text, kind]) => node("li", { class: kind }, text)));
  $(".remarks").hidden = !remarks.length;
}

function showError(value) {
  pending = coming = null;
  const still = run && value.run !== run.id;
  setPhase("error", still ? "The last run is still here" : "Nothing to show", []);
  complain(value.message);
  if (run) { // the strips may show an incomplete stream: show the last run again
    buildStrips();
    $(".question").textContent = run.prompt;
    markTokens();
    repaint();
    root.dataset.ready = run.id;
  } else {
    $(".work").hidden = true;
    $(".blank").hidden = false;
  }
}

function onValue(place) {
  const value = props.value;
  if (!value || !value.phase || value.phase === "empty") return;
  if (value.phase === "export") showExport(value);
  else if (value.phase === "region") showRegion(value);
  else if (value.phase === "explain") showExplained(value);
  else if (value.phase === "heads") showHeads(value);
  else if (value.phase === "queued") showQueued(value);
  else if (value.phase === "streaming") showStream(value);
  else if (value.phase === "error") showError(value);
  else {
    showRun(value, place).catch((error) => {
      coming = null;
      if (error.message === "expired") complain("This run is no longer on the server. Press Generate to make it again.");
      else complain(`The run cannot be shown: ${error.message}.`);
      setPhase("error", "Not shown", []);
    });
  }
}

let sizes = null;
function watchSize() {
  if (sizes) sizes.disconnect();
  const measured = () => `${$(".figures").clientWidth} ${window.innerHeight}`;
  let before = measured();
  sizes = new ResizeObserver(() => {
    if (!$(".figures").clientWidth || measured() === before) return;
    before = measured();
    forgetSizes();
    paintFigures();
  });
  sizes.observe($(".figures"));
  sizes.observe(document.documentElement);
}

// A file that the browser does not draw, such as TIFF, can be asked about all the same.
const unseen = (event) => {
  if (event.target.matches && event.target.matches("#ask img")) event.target.alt = "No preview of this kind of file in the browser; the model can read it.";
};

async function start() {
  document.addEventListener("error", unseen, true);
  wireControls();
  watchStrips();
  wireRuns();
  wireSave();
  wirePlay();
  wireHeads();
  $('[data-do="help"]').addEventListener("click", () => togglePop("help"));
  $('[data-do="close-help"]').addEventListener("click", () => togglePop("help", false));
  const place = readAddress();
  if (served && place.run && (!props.value || props.value.run !== place.run)) {
    const answer = await server.open_run(asking(place.run));
    if (answer && !answer.error && !pending) {
      await showRun(answer, place, true).catch(() => {
        coming = null;
        onValue();
      });
      return;
    }
    onValue(place);
    if (answer && answer.error) { // the link names a run that no longer exists
      complain(place.ask ? "The run of this link is no longer on the server. Its prompt and settings are in the form, but a link has no image: give the image again and press Generate." : answer.error);
      if (place.ask) trigger("apply", { said: place.ask, fill: true });
    }
    return;
  }
  onValue(place);
  if (served && place.broken) complain("The link is damaged: it does not name a run. The example is shown.");
}

watch("value", () => onValue());
start();
