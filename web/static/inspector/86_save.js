// Save: a picture, a table, the trace, a page that works without a server, a link.
function wireSave() {
  const statusText = $(".save .status-text");
  $('[data-do="save"]').addEventListener("click", () => {
    togglePop("save");
    if (served) server.start_drawing({}).catch(() => {}); // an error is reported when a file is requested
  });
  wireNote();
  const savers = { pdf: () => askFor("pdf"), gif: () => askFor("gif"), mp4: () => askFor("mp4"), png: savePicture, csv: saveShares, map: saveMap, html: () => fetchFile("page_file"), trace: () => fetchFile("trace_file"), link: copyLink };
  $(".motion").hidden = !served;
  $('[data-do="stop-save"]').addEventListener("click", () => trigger("stop", {}));
  for (const item of element.querySelectorAll("[data-save]")) {
    const kind = item.dataset.save;
    if (!served && !["png", "csv", "map"].includes(kind)) item.parentElement.hidden = true;
    item.addEventListener("click", async () => {
      if (!run) return;
      statusText.textContent = "…";
      try {
        statusText.textContent = (await savers[kind]()) || "";
      } catch (error) {
        statusText.textContent = `Not saved: ${error.message}.`;
      }
    });
  }
}

// Files that the server draws: requested by an event that waits in the queue; the results are values of phase "export".
let awaited = null; // { ask, at, done, fail } of the file that is being made

function askFor(kind) {
  if (awaited && Date.now() - awaited.at < 60000) throw new Error("another file is still being made");
  const ask = crypto.getRandomValues(new Uint32Array(4)).join("-"), moves = kind !== "pdf";
  // As on screen: if each answer has its own choice, four layers of one answer use that answer's.
  const [t0, t1] = view.four ? chosenOn(looks()[0].side) : [view.t0, view.t1], apart = view.part === "answer" && !view.four ? view.own : null;
  const several = t1 > t0 || Boolean(apart && apart[1] > apart[0]);
  const motion = (name) => +$(`[data-motion="${name}"]`).value;
  const chosen = (list, a, b) => (a === 0 && b === list.length - 1 ? null : list.slice(a, b + 1));
  trigger("select", {
    ask, kind, ...asking(run.id), side: view.four,
    first: moves && !several ? 0 : t0, last: moves && !several ? null : t1, own: moves && !several ? null : apart,
    ...(moves ? { window: Math.round(motion("window")), seconds: motion("seconds") } : {}),
    view: {
      part: view.part, ...(view.picked ? { picked: { pairs: view.picked.pairs, kind: view.picked.kind } }
        : { layers: chosen(run.layers, view.l0, view.l1), heads: chosen(run.heads, view.h0, view.h1) }),
      each: view.four ? fourLayers().map((l) => run.layers[l]) : [], reduce: view.combine, image: view.image,
      method: method().name, scale: view.scale, whole_answer: view.range === "answer",
      same_scale: view.same, difference: view.difference && canDiffer() && !view.four, colormap: view.colours,
      opacity: view.opacity, overlay: view.overlay, photo: view.photo, smooth: view.smooth, sinks: view.sinks,
    },
  });
  $(".save .status-text").textContent = "Waiting for the server …";
  $('[data-do="stop-save"]').hidden = false;
  return new Promise((done, fail) => (awaited = { ask, at: Date.now(), done, fail }));
}

function showExport(value) {
  if (!awaited || value.ask !== awaited.ask) return;
  awaited.at = Date.now();
  if (value.message) {
    $(".save .status-text").textContent = value.message;
    return;
  }
  const { done, fail } = awaited;
  awaited = null;
  $('[data-do="stop-save"]').hidden = true;
  if (value.error) return fail(new Error(value.error.replace(/\.$/, "")));
  for (const file of value.files) download(sameOrigin(file), file.name);
  done(value.files.map((file) => `${file.name} (${(file.bytes / 1e6).toFixed(1)} MB)`).join(", "));
}

