// The findings and the tau slider, all from one file; moving the slider makes no request.
let heat = null;
const sample = () => data.samples[view.sample], tokens = (one) => one.rows * one.columns;
const scored = (name, l, t) => (data[name][l * data.width + t] / 65535) * data[`${name}_top`];
const phi = (l, t) => scored("phi", l, sample().start + t);
const chosen = () => (view.layer < 0 ? data.layers.map((_, l) => l) : [view.layer]);

function build() {
  $(".verdict").textContent = data.verdict;
  $(".reason").textContent = data.candidates.reason;
  $(".notes").replaceChildren(...data.notes.map((text) => node("li", {}, text)));
  const { candidates, contrast, checked } = data;
  $(".candidates").replaceChildren(table(candidates, candidates.kept, candidates.why));
  $(".word").textContent = checked.word;
  $(".checked").textContent = checked.text;
  $(".hidden-sets").replaceChildren(checked.rows.length ? table(checked) : "");
  $(".more").replaceChildren(...checked.more.map((text) => node("li", {}, text)));
  $("details").hidden = !checked.more.length;
  $(".seen").hidden = !data.samples.length;
  $(".acts").hidden = !data.dims.length;
  tell("");
  const layers = data.layers.map((layer) => `${layer}`), high = Math.max(10, ...contrast.values.flat());
  $(".dims").hidden = !contrast.dims.length;
  if (contrast.dims.length) matrix($(".dims"), {
    label: "Contrast by dimension and layer", across: layers.length, down: contrast.dims.length, rows: contrast.dims.map(String),
    value: (x, y) => contrast.values[y][x], at: (x) => Math.log(Math.max(1, x)) / Math.log(high), ticks: ["1 ×", `${high.toFixed(0)} ×, logarithmic`],
    under: layers.map((layer, l) => (l % Math.ceil(layers.length / 12) ? "" : layer)), each: true, words: "layer across, dimension down; blank: below the token’s rms",
    read: (x, y) => `dimension ${contrast.dims[y]}, layer ${layers[x]}: ${contrast.values[y][x] == null ? "below the token’s rms" : `${contrast.values[y][x]} × as large on sinks`}`,
  });
  data.width = data.samples.reduce((sum, one) => sum + tokens(one), 0);
  if (!data.width) return;
  const fill = (name, texts, first) => $(`[data-set="${name}"]`).replaceChildren(...texts.map((text, i) => node("option", { value: i - first }, text)));
  fill("sample", data.samples.map((one) => one.id), 0);
  fill("layer", ["all layers", ...layers], 1);
  Object.assign(view, { sample: 0, layer: -1, tau: data.tau, cursor: null });
  $('[data-set="tau"]').max = Math.ceil(data.tau_most * 10) / 10;
  showSample();
}

async function showSample() {
  const one = sample();
  photo = null;
  heat = matrix($(".heat"), {
    label: `Sink score of ${one.id} by layer and vision token`, across: tokens(one), down: data.layers.length, rows: data.layers.map((layer) => `${layer}`),
    value: (x, y) => phi(y, x), at: (x) => x / data.phi_top, ticks: ["φ 0", `${data.phi_top.toFixed(1)}: largest |x[d]| / rms over ${data.dims.join(", ")}`],
    under: ["token 0", `${tokens(one) - 1}`], words: "vision tokens across, row by row; layer down; at the right the share flagged in all images", point: (t) => { view.cursor = t; mark(); },
    pick: (l) => { view.layer = view.layer === l ? -1 : l; paint(); },
    read: (t, l) => `layer ${data.layers[l]}, token ${t} (row ${Math.floor(t / one.columns)}, column ${t % one.columns}): φ ${phi(l, t).toFixed(2)}${phi(l, t) > view.tau ? ", flagged" : ""}; attention ${scored("ratio", l, one.start + t).toFixed(1)} × the median`,
  });
  paint();
  if (one.url) photo = await loadImage(sameOrigin(one)).catch(() => null);
  if (sample() === one) paint();
}

// The flagged tokens on the image, with the share of the chosen layers in which each is flagged.
function paint() {
  const one = sample(), layers = chosen(), canvas = $(".photo canvas"), ink = canvas.getContext("2d");
  for (const name of ["sample", "layer", "tau"]) $(`[data-set="${name}"]`).value = view[name];
  $(".bar output").textContent = (+view.tau).toFixed(1);
  const dense = Math.min(2, window.devicePixelRatio || 1), wide = Math.round((canvas.clientWidth || 400) * dense);
  const high = Math.round((wide * (photo ? photo.height / photo.width : one.rows / one.columns)));
  Object.assign(canvas, { width: wide, height: high });
  if (photo) ink.drawImage(photo, 0, 0, wide, high);
  let marked = 0;
  for (let t = 0; t < tokens(one); t++) {
    const share = layers.filter((l) => phi(l, t) > view.tau).length / layers.length;
    if (share) drawSink(ink, t, share, one, wide, high, dense);
    marked += share > 0;
  }
  const cut = (view.tau / data.phi_top) * 65535, shares = data.layers.map((_, l) => {
    let count = 0;
    for (let i = l * data.width; i < (l + 1) * data.width; i++) if (data.phi[i] > cut) count++;
    return count / data.width;
  });
  heat.right.replaceChildren(...shares.map((x) => node("span", { class: x > data.warn ? "warn" : null }, percent(x))));
  heat.choose(view.layer < 0 ? null : view.layer);
  const most = Math.max(...layers.map((l) => shares[l])), flag = $(".flagged"), where = view.layer < 0 ? "some layer" : `layer ${data.layers[view.layer]}`;
  flag.className = most > data.warn ? "flagged warn" : "flagged";
  flag.textContent = `${marked} of ${tokens(one)} tokens of this image flagged in ${where}; over all ${data.samples.length} images ${percent(most)}${view.layer < 0 ? " in the layer with most" : ""}.${most > data.warn ? ` More than ${percent(data.warn)} is too many for sinks: raise tau.` : ""}`;
  $(".photo figcaption").textContent = `${one.id}: a boxed × is flagged${view.layer < 0 ? ", dashed in fewer than half of the layers" : ""}. ${one.asked || ""}`;
  const stage = $(".photo .stage");
  stage.setAttribute("aria-label", `${flag.textContent} Arrow keys move over the tokens.`);
  keys(stage, one.columns, (step) => point((view.cursor ?? 0) + step), () => {});
  mark();
}

function point(t) {
  view.cursor = t == null ? null : clamp(t, 0, tokens(sample()) - 1);
  heat.show(view.cursor, Math.max(0, view.layer));
  mark();
}

function mark() {
  const { rows, columns } = sample(), spot = $(".photo .spot"), t = view.cursor;
  spot.hidden = t == null;
  if (t != null) box(spot, (t % columns) / columns, Math.floor(t / columns) / rows, ((t % columns) + 1) / columns, (Math.floor(t / columns) + 1) / rows);
}
