// The answers as strips of tokens: choose one, or a range; both answers share one cursor.
function buildStrips() {
  $(".strips").replaceChildren(...run.variants.map((variant) => emptyStrip(variant.name, variant.label)));
  run.variants.forEach((variant, side) => {
    const other = run.variants[1 - side];
    const box = stripOf(variant.name);
    box.replaceChildren(...variant.tokens.map((token, i) => {
      const parts = other && (!other.tokens[i] || other.tokens[i].t !== token.t);
      const made = chip(variant.name, token, i, parts, sameTextGain(side, i));
      // The token that ends the answer is chosen like any other, but is not part of the text.
      if (variant.finish === "end" && i === variant.T - 1 && /^<.*>$/.test(token.t)) made.classList.add("ending");
      return made;
    }));
    if (!variant.T) box.append(node("span", { class: "none" }, "The answer is empty."));
    $(`.strip[data-variant="${variant.name}"] .finish`).textContent = finishWords(variant);
  });
}

function emptyStrip(name, label) {
  return node("div", { class: "strip", "data-variant": name },
    node("div", { class: "side" }, node("b", {}, label), node("span", { class: "finish" })),
    node("div", { class: "tokens", role: "listbox", "aria-label": `${label}: tokens of the answer`,
      "aria-multiselectable": "true", "data-testid": `strip-${name}` }));
}

const stripOf = (name) => $(`.strip[data-variant="${name}"] .tokens`);

function finishWords(variant) {
  const count = `${variant.T} ${variant.T === 1 ? "token" : "tokens"}`;
  return { end: count, length: `${count}, cut at the limit`, stopped: `${count}, stopped` }[variant.finish] || count;
}

// On the same text: what VAR did to the log-probability of this very token.
function sameTextGain(side, i) {
  if (!run.same_text || side !== 1) return null;
  const [a, b] = run.variants.map((v) => v.tokens[i]);
  return a && b && a.p > 0 && b.p > 0 ? Math.log(b.p) - Math.log(a.p) : null;
}

function chip(name, token, i, parts, gain) {
  const shown = glyphs(token.t), p = token.p;
  const classes = ["token"];
  if (/^ \S/.test(token.t)) classes.push("spaced");
  if (p < 0.5) classes.push("unsure");
  if (parts) classes.push("parts");
  let title = `token ${i + 1} ${JSON.stringify(token.t)}, probability ${p.toFixed(3)}`;
  if (gain != null) title += `, log-probability ${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(3)} under VAR`;
  if (parts) title += ", differs from the other answer";
  const made = node("button", {
    type: "button", class: classes.join(" "), role: "option", tabindex: -1, "aria-selected": "false",
    "data-i": i, "data-testid": `token-${name}-${i}`, title, style: `--p:${p.toFixed(4)}`,
  }, shown);
  if (gain != null && Math.abs(gain) >= 0.005) {
    made.append(node("sup", { class: gain > 0 ? "up" : "down" }, `${gain > 0 ? "+" : "−"}${Math.abs(gain).toFixed(2)}`));
  }
  if (/\n/.test(token.t)) made.dataset.break = "";
  return made;
}

function markTokens(focusIn) {
  for (const chipNode of element.querySelectorAll(".token")) {
    const i = +chipNode.dataset.i, on = i >= view.t0 && i <= view.t1;
    if ((chipNode.getAttribute("aria-selected") === "true") !== on) chipNode.setAttribute("aria-selected", on);
    chipNode.tabIndex = i === view.t0 ? 0 : -1;
  }
  for (const variant of run.variants) {
    const here = stripOf(variant.name).querySelector(`[data-i="${view.t0}"]`);
    if (!here) continue;
    if (focusIn === variant.name) here.focus({ preventScroll: true });
    reveal(stripOf(variant.name), here);
  }
}

