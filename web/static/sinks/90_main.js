const tell = (text) => ($(".status-text").textContent = text);

function complain(text) {
  $(".alert").hidden = !text;
  $(".alert").textContent = text || "";
}

async function show(value) {
  const { phase, position } = value;
  root.dataset.phase = phase;
  $(".phase").textContent = phase === "queued" ? `Waiting: ${position} before yours` : phase === "error" ? "Nothing new" : value.message;
  $(".facts").textContent = [...(value.facts || []), value.text].filter(Boolean).join(" · ");
  const bar = $("progress");
  bar.hidden = phase !== "running";
  if (value.fraction == null) bar.removeAttribute("value");
  else bar.value = value.fraction;
  complain(phase === "error" && value.message);
  if (!value.data || coming === value.run) return;
  coming = value.run;
  const answer = await fetch(sameOrigin(value.data));
  if (!answer.ok) return complain("This result is no longer on the server. Press Run to make it again.");
  const { header, arrays } = unpack(await unzip(answer));
  if (coming !== value.run) return;
  data = { ...header, ...arrays, run: value.run };
  $(".blank").hidden = true;
  $(".work").hidden = false;
  build();
  sessionStorage.setItem("sinkscope-sinks", data.run); // for this tab only
  root.dataset.ready = data.run;
}

async function save() {
  const file = await server.profile_file({ run: data.run, tau: +view.tau });
  if (!file || file.error) return tell(file ? file.error : "The server does not answer.");
  node("a", { href: sameOrigin(file), download: file.name }).click();
  tell(`${file.name} with tau ${(+view.tau).toFixed(1)}`);
}

async function forget() { // the result, and all files made from it
  if (!confirm("Delete this result and its files from the server?")) return;
  const result = await server.forget_sinks({ run: data.run });
  if (!result || result.error) return complain(result ? result.error : "The server does not answer.");
  sessionStorage.removeItem("sinkscope-sinks");
  data = coming = null;
  delete root.dataset.ready;
  $(".work").hidden = true;
  $(".blank").hidden = false;
  show({ phase: "empty", message: "Deleted" });
}

element.addEventListener("input", ({ target }) => {
  const name = target.dataset.set;
  if (!name) return;
  view[name] = +target.value;
  if (name === "sample") showSample();
  else requestAnimationFrame(paint);
});
element.addEventListener("click", ({ target }) => {
  const what = target.dataset.do;
  if (what === "save") save();
  if (what === "delete") forget();
  if (what === "calibrated") { view.tau = data.tau; paint(); }
  if (what !== "use" && what !== "own") return;
  trigger("select", { run: what === "use" ? data.run : null, tau: +view.tau });
  $('[data-do="own"]').hidden = what === "own";
  tell(what === "own" ? "VAR uses the model’s own profile again." : `VAR in this browser now uses ${data.dims.join(", ")} with tau ${(+view.tau).toFixed(1)}: see Explore.`);
});
const photoStage = $(".photo .stage");
photoStage.addEventListener("pointermove", (event) => {
  const r = photoStage.getBoundingClientRect(), { rows, columns } = sample();
  const part = (at, from, size, count) => clamp(Math.floor(((at - from) / size) * count), 0, count - 1);
  point(part(event.clientY, r.top, r.height, rows) * columns + part(event.clientX, r.left, r.width, columns));
});
photoStage.addEventListener("pointerleave", () => point(null));
new ResizeObserver(() => data && data.samples.length && element.clientWidth && paint()).observe($(".desk"));

element.sinks = { view, get data() { return data; } }; // for scripts and tests
watch("value", () => props.value && props.value.phase && show(props.value));
(async () => {
  const run = sessionStorage.getItem("sinkscope-sinks"), value = props.value;
  if (value && value.phase && value.phase !== "empty") return show(value);
  const kept = run && (await server.open_sinks({ run }));
  if (kept && !kept.error && !coming) show(kept);
})();
