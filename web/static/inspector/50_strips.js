// The answers as strips of tokens: choose one, or a range. Both answers share one choice, unless each has its own.
function buildStrips() {
  const asked = promptStrips();
  $(".strips").replaceChildren(...asked.map(({ name, label, variant }) => promptStrip(name, label, variant.asked)),
    ...run.variants.map((variant) => emptyStrip(variant.name, variant.label)));
  foldPrompt();
  const gains = run.same_text ? run.variants[1].tokens.map((_, i) => sameTextGain(i)) : [], most = Math.max(...gains.map((gain) => Math.abs(gain || 0)), 0.01);
  run.variants.forEach((variant, side) => {
    const other = run.variants[1 - side];
    const box = stripOf(variant.name);
    box.replaceChildren(...variant.tokens.map((token, i) => {
      const parts = other && (!other.tokens[i] || other.tokens[i].t !== token.t);
      const made = chip(variant.name, token, i, parts, side === 1 ? gains[i] : null, most);
      // The token that ends the answer is chosen like any other, but is not part of the text.
      if (variant.finish === "end" && i === variant.T - 1 && /^<.*>$/.test(token.t)) made.classList.add("ending");
      return made;
    }));
    direct(box, variant.tokens);
    if (!variant.T) box.append(node("span", { class: "none" }, "The answer is empty."));
    $(`.strip[data-variant="${variant.name}"] .finish`).textContent = finishWords(variant);
  });
  if (gains.length) stripOf(run.variants[1].name).parentElement.querySelector(".side").append(gainKey(most));
  if (canPart()) stripOf(run.variants[1].name).parentElement.querySelector(".side").append(ownButton());
}

