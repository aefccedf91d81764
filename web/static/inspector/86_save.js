// Taking things away: a picture, a table, the trace, a page that works without a server, a link.
function wireSave() {
  const button = $('[data-do="save"]'), told = $(".save .told");
  button.addEventListener("click", () => {
    $(".save").hidden = !$(".save").hidden;
    button.setAttribute("aria-expanded", !$(".save").hidden);
  });
  const ways = { png: savePicture, csv: saveShares, html: () => fetchFile("page_file"), trace: () => fetchFile("trace_file"), link: copyLink };
  for (const item of element.querySelectorAll("[data-save]")) {
    const way = item.dataset.save;
    if ((way === "html" || way === "trace" || way === "link") && !served) item.parentElement.hidden = true;
    item.addEventListener("click", async () => {
      if (!run) return;
      told.textContent = "…";
      told.textContent = (await ways[way]().catch((error) => `Not saved: ${error.message}.`)) || "";
    });
  }
}

function download(url, name) {
  const link = node("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

const fileName = (end) => `sinkscope-${run.id.slice(0, 8)}-t${view.t0 + 1}${end}`;

function downloadBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  download(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// The figures as they are on screen, at print size, with what they show written under them.
async function savePicture() {
  const names = run.variants.map((v) => v.name).filter((name) => shown.maps[name]);
  if (view.difference && shown.maps.difference) names.push("difference");
  if (!names.length) throw new Error("there is no map on screen");
  const wide = names.length > 1 ? 1100 : 1600, owner = (name) => run.variants.find((v) => v.name === name) || run.variants[0];
  const tall = (name) => Math.round((wide * imageOf(owner(name)).height) / imageOf(owner(name)).width);
  const high = Math.max(...names.map(tall));
  const gap = 40, head = 120, foot = 150, canvas = document.createElement("canvas");
  canvas.width = gap + names.length * (wide + gap);
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
  write(`${selectionWords()}  ·  ${run.model.id} @ ${run.model.revision}`, gap, 82, 21, "#5b6572", canvas.width - 2 * gap);
  names.forEach((name, k) => {
    const variant = run.variants.find((v) => v.name === name), x = gap + k * (wide + gap);
    const own = document.createElement("canvas");
    own.width = wide;
    own.height = tall(name);
    const sinks = sinksOf(variant || run.variants[0]), scale = shown.scales[name];
    const size = { ink: own.getContext("2d"), width: wide, height: own.height, dense: wide / 560, variant: owner(name) };
    drawMap(size, shown.maps[name], scale, sinks);
    ink.drawImage(own, x, head);
    const share = shown.shares[name];
    const numbers = share ? `  image ${percent(share.image)}, sinks hold ${percent(share.sinks)} of it` : "";
    write((variant ? variant.label : "Difference") + numbers, x, head + high + 30, 22, "#1b2027", wide, true);
    const table = COLOURS[variant ? view.colours : "coolwarm"];
    for (let i = 0; i < 256; i++) {
      ink.fillStyle = `rgb(${table[i * 3]},${table[i * 3 + 1]},${table[i * 3 + 2]})`;
      ink.fillRect(x + (i * wide) / 256, head + high + 46, wide / 256 + 1, 16);
    }
    for (const [u, text] of scale.ticks) {
      ink.textAlign = u === 0 ? "left" : u === 1 ? "right" : "center";
      write(text, x + u * wide, head + high + 84, 18, "#5b6572");
    }
    ink.textAlign = "left";
    write(`attention mass per patch; ${scale.words}`, x, head + high + 114, 18, "#5b6572", wide);
  });
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  downloadBlob(blob, fileName(".png"));
  return `${canvas.width} × ${canvas.height} pixels`;
}

// One line for each (answer, token, layer, head).
async function saveShares() {
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replace(/"/g, '""')}"`; // never a formula
  const lines = ["answer,token,text,probability,layer,head,image_share,sink_share_of_image,entropy_nats"];
  for (const variant of run.variants)
    variant.tokens.forEach((token, t) => {
      for (let l = 0; l < run.L; l++)
        for (let h = 0; h < run.H; h++) {
          const i = (t * run.L + l) * run.H + h;
          const numbers = ["image", "sink", "entropy"].map((q) => headValue(variant, i, q).toPrecision(5));
          lines.push([variant.name, t, cell(token.t), token.p, run.layers[l], run.heads[h], ...numbers].join(","));
        }
    });
  downloadBlob(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv;charset=utf-8" }), fileName(".csv"));
  return `${lines.length - 1} rows`;
}

async function fetchFile(question) {
  const answers = [];
  for (const variant of question === "trace_file" ? run.variants : [run.variants[0]]) {
    const answer = await server[question]({ ...asking(run.id), variant: variant.name });
    if (!answer || answer.error) throw new Error(answer ? answer.error : "the server does not answer");
    download(sameOrigin(answer), answer.name);
    answers.push(`${answer.name} (${(answer.bytes / 1e6).toFixed(1)} MB)`);
  }
  return answers.join(", ");
}

async function copyLink() {
  const part = new URLSearchParams(location.hash.slice(1));
  part.set("run", run.id);
  const link = location.origin + location.pathname + "#" + part;
  await navigator.clipboard.writeText(link);
  return "The link is copied. Whoever has it and can reach this server sees the run.";
}
