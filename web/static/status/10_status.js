// The line about the model at the top: value = { phase, name, message, fraction, facts }.
const model = element.querySelector(".model");

function show() {
  const value = props.value || { phase: "none" };
  model.dataset.phase = value.phase;
  model.querySelector(".name").textContent = value.name || "No model";
  model.querySelector(".what").textContent = value.message || "";
  const bar = model.querySelector(".progress"), part = Math.round(100 * (value.fraction || 0));
  bar.hidden = value.phase !== "loading";
  bar.setAttribute("aria-valuenow", part);
  bar.firstElementChild.style.width = `${part}%`;
}

watch("value", show);
show();
