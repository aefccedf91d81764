// A line of the form: value = { kind, text, fraction }; see web/explore/forecast.py. An empty text takes no space.
const line = element.querySelector(".notice"), bar = element.querySelector(".progress");

function show() {
  const value = props.value || {};
  line.dataset.kind = value.kind || "quiet";
  line.hidden = !value.text;
  line.querySelector(".text").textContent = value.text || "";
  const part = Math.round(100 * (value.fraction || 0));
  bar.hidden = value.kind !== "busy";
  bar.setAttribute("aria-valuenow", part);
  bar.firstElementChild.style.width = `${part}%`;
}

watch("value", show);
show();