// Scroll the strip itself, never the page.
function reveal(box, chipNode) {
  const top = chipNode.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + chipNode.offsetHeight > box.scrollTop + box.clientHeight) {
    box.scrollTop = top + chipNode.offsetHeight - box.clientHeight;
  }
}

const longest = () => Math.max(1, ...run.variants.map((v) => v.T));

function selectTokens(from, to, focusIn) {
  const last = longest() - 1;
  view.t0 = clamp(Math.min(from, to), 0, last);
  view.t1 = clamp(Math.max(from, to), 0, last);
  markTokens(focusIn);
  repaint();
}

// With a box chosen, the strips show who looked there: the background is the share of each token's image attention.
function tintTokens() {
  for (const variant of run.variants) {
    const looks = view.box ? lookUp(variant) : null;
    const top = looks ? Math.max(1e-9, ...looks.map((x) => x.mass)) : 1;
    for (const chipNode of stripOf(variant.name).children) {
      if (chipNode.dataset.i == null) continue;
      if (looks) chipNode.style.setProperty("--look", (looks[chipNode.dataset.i].mass / top).toFixed(3));
      else chipNode.style.removeProperty("--look");
    }
  }
}

// Reverse look-up: for each token its mass on the box, mean over the chosen layers and all heads, and the best layer.
function lookUp(variant) {
  const mass = boxMass(variant, view.box), { L } = run;
  return Array.from({ length: variant.T }, (_, t) => {
    let sum = 0, best = view.l0;
    for (let l = view.l0; l <= view.l1; l++) {
      sum += mass[t * L + l];
      if (mass[t * L + l] > mass[t * L + best]) best = l;
    }
    return { t, mass: sum / (view.l1 - view.l0 + 1), layer: best, top: mass[t * L + best] };
  });
}

function watchStrips() {
  let anchor = null, dragging = false;
  const chipAt = (event) => event.target.closest && event.target.closest(".token[data-i]");
  const strips = $(".strips");
  strips.addEventListener("pointerdown", (event) => {
    const hit = chipAt(event);
    if (!hit || !run || event.button || root.dataset.phase === "streaming") return;
    const i = +hit.dataset.i;
    if (event.shiftKey && anchor != null) selectTokens(anchor, i);
    else {
      anchor = i;
      selectTokens(i, i);
    }
    dragging = event.pointerType !== "touch";
  });
  strips.addEventListener("pointerover", (event) => {
    const hit = chipAt(event);
    if (dragging && event.buttons & 1 && hit && run) selectTokens(anchor, +hit.dataset.i);
  });
  window.addEventListener("pointerup", () => (dragging = false));
  strips.addEventListener("click", (event) => {
    // A key press or a script's click() has no pointer before it.
    const hit = chipAt(event);
    if (hit && run && event.detail === 0) selectTokens(+hit.dataset.i, +hit.dataset.i);
  });
  strips.addEventListener("keydown", (event) => {
    const hit = chipAt(event), strip = hit && hit.closest(".strip");
    if (!hit || !run || event.altKey || event.ctrlKey || event.metaKey) return;
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    const line = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const own = run.variants.find((v) => v.name === strip.dataset.variant).T - 1;
    if (step) {
      const to = clamp(+hit.dataset.i + step, 0, own);
      if (event.shiftKey) {
        if (anchor == null || anchor < view.t0 || anchor > view.t1) anchor = +hit.dataset.i;
        selectTokens(anchor, to);
        const moved = stripOf(strip.dataset.variant).querySelector(`[data-i="${to}"]`);
        if (moved) moved.focus({ preventScroll: true });
      } else {
        anchor = to;
        selectTokens(to, to, strip.dataset.variant);
      }
    } else if (line) {
      const names = run.variants.map((v) => v.name), k = names.indexOf(strip.dataset.variant) + line;
      const there = names[k] && stripOf(names[k]).querySelector(`[data-i="${hit.dataset.i}"]`);
      if (there) there.focus({ preventScroll: true });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
