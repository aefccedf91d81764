// The payload (web/runs/payload.py) as arrays, and the arithmetic on it. Nothing here changes the page.
const KINDS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

async function unzip(response) {
  const stream = response.body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function unpack(buffer) {
  const bytes = new Uint8Array(buffer);
  if (String.fromCharCode(...bytes.subarray(0, 4)) !== "SINK") throw new Error("not a run");
  const length = new DataView(buffer).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const arrays = {};
  for (const item of header.arrays) {
    const count = item.shape.reduce((a, b) => a * b, 1);
    arrays[item.name] = new KINDS[item.dtype](buffer, 8 + length + item.offset, count);
  }
  return { header, arrays };
}

function makeRun({ header, arrays }) {
  const L = header.layers.length, H = header.heads.length, V = header.patches;
  const slot = new Map(header.layers.map((layer, index) => [layer, index]));
  const variants = header.variants.map((variant) => {
    const of = (name, owner = variant.name) => arrays[`${owner}.${name}`];
    const maps = (prefix, owner) => Object.fromEntries([["mean", "mean"], ["meanScale", "mean.scale"], ["full", "full"], ["fullScale", "full.scale"]]
      .map(([key, name]) => [key, of(prefix + name, owner)]));
    const sinks = header.layers.map(() => []);
    const scores = new Map(), treated = header.layers.map(() => []);
    for (const { layer, columns } of variant.treated || []) if (slot.has(layer)) treated[slot.get(layer)] = columns;
    for (const found of variant.sinks) {
      if (!slot.has(found.layer)) continue;
      sinks[slot.get(found.layer)] = found.columns;
      found.columns.forEach((c, k) => scores.set(`${slot.get(found.layer)}:${c}`, found.scores[k]));
    }
    // The answer's rows; `asked` has the same for the prompt's own tokens (empty if they were not kept).
    const rows = (part, prefix, tokens) => ({
      ...variant, sinks, scores, treated, part, tokens, T: tokens.length,
      // Two runs side by side may have different images and grids; the answers of one run share theirs.
      V: variant.patches || V, images: variant.images || header.images, photo: variant.photo || 0,
      parts: variant.segments || header.segments,
      ...maps(prefix), share: of(prefix + "image"), sink: of(prefix + "sink"), entropy: of(prefix + "entropy"),
      segments: of(prefix + "segments"), entropyTop: header.entropy_top[variant.name + (prefix && ".prompt")],
    });
    const { of: giver } = variant.reference || {}, asked = variant.asked || { tokens: [], before: 0 };
    const reference = { ...variant.reference, ...maps("reference.", giver), sinks: header.layers.map(() => []), V: variant.patches || V };
    return { ...rows("answer", "", variant.tokens), reference, asked: { ...rows("prompt", "prompt.", asked.tokens), reference, before: asked.before } };
  });
  return { ...header, id: header.run, L, H, variants, lazyMaps: makeMapCache(LAZY_BYTES) };
}

// What was fetched, up to a number of bytes. Beyond it the least recently used items are dropped, except those needed now.
const LAZY_BYTES = 64e6;
function makeMapCache(most) {
  const items = new Map();
  let bytes = 0;
  const drop = (key) => {
    const item = items.get(key);
    if (item) bytes -= item.bytes;
    items.delete(key);
  };
  return {
    most,
    drop,
    has: (key) => items.has(key),
    keys: () => [...items.keys()],
    get bytes() { return bytes; },
    get(key) {
      const item = items.get(key);
      if (!item) return null;
      items.delete(key);
      items.set(key, item); // now it is dropped last
      return item.value;
    },
    expect(key) { items.set(key, null); }, // it is being fetched
    put(key, value, size, needed = []) {
      drop(key);
      items.set(key, { value, bytes: size });
      bytes += size;
      for (const [old, item] of items) {
        if (bytes <= this.most) break;
        if (item && old !== key && !needed.includes(old)) drop(old);
      }
    },
  };
}

// Codes are companded: value = scale * (code / top)^2, so a row's codes are squared and multiplied with scale / top^2.
const unit = (codes) => (codes instanceof Uint8Array ? 255 : 65535) ** -2;

// The rows that are shown: those of the answers, or of the prompt's own tokens.
const sides = () => (view.part === "prompt" ? run.variants.map((v) => v.asked) : run.variants);

// Call a function as if only this layer were chosen (null: the real choice).
function onLayer(l, act) {
  const { l0, l1, picked } = view;
  if (l != null) Object.assign(view, { l0: l, l1: l, picked: null });
  const made = act();
  Object.assign(view, { l0, l1, picked });
  return made;
}

// The parts of a map: slots of the chosen layers, and the chosen (layer, head) rows of a token's L * H.
const between = (a, b) => Array.from({ length: b - a + 1 }, (_, k) => a + k);
const pairSlots = () => view.picked.pairs.map(([l, h]) => [run.layers.indexOf(l), run.heads.indexOf(h)]);
const chosenLayers = () => (view.picked ? [...new Set(pairSlots().map(([l]) => l))] : between(view.l0, view.l1));
const chosenRows = () => (view.picked ? pairSlots().map(([l, h]) => l * run.H + h)
  : between(view.l0, view.l1).flatMap((l) => between(view.h0, view.h1).map((h) => l * run.H + h)));
const chosenKey = () => (view.picked ? view.picked.pairs.map((pair) => pair.join(".")).join("-") : [view.l0, view.l1, view.h0, view.h1].join());

const allHeads = () => !view.picked && view.h0 === 0 && view.h1 === run.H - 1;
const needsHeads = () => view.combine !== "mean" || !allHeads();

// The choice on a side, even if it has fewer tokens.
const hasOwn = (variant) => Boolean(view.own) && variant.part === "answer" && variant.name === run.variants[1].name;
const chosenOn = (variant) => (hasOwn(variant) ? view.own : [view.t0, view.t1]);

// The tokens of the selection that this variant has; null if its answer ended before them.
function tokensOf(variant) {
  const [from, to] = chosenOn(variant);
  return from >= variant.T ? null : [from, Math.min(to, variant.T - 1)];
}

// The key under which a large run's maps of single heads are fetched and kept.
function lazyKey(variant, t0, t1) {
  const reduced = t1 > t0 && view.combine !== "mean";
  const selection = reduced ? `:${view.combine}:${chosenKey()}` : "";
  return `${variant.part}.${variant.name}:${t0}-${t1}${selection}`;
}

// Head means of tokens t0..t1 over the chosen layers: Float32Array (V).
function addMeans(variant, t0, t1, out) {
  const { L } = run, { V } = variant, weight = unit(variant.mean) / ((t1 - t0 + 1) * (view.l1 - view.l0 + 1));
  for (let l = view.l0; l <= view.l1; l++)
    for (let t = t0; t <= t1; t++) {
      const at = (t * L + l) * V, scale = variant.meanScale[t * L + l] * weight;
      const codes = variant.mean.subarray(at, at + V);
      for (let v = 0; v < V; v++) out[v] += codes[v] * codes[v] * scale;
    }
}

// Reduce (layer, head, patch) codes of one token over the chosen layers and heads.
function reduceHeads(codes, scales, at, variant, out, weight) {
  const { V } = variant, mode = view.combine, chosen = chosenRows();
  const own = new Float32Array(V).fill(mode === "min" ? Infinity : 0);
  for (const one of chosen) {
    const row = at + one, c = codes.subarray(row * V, (row + 1) * V);
    const scale = (mode === "mean" ? scales[row] / chosen.length : scales[row]) * unit(codes);
    if (mode === "mean") for (let v = 0; v < V; v++) own[v] += c[v] * c[v] * scale;
    else if (mode === "max") for (let v = 0; v < V; v++) own[v] = Math.max(own[v], c[v] * c[v] * scale);
    else for (let v = 0; v < V; v++) own[v] = Math.min(own[v], c[v] * c[v] * scale);
  }
  for (let v = 0; v < V; v++) out[v] += own[v] * weight;
}

// The map of tokens t0..t1 under the current selection: Float32Array (V), attention mass per patch. With the method "without
// sinks", sinks of the chosen layers are NaN (methods/without_sinks.py). Null if a large run's heads are not fetched yet.
function mapOf(variant, t0, t1) {
  const out = new Float32Array(variant.V);
  if (!needsHeads()) addMeans(variant, t0, t1, out);
  else if (variant.full) {
    for (let t = t0; t <= t1; t++) {
      const at = t * run.L * run.H;
      reduceHeads(variant.full, variant.fullScale, at, variant, out, 1 / (t1 - t0 + 1));
    }
  } else {
    const lazy = run.lazyMaps.get(lazyKey(variant, t0, t1));
    if (!lazy) return null;
    if (lazy.map) out.set(lazy.map);
    else reduceHeads(lazy.full, lazy["full.scale"], 0, variant, out, 1);
  }
  if (method().name === "without_sinks") for (const v of sinksOf(variant).keys()) out[v] = NaN;
  return out;
}

// The methods come with the run (methods/explain.py): name, description, and why this run cannot provide one. If such a
// method is chosen nevertheless, by a link or from the previous run, attention is shown and the text gives the reason.
const methodCalled = (name) => run.methods.find((method) => method.name === name) || run.methods[0];
const SAVED = "a saved page has no model to compute it with";
// A method computed on demand may be possible for one side only; methods of the page itself are drawn for both.
function whyNot(method) {
  if (method.computed && !served) return SAVED;
  const reasons = run.variants.map((v) => method.why[v.name]);
  return method.computed && !reasons.every(Boolean) ? undefined : reasons.find(Boolean);
}
const method = () => (whyNot(methodCalled(view.method)) ? run.methods[0] : methodCalled(view.method));
const relative = () => method().name === "relative";
const valueFormat = () => formatOfUnit(method().unit);
const SHARES = ["attention mass", "probability"]; // units that are written in %
const plainNumber = (x) => (x === 0 ? "0" : Math.abs(x) >= 1000 || Math.abs(x) < 0.001 ? x.toExponential(1) : x.toPrecision(2));
const formatOfUnit = (unit) => (unit.startsWith("times") ? times : SHARES.includes(unit) ? percent : plainNumber);

// A relative map is divided by that of a generic prompt under the same selection, or by a tenth of that map's mean if that
// is larger (methods/relative.py).
function genericOf(variant) {
  const { reference } = variant, [p0, p1] = patchesOfImage(variant);
  return kept(reference, "map", [chosenKey(), view.combine, view.image].join(), () => {
    const map = new Float32Array(variant.V);
    if (needsHeads()) reduceHeads(reference.full, reference.fullScale, 0, reference, map, 1);
    else addMeans(reference, 0, 0, map);
    const least = (0.1 * map.subarray(p0, p1).reduce((a, b) => a + b, 0)) / (p1 - p0) || Infinity;
    return map.map((x) => Math.max(x, least));
  });
}

// The values that are coloured: the map itself, or its ratio to the generic one.
function coloured(map, variant) {
  if (map && method().computed) return explainedMap(method().name, variant) || new Float32Array(variant.V).fill(NaN);
  if (!map || !relative()) return map;
  const generic = genericOf(variant);
  return map.map((x, v) => x / generic[v]);
}

// Raw shares of the selection, from the true masses, not from the map.
function sharesOf(variant, t0, t1) {
  const { L, H } = run, S = variant.parts.length + 1, chosen = chosenRows(), layers = chosenLayers();
  let image = 0, held = 0, entropy = 0;
  for (let t = t0; t <= t1; t++)
    for (const row of chosen) {
      const i = t * L * H + row, mass = variant.share[i] / 65535;
      image += mass;
      held += mass * (variant.sink[i] / 65535);
      entropy += (variant.entropy[i] / 65535) * variant.entropyTop;
    }
  const n = (t1 - t0 + 1) * chosen.length;
  const segments = new Float32Array(S);
  for (let t = t0; t <= t1; t++)
    for (const l of layers)
      for (let s = 0; s < S; s++) segments[s] += variant.segments[(t * L + l) * S + s] / 65535;
  const rows = (t1 - t0 + 1) * layers.length;
  return {
    image: image / n, sinks: image > 0 ? held / image : 0, entropy: entropy / n,
    segments: segments.map((x) => x / rows),
  };
}

// Sinks of the chosen layers: patch -> share of these layers that have it as a sink.
function sinksOf(variant) {
  const count = new Map(), layers = chosenLayers();
  for (const l of layers)
    for (const v of variant.sinks[l]) count.set(v, (count.get(v) || 0) + 1 / layers.length);
  return count;
}

// The patches that a control changed instead of the sinks, in any of the chosen layers.
function treatedOf(variant) {
  const found = new Set();
  for (const l of chosenLayers()) for (const v of (variant.treated || [])[l] || []) found.add(v);
  return found;
}

const imageOf = (variant) => variant.images[Math.min(view.image, variant.images.length - 1)];

const patchesOfImage = (variant) => {
  const image = imageOf(variant);
  return [image.start, image.start + image.rows * image.columns];
};

// Cursor and box are cells of the first answer's grid; on another grid they mark the same place of the picture.
function cellOn(cell, from, to) {
  if (cell == null || (from.rows === to.rows && from.columns === to.columns)) return cell;
  const at = (k, n, m) => Math.min(m - 1, Math.floor(((k + 0.5) * m) / n));
  return at(Math.floor(cell / from.columns), from.rows, to.rows) * to.columns + at(cell % from.columns, from.columns, to.columns);
}

function boxOn(box, variant) {
  const from = imageOf(run.variants[0]), to = imageOf(variant), { columns } = to;
  const a = cellOn(box.r0 * from.columns + box.c0, from, to), b = cellOn(box.r1 * from.columns + box.c1, from, to);
  return { r0: Math.floor(a / columns), c0: a % columns, r1: Math.floor(b / columns), c1: b % columns };
}

// Columns of the patches inside a box, as indices into the variant's patches.
function patchesOfBox(box, variant) {
  const { start, columns } = imageOf(variant), { r0, c0, r1, c1 } = boxOn(box, variant), made = [];
  for (let r = r0; r <= r1; r++)
    for (let c = c0; c <= c1; c++) made.push(start + r * columns + c);
  return made;
}

// Values that depend on few of the choices are computed when one of these changes, and kept with their rows.
function kept(variant, name, key, make) {
  if (!variant.kept) variant.kept = {};
  const had = variant.kept[name];
  if (!had || had.key !== key) variant.kept[name] = { key, value: make() };
  return variant.kept[name].value;
}

// Attention mass of each (token, layer) on the box, mean over heads: Float32Array (T, L).
const boxMass = (variant, box) => kept(variant, "box", JSON.stringify([box, view.image]), () => {
  const { V } = variant, factor = unit(variant.mean), made = new Float32Array(variant.T * run.L);
  const patches = patchesOfBox(box, variant);
  for (let i = 0; i < made.length; i++) {
    let sum = 0;
    for (const v of patches) sum += variant.mean[i * V + v] ** 2;
    made[i] = sum * variant.meanScale[i] * factor;
  }
  return made;
});

// One number for each (token, layer): the quantity of the token x layer panel, mean over the chosen heads.
function tokenLayer(variant, quantity) {
  const { L, H } = run, n = view.h1 - view.h0 + 1;
  if (quantity === "box") return view.box ? boxMass(variant, view.box) : new Float32Array(variant.T * L);
  return kept(variant, "time", [quantity, view.h0, view.h1].join(), () => {
    const made = new Float32Array(variant.T * L);
    for (let i = 0; i < made.length; i++) {
      let sum = 0;
      for (let h = view.h0; h <= view.h1; h++) sum += headValue(variant, i * H + h, quantity);
      made[i] = sum / n;
    }
    return made;
  });
}

function headValue(variant, i, quantity) {
  if (quantity === "sink") return variant.sink[i] / 65535;
  if (quantity === "entropy") return (variant.entropy[i] / 65535) * variant.entropyTop;
  return variant.share[i] / 65535;
}

// The same for each (layer, head), mean over the chosen tokens: Float32Array (L, H).
function layerHead(variant, t0, t1, quantity) {
  const { L, H } = run, made = new Float32Array(L * H);
  for (let t = t0; t <= t1; t++)
    for (let i = 0; i < L * H; i++) made[i] += headValue(variant, t * L * H + i, quantity);
  return made.map((x) => x / (t1 - t0 + 1));
}
