let coming = null;
const KEPT = "sinkscope-experiment"; // in the storage of this browser tab only

function complain(text) {
  $(".alert").hidden = !text;
  $(".alert").textContent = text || "";
}

async function show(value) {
  const { phase, position } = value;
  const begins = /queued|running/.test(phase) && !/queued|running/.test(root.dataset.phase);
  if (begins) $(".line").scrollIntoView({ block: "nearest" }); // the form may be long, and on a phone it is above
  root.dataset.phase = phase;
  $(".phase").textContent = phase === "queued" ? `Waiting: ${position} before yours` : phase === "error" ? "Nothing new" : phase === "empty" ? "Nothing run yet" : value.message;
  $(".facts").textContent = [...(value.facts || []), value.text].filter(Boolean).join(" · ");
  const bar = $("progress");
  bar.hidden = phase !== "running";
  if (value.fraction == null) bar.removeAttribute("value");
  else bar.value = value.fraction;
  complain(phase === "error" && value.message);
  for (const button of root.querySelectorAll(".sides button")) button.disabled = /queued|running/.test(phase);
  if (!value.data || coming === value.run) return;
  coming = value.run;
  const answer = await fetch(sameOrigin(value.data));
  if (!answer.ok) return complain("This result is no longer on the server. Press Run to make it again.");
  const { header } = unpack(await unzip(answer));
  if (coming !== value.run) return;
  $(".blank").hidden = true;
  $(".work").hidden = false;
  build(header);
  element.experiment = header; // for scripts and tests
  sessionStorage.setItem(KEPT, value.run);
  remember(header, value.run);
  root.dataset.ready = value.run;
}

function list(listed) {
  $(".listed").replaceChildren(...listed.map(({ name, question }) => node("li", {}, node("button", { type: "button", "data-name": name }, node("b", {}, name), node("span", {}, question)))));
}

async function forget() { // the result, and all files made from it
  if (!confirm("Delete this result and its files from the server?")) return;
  const run = root.dataset.ready, result = await server.forget_experiment({ run });
  if (!result || result.error) return complain(result ? result.error : "The server does not answer.");
  sessionStorage.removeItem(KEPT);
  sessionStorage.setItem(RUNS, JSON.stringify(runs().filter((one) => one.run !== run)));
  sides();
  coming = null;
  delete root.dataset.ready;
  $(".work").hidden = true;
  $(".blank").hidden = false;
  show({ phase: "empty" });
}

element.addEventListener("click", ({ target }) => {
  if (target.dataset.do === "delete") forget();
  const button = target.closest("[data-name]");
  if (button) trigger("select", { name: button.dataset.name });
});

if (props.value && props.value.listed) list(props.value.listed);
watch("value", () => props.value && props.value.phase && show(props.value));
(async () => {
  const run = sessionStorage.getItem(KEPT), value = props.value;
  if (value && value.phase && value.phase !== "empty") return show(value);
  const kept = run && (await server.open_experiment({ run }));
  if (!kept || kept.error || coming) return;
  await show(kept);
  trigger("select", { name: element.experiment.experiment }); // the form shows this experiment again
})();
