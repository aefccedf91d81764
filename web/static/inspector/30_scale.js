// From values to colours. Every scale says in words what it does; the words stand under the map.
const SCALES = {
  clip: "percentile clip",
  linear: "linear",
  log: "logarithmic",
  rank: "rank",
  nosink: "without sinks",
  relative: "relative",
};

// How many of the largest patches are clipped: 1 %, and at least three. Sinks come in ones and twos, and on
// a small grid a bare 99th percentile would still be one of them.
const clipped = (n) => Math.min(Math.max(3, Math.ceil(n * 0.01)), Math.max(0, Math.floor(n / 4)));

// The k-th smallest value; reorders the values around it (Hoare's selection).
function nth(values, k) {
  let low = 0, high = values.length - 1;
  while (low < high) {
    const pivot = values[(low + high) >> 1];
    let i = low, j = high;
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i <= j) [values[i++], values[j--]] = [values[j], values[i]];
    }
    if (k <= j) high = j;
    else if (k >= i) low = i;
    else break;
  }
  return values[k];
}

// The value from which on patches are clipped: `cut` of them, fewer where the others would hold less than 5 % of the
// sum. Then the strongest are the map, and clipped, 50 % and 1 % would look the same. Reorders the pool.
function clipTop(pool, cut) {
  let k = pool.length - 1 - cut, below = 0, sum = 0;
  nth(pool, k);
  for (let i = 0; i < pool.length; i++) {
    sum += pool[i];
    if (i <= k) below += pool[i];
  }
  if (below < 0.05 * sum) pool.subarray(k + 1).sort();
  while (below < 0.05 * sum && k < pool.length - 1) below += pool[++k];
  return pool[k];
}

// A scale for one map or a pool of maps: { low, high, at(value) -> 0..1, value(0..1), ticks, words }
function makeScale(kind, maps) {
  const n = maps.reduce((sum, map) => sum + map.length, 0), each = n / Math.max(1, maps.length);
  const pool = new Float32Array(n);
  maps.reduce((at, map) => (pool.set(map, at), at + map.length), 0);
  if (kind === "rank") pool.sort(); // the other scales need one of the largest only, and pools can be large
  const high = pool.reduce((a, b) => Math.max(a, b), 0);
  if (!(high > 0)) {
    return { kind, low: 0, high: 0, at: () => 0, value: () => 0, ticks: [[0, "0"]], words: "no attention here" };
  }
  const linear = (top) => ({
    kind, low: 0, high: top, at: (x) => Math.min(1, x / top), value: (u) => u * top,
    ticks: [0, 0.25, 0.5, 0.75, 1].map((u) => [u, kind === "relative" ? times(u * top) : percent(u * top)]),
  });
  if (kind === "clip" || kind === "relative") {
    const top = clipTop(pool, clipped(each) * maps.length);
    let over = 0;
    for (const x of pool) if (x > top) over++;
    const scale = linear(top);
    scale.over = over;
    const p = (100 * (n - over)) / n;
    scale.words = over
      ? `percentile clip: linear to the ${p.toFixed(1)}th percentile; ${over > 1 ? `the ${over} strongest patches lie` : "the strongest patch lies"} above`
      : "percentile clip: linear, nothing clipped";
    if (over) scale.ticks[4][1] = "≥ " + scale.ticks[4][1];
    return scale;
  }
  if (kind === "log") {
    const low = high / 1000;
    return {
      kind, low, high,
      at: (x) => (x <= low ? 0 : Math.log(x / low) / Math.log(1000)),
      value: (u) => low * Math.pow(1000, u),
      ticks: [0, 1 / 3, 2 / 3, 1].map((u) => [u, percent(low * Math.pow(1000, u))]),
      words: "logarithmic, three decades up to the maximum",
    };
  }
  if (kind === "rank") {
    const at = (x) => {
      let a = 0, b = n; // patches strictly below x
      while (a < b) {
        const m = (a + b) >> 1;
        if (pool[m] < x) a = m + 1;
        else b = m;
      }
      return n > 1 ? a / (n - 1) : 1;
    };
    return {
      kind, low: 0, high, at, value: (u) => pool[Math.round(u * (n - 1))],
      ticks: [[0, "lowest"], [0.5, "median " + percent(pool[n >> 1])], [1, "highest"]],
      words: "rank: order only, sizes are not shown",
    };
  }
  const scale = linear(high);
  scale.words = kind === "nosink"
    ? "linear, sinks set to zero before layers are combined"
    : "linear to the maximum";
  return scale;
}

// Symmetric scale of a difference, clipped the same way.
function makeDifference(map) {
  const sizes = Float32Array.from(map, Math.abs).sort(), n = sizes.length;
  const cut = n - 1 - clipped(n);
  const top = sizes[cut] > 0 ? sizes[cut] : sizes[n - 1] || 0;
  if (!(top > 0)) return { kind: "none", at: () => 0.5, ticks: [[0.5, "0"]], words: "no difference anywhere" };
  const sign = (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + percent(Math.abs(x));
  return {
    kind: "difference", high: top, at: (x) => clamp(0.5 + (0.5 * x) / top, 0, 1),
    ticks: [[0, "≤ " + sign(-top)], [0.5, "0"], [1, "≥ " + sign(top)]],
    words: "VAR − baseline, attention mass; linear, symmetric, strongest patches clipped",
  };
}