// Tokens of a text that begins in Arabic, Hebrew and the like run from right to left.
function direct(box, tokens) {
  const letter = /[A-Za-z\u00c0-\u02af\u0370-\u058f\u0900-\u1fff\u3040-\u9fff\uac00-\ud7af\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.exec(tokens.map((token) => token.t).join(""));
  box.dir = letter && /[\u0590-\u08ff\ufb1d-\ufefc]/.test(letter[0]) ? "rtl" : "ltr";
}

// The colours of the lines under the tokens of the same text.
const gainEnd = (most) => most.toFixed(most < 0.1 ? 2 : 1);
const gainKey = (most) => node("span", { class: "gains", title: "Change of each token's log-probability under VAR, on the same text" },
  node("b", {}, "Δ log p"), node("span", {}, `−${gainEnd(most)}`), node("i", {}), node("span", {}, `+${gainEnd(most)}`));

// After two answers diverge, tokens of the same index differ, so each side may have its own choice.
function canPart() {
  const [a, b] = run.variants;
  return Boolean(b) && !run.same_text && (a.T !== b.T || a.tokens.some((token, i) => token.t !== b.tokens[i].t));
}

const ownButton = () => node("button", { type: "button", class: "plain own", "data-testid": "own-choice", "aria-pressed": String(Boolean(view.own)), onclick: () => chooseApart(!view.own),
  title: "Each answer has its own chosen token: choose one here without changing the other's" }, "own choice");

function chooseApart(on) {
  view.own = on ? [view.t0, view.t1].map((t) => clamp(t, 0, run.variants[1].T - 1)) : null;
  markTokens();
  repaint();
}

// The prompt's own tokens: one strip for both answers, or one each if two runs had different prompts.
function promptStrips() {
  const there = run.variants.filter((v) => v.asked.T), texts = new Set(there.map((v) => v.asked.tokens.map((t) => t.t).join("\u0000")));
  return there.slice(0, texts.size).map((variant, k) => ({ variant,
    name: k ? `prompt-${variant.name}` : "prompt", label: texts.size > 1 ? `${variant.label}: prompt` : "Prompt" }));
}

function promptStrip(name, label, asked) {
  const strip = emptyStrip(name, label, "prompt");
  strip.classList.add("prompt");
  strip.querySelector(".tokens").append(asked.before ? node("span", { class: "none" }, `${asked.before} tokens …`) : "",
    ...asked.tokens.map((token, i) => node("button", {
      type: "button", class: `token ${token.k}${/^ \S/.test(token.t) ? " spaced" : ""}${token.t ? "" : " piece part"}`, role: "option", tabindex: -1, "aria-selected": "false", "data-i": i,
      "data-testid": `token-${name}-${i}`, title: `${token.k === "user" ? "prompt" : token.k} token ${i} ${token.t ? JSON.stringify(token.t) : "(a part of a character that several tokens make)"}: where it looked when it was read`,
    }, token.t ? glyphs(token.t) : "…")));
  direct(strip.querySelector(".tokens"), asked.tokens.filter((token) => token.k === "user"));
  strip.querySelector(".side").append(foldButton("hide", "prompt-hide"));
  return strip;
}

const foldButton = (text, testid) => node("button", { type: "button", class: "plain", "data-testid": testid, onclick: () => foldPrompt(!view.prompt) }, text);

// The prompt as one line, or as tokens that can be chosen.
function foldPrompt(open = view.prompt) {
  const strips = element.querySelectorAll(".strip.prompt"), asked = $(".asked");
  view.prompt = open;
  for (const strip of strips) strip.hidden = !open;
  asked.hidden = open && strips.length > 0;
  asked.querySelectorAll("button").forEach((button) => button.remove());
  if (strips.length) asked.append(foldButton("its tokens", "prompt-show"));
  else asked.title = served ? "This run was made without the rows of its prompt's own tokens." : "";
  if (!open && view.part === "prompt") selectTokens(...marks.answer, null, "answer");
}

function emptyStrip(name, label, part = "answer") {
  return node("div", { class: "strip", "data-variant": name, "data-part": part },
    node("div", { class: "side" }, node("b", {}, label), node("span", { class: "finish" })),
    node("div", { class: "tokens", role: "listbox", "aria-label": part === "answer" ? `${label}: tokens of the answer` : `${label}: tokens that can be chosen`,
      "aria-multiselectable": "true", "data-testid": `strip-${name}` }));
}

const stripOf = (name) => $(`.strip[data-variant="${name}"] .tokens`);

function finishWords(variant) {
  const count = `${variant.T} ${variant.T === 1 ? "token" : "tokens"}`;
  return { end: count, length: `${count}, cut at the limit`, stopped: `${count}, stopped`, time: `${count}, cut by the checkpoint's time limit`,
    stop_string: `${count}, ended by a stop string` }[variant.finish] || count;
}

// On the same text: VAR's change of this token's log-probability.
function sameTextGain(i) {
  const [a, b] = run.variants.map((v) => v.tokens[i]);
  return a && b && a.p > 0 && b.p > 0 ? Math.log(b.p) - Math.log(a.p) : null;
}

function chip(name, token, i, parts, gain, most) {
  const part = token.b && token.t === "", shown = part ? token.b : glyphs(token.t), p = token.p;
  const classes = ["token"];
  if (/^ \S/.test(token.t)) classes.push("spaced");
  if (p < 0.5) classes.push("unsure");
  if (parts) classes.push("parts");
  if (token.b) classes.push(part ? "piece part" : "piece");
  let title = `token ${i} ${JSON.stringify(token.t)}, probability ${p.toFixed(3)}`;
  if (gain != null) classes.push("gain", gain < 0 ? "lower" : "higher");
  if (gain != null) title += `, log-probability ${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(3)} under VAR`;
  if (parts) title += ", differs from the other answer";
  if (token.b) title += `, ${token.b.length > 2 ? "bytes" : "byte"} ${token.b}: ${part ? "a part of a character that several tokens make" : `the last part of ${quoted(token.t)}, which several tokens make`}`;
  const made = node("button", {
    type: "button", class: classes.join(" "), role: "option", tabindex: -1, "aria-selected": "false",
    "data-i": i, "data-testid": `token-${name}-${i}`, title, style: `--p:${p.toFixed(4)}${gain == null ? "" : `;--gain:${Math.min(1, Math.abs(gain) / most).toFixed(3)}`}`,
  }, shown);
  if (gain != null && Math.abs(gain) >= 0.005) {
    made.append(node("sup", { class: gain > 0 ? "up" : "down" }, `${gain > 0 ? "+" : "−"}${Math.abs(gain).toFixed(2)}`));
  }
  if (/\n/.test(token.t)) made.dataset.break = "";
  return made;
}

let marks = { answer: [0, 0], prompt: [0, 0] }; // the last choice in each part, to which Tab returns

function markTokens(focusIn) {
  marks[view.part] = [view.t0, view.t1];
  const own = $('[data-testid="own-choice"]');
  if (own) mark(own, "aria-pressed", Boolean(view.own));
  for (const strip of element.querySelectorAll(".strip")) {
    const { part, variant } = strip.dataset, side = part === "answer" && run.variants.find((v) => v.name === variant);
    const [from, to] = side && hasOwn(side) ? view.own : marks[part], box = strip.querySelector(".tokens");
    for (const chipNode of box.querySelectorAll(".token")) {
      const i = +chipNode.dataset.i, on = part === view.part && i >= from && i <= to;
      if ((chipNode.getAttribute("aria-selected") === "true") !== on) chipNode.setAttribute("aria-selected", on);
      if ((chipNode.tabIndex === 0) !== (i === from)) chipNode.tabIndex = i === from ? 0 : -1;
    }
    const here = box.querySelector(`[data-i="${from}"]`);
    if (!here) continue;
    if (focusIn === variant) here.focus({ preventScroll: true });
    requestAnimationFrame(() => reveal(box, here)); // after all changes, because it causes a layout
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

const longest = () => Math.max(1, ...sides().map((v) => v.T));

// `name`: the answer whose token was chosen; if each has its own choice, the other one's stays.
function selectTokens(from, to, focusIn, part = view.part, name = null) {
  view.part = part;
  const second = run.variants[1], span = (last) => [Math.min(from, to), Math.max(from, to)].map((t) => clamp(t, 0, last));
  if (part !== "answer" || !view.own || name !== second.name) [view.t0, view.t1] = span(longest() - 1);
  if (part === "answer" && view.own && (!name || name === second.name)) view.own = span(second.T - 1);
  markTokens(focusIn);
  repaint();
}

// If a box is chosen, the strips show which tokens looked there: the background is the share of the token's image attention.
let tinted = null;
function tintTokens() {
  if (!view.box && !tinted) return;
  tinted = view.box;
  root.toggleAttribute("data-boxed", Boolean(view.box)); // pale words on a coloured background would be hard to read
  const strips = [...promptStrips().map(({ name, variant }) => [name, variant.asked]), ...run.variants.map((v) => [v.name, v])];
  for (const [name, side] of strips) {
    const found = view.box ? lookUp(side) : null;
    const top = found ? Math.max(1e-9, ...found.map((x) => x.mass)) : 1;
    for (const chipNode of stripOf(name).querySelectorAll(".token")) {
      chipNode.style.background = found ? `color-mix(in srgb, var(--gauge) ${Math.round((42 * found[chipNode.dataset.i].mass) / top)}%, transparent)` : "";
    }
  }
}

// Reverse look-up: for each token its mass on the box, mean over the chosen layers and all heads, and the best layer.
function lookUp(variant) {
  const mass = boxMass(variant, view.box), { L } = run, layers = chosenLayers();
  return Array.from({ length: variant.T }, (_, t) => {
    let sum = 0, best = layers[0];
    for (const l of layers) {
      sum += mass[t * L + l];
      if (mass[t * L + l] > mass[t * L + best]) best = l;
    }
    return { t, mass: sum / layers.length, layer: best, top: mass[t * L + best] };
  });
}

function watchStrips() {
  let anchor = null, dragging = false;
  const chipAt = (event) => event.target.closest && event.target.closest(".token[data-i]");
  const partOf = (hit) => hit.closest(".strip").dataset.part, nameOf = (hit) => hit.closest(".strip").dataset.variant;
  const strips = $(".strips");
  strips.addEventListener("pointerdown", (event) => {
    const hit = chipAt(event);
    if (!hit || !run || event.button || root.dataset.phase === "streaming") return;
    const i = +hit.dataset.i;
    if (event.shiftKey && anchor != null && partOf(hit) === view.part) selectTokens(anchor, i, null, partOf(hit), nameOf(hit));
    else {
      anchor = i;
      selectTokens(i, i, null, partOf(hit), nameOf(hit));
    }
    dragging = event.pointerType !== "touch";
  });
  strips.addEventListener("pointerover", (event) => {
    const hit = chipAt(event);
    if (dragging && event.buttons & 1 && hit && run && partOf(hit) === view.part) selectTokens(anchor, +hit.dataset.i, null, partOf(hit), nameOf(hit));
  });
  window.addEventListener("pointerup", () => (dragging = false));
  strips.addEventListener("click", (event) => {
    // No pointer event precedes a key press or a script's click().
    const hit = chipAt(event);
    if (hit && run && event.detail === 0) selectTokens(+hit.dataset.i, +hit.dataset.i, null, partOf(hit), nameOf(hit));
  });
  strips.addEventListener("keydown", (event) => {
    const hit = chipAt(event), strip = hit && hit.closest(".strip");
    if (!hit || !run || event.altKey || event.ctrlKey || event.metaKey) return;
    const right = strip.querySelector(".tokens").dir === "rtl" ? -1 : 1; // the token that is shown there
    const step = { ArrowRight: right, ArrowLeft: -right, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    const line = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const all = [...strips.querySelectorAll(".strip:not([hidden])")], own = strip.querySelectorAll(".token").length - 1;
    if (step) {
      const to = clamp(+hit.dataset.i + step, 0, own);
      if (event.shiftKey && partOf(hit) === view.part) {
        if (anchor == null || anchor < view.t0 || anchor > view.t1) anchor = +hit.dataset.i;
        selectTokens(anchor, to, null, partOf(hit), nameOf(hit));
        strip.querySelector(`[data-i="${to}"]`).focus({ preventScroll: true });
      } else {
        anchor = to;
        selectTokens(to, to, strip.dataset.variant, partOf(hit), nameOf(hit));
      }
    } else if (line) {
      const next = all[all.indexOf(strip) + line];
      const there = next && next.querySelector(next.dataset.part === partOf(hit) ? `[data-i="${hit.dataset.i}"]` : '[tabindex="0"]');
      if (there) there.focus({ preventScroll: true });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