function download(url, name) {
  const link = node("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

const fileName = (end) => `sinkscope-${run.id.slice(0, 8)}-t${view.t0}${end}`;

function downloadBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  download(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// The figures on screen at print size, with captions.
async function savePicture() {
  const figures = looks().filter(({ name }) => shown.maps[name]);
  if (shown.maps.difference) figures.push(lookOf("difference"));
  if (!figures.length) throw new Error("there is no map on screen");
  const wide = figures.length > 1 ? 1100 : 1600;
  const tall = ({ side }) => Math.round((wide * imageOf(side).height) / imageOf(side).width);
  const high = Math.max(...figures.map(tall));
  const gap = 40, head = 120, foot = 180, canvas = document.createElement("canvas");
  canvas.width = gap + figures.length * (wide + gap);
  canvas.height = head + high + foot;
  const ink = canvas.getContext("2d"), font = (size, bold) => `${bold ? 600 : 400} ${size}px system-ui, sans-serif`;
  const write = (text, x, y, size, colour, width, bold) => {
    ink.font = font(size, bold);
    ink.fillStyle = colour;
    ink.fillText(text, x, y, width);
  };
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, canvas.width, canvas.height);
  write(`“${run.prompt.replace(/\s+/g, " ").slice(0, 160)}”`, gap, 46, 26, "#1b2027", canvas.width - 2 * gap, true);
  write(`${selectionWords()}${imageWords()}  ·  ${run.model.id} @ ${run.model.revision}`, gap, 82, 21, "#5b6572", canvas.width - 2 * gap);
  figures.forEach((look, k) => {
    const { name, side, l, both } = look, x = gap + k * (wide + gap);
    const own = document.createElement("canvas");
    own.width = wide;
    own.height = tall(look);
    const [sinks, treated] = onLayer(l, () => [sinksOf(side), both ? [] : treatedOf(side)]), scale = shown.scales[name];
    const size = { ink: own.getContext("2d"), width: wide, height: own.height, dense: wide / 560, variant: side };
    drawMap(size, shown.drawn[name], scale, sinks, treated);
    ink.drawImage(own, x, head);
    const share = shown.shares[name];
    const numbers = share ? `  image ${percent(share.image)}, sinks hold ${percent(share.sinks)} of it` : "";
    write((both ? "Difference" : side.label + (l == null ? "" : `, layer ${run.layers[l]}`)) + numbers, x, head + high + 30, 22, "#1b2027", wide, true);
    const table = COLOURS[both ? "coolwarm" : view.colours];
    for (let i = 0; i < 256; i++) {
      ink.fillStyle = `rgb(${table[i * 3]},${table[i * 3 + 1]},${table[i * 3 + 2]})`;
      ink.fillRect(x + (i * wide) / 256, head + high + 46, wide / 256 + 1, 16);
    }
    for (const [u, text] of scale.ticks) {
      ink.textAlign = u === 0 ? "left" : u === 1 ? "right" : "center";
      write(text, x + u * wide, head + high + 84, 18, "#5b6572");
    }
    ink.textAlign = "left";
    write(both ? scale.words : scaleWords(scale, side, false), x, head + high + 114, 18, "#5b6572", wide);
    if (!both) write(run.variants.find((v) => v.name === side.name).applied.join("; ") || "the plain model", x, head + high + 144, 18, "#5b6572", wide);
  });
  write([...madeWords(), ...(view.picked ? [`maps of ${pickedWords()}`] : [])].join("  ·  "), gap, canvas.height - 8, 18, "#5b6572", canvas.width - 2 * gap);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  downloadBlob(blob, fileName(".png"));
  return `${canvas.width} × ${canvas.height} pixels`;
}

// One line for each (answer, token, layer, head).
async function saveShares() {
  // No text may become a formula.
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replace(/"/g, '""')}"`;
  const lines = ["answer,token,text,probability,layer,head,image_share,sink_share_of_image,entropy_nats,made_by"];
  for (const variant of run.variants) {
    let made = run.made ? cell(run.made) : ""; // only in the first line of each answer
    variant.tokens.forEach((token, t) => {
      for (let l = 0; l < run.L; l++)
        for (let h = 0; h < run.H; h++) {
          const i = (t * run.L + l) * run.H + h;
          const numbers = ["image", "sink", "entropy"].map((q) => headValue(variant, i, q).toPrecision(5));
          lines.push([variant.name, t, cell(token.t), token.p, run.layers[l], run.heads[h], ...numbers, made].join(","));
          made = "";
        }
    });
  }
  downloadBlob(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv;charset=utf-8" }), fileName(".csv"));
  return `${lines.length - 1} rows`;
}

// The values of the maps on screen before colouring: one line per patch with a value.
async function saveMap() {
  const lines = ["answer,first_token,last_token,method,unit,layer,image,row,column,value,single_heads"], one = method();
  for (const { name, side, l } of looks()) {
    const map = shown.drawn[name], { rows, columns, start } = imageOf(side), made = explainedOf(one.name, side);
    if (!map) continue;
    const heads = view.picked ? view.picked.pairs.map((pair) => pair.join(".")).join(" ") : "";
    const unit = `"${(one.computed && made ? made.unit : one.unit) || ""}"`, image = side.images.indexOf(imageOf(side));
    for (let i = 0; i < rows * columns; i++)
      if (Number.isFinite(map[start + i]))
        lines.push([side.name, view.t0, view.t1, one.name, unit, l == null ? "" : run.layers[l], image, Math.floor(i / columns), i % columns, map[start + i].toPrecision(6), heads].join(","));
  }
  if (lines.length === 1) throw new Error("there is no map on screen");
  downloadBlob(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv;charset=utf-8" }), fileName("-map.csv"));
  return `${lines.length - 1} patches`;
}

async function fetchFile(question) {
  writeAddressNow(); // the saved page opens with the current view
  const answers = [], place = location.hash.slice(1);
  for (const variant of question === "trace_file" ? run.variants : [run.variants[0]]) {
    const answer = await server[question]({ ...asking(run.id), variant: variant.name, place });
    if (!answer || answer.error) throw new Error(answer ? answer.error : "the server does not answer");
    download(sameOrigin(answer), answer.name);
    answers.push(`${answer.name} (${(answer.bytes / 1e6).toFixed(1)} MB)`);
  }
  return answers.join(", ");
}

async function copyLink() {
  writeAddressNow();
  const part = new URLSearchParams(location.hash.slice(1));
  part.set("run", run.id);
  const link = location.origin + location.pathname + "#" + part;
  await navigator.clipboard.writeText(link);
  return "The link is copied. Whoever has it and can reach this server sees the run.";
}
