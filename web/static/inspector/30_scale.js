// Maps values to positions on a colour bar, as drawing/scale.py does, which explains the scales: a test runs both on the
// same inputs. Each scale has a description, which is shown under the map.
const DECADES = 3;

// How many of a map's largest patches are clipped: 1 %, at least three, at most a quarter.
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

// All values but the missing ones (NaN).
function pooled(maps) {
  const pool = new Float32Array(maps.reduce((sum, map) => sum + map.length, 0));
  let n = 0;
  for (const map of maps) for (const x of map) if (x === x) pool[n++] = x;
  return pool.subarray(0, n);
}

// The value above which patches are clipped, and their number; reorders the pool. Fewer are clipped if the
// others would have less than 5 % of the sum: then the strongest patches are the map.
function clipTop(pool, maps) {
  let k = pool.length - 1 - clipped(pool.length / maps) * maps, below = 0, sum = 0, over = 0;
  nth(pool, k);
  for (let i = 0; i < pool.length; i++) {
    sum += pool[i];
    if (i <= k) below += pool[i];
  }
  if (below < 0.05 * sum) pool.subarray(k + 1).sort();
  while (below < 0.05 * sum && k < pool.length - 1) below += pool[++k];
  for (const x of pool) if (x > pool[k]) over++;
  return [pool[k], over];
}

const strongest = (count) => (count > 1 ? `the ${count} strongest patches lie` : "the strongest patch lies");

// A scale for one map or a pool of maps: { kind, low, high, over, at(value) -> 0..1, ticks, words }. It is empty (high is
// 0) if no value is above 0.
function makeScale(kind, maps, format = percent) {
  const pool = pooled(maps), n = pool.length;
  if (kind === "rank") pool.sort(); // the other scales need only one of the largest values, and pools can be large
  const high = pool.reduce((a, b) => Math.max(a, b), 0);
  if (!(high > 0)) return { kind, low: 0, high: 0, over: 0, at: (x) => x * 0, ticks: [[0, "0"]], words: "no attention here" };
  const along = (parts, value, over) => Array.from({ length: parts + 1 }, (_, k) =>
    [k / parts, (over && k === parts ? "≥ " : "") + format(value(k / parts))]);
  if (kind === "log") {
    const low = high / 10 ** DECADES;
    return {
      kind, low, high, over: 0, at: (x) => clamp(Math.log(x / low) / Math.log(high / low), 0, 1),
      ticks: along(DECADES, (u) => low * (high / low) ** u), words: "logarithmic, three decades up to the maximum",
    };
  }
  if (kind === "rank") {
    const at = (x) => {
      let a = 0, b = n; // patches strictly below x: equal ones share the lowest rank
      while (a < b) {
        const m = (a + b) >> 1;
        if (pool[m] < x) a = m + 1;
        else b = m;
      }
      return x * 0 + Math.min(1, a / Math.max(1, n - 1));
    };
    return {
      kind, low: 0, high, over: 0, at, words: "rank: order only, sizes are not shown",
      ticks: [[0, "lowest"], [0.5, "median " + format(pool[n >> 1])], [1, "highest"]],
    };
  }
  const [top, over] = kind === "percentile" ? clipTop(pool, maps.length) : [high, 0];
  const linear = over ? `linear to the ${((100 * (n - over)) / n).toFixed(1)}th percentile; ${strongest(over)} above` : "linear, nothing clipped";
  return {
    kind, low: 0, high: top, over, at: (x) => clamp(x / top, 0, 1), ticks: along(4, (u) => top * u, over),
    words: kind === "percentile" ? "percentile clip: " + linear : "linear to the maximum",
  };
}

// The scale of signed values: 0 in the middle, clipped in the same way.
function makeSigned(maps, format = percent) {
  const sizes = pooled(maps).map(Math.abs), [top, over] = clipTop(sizes, maps.length), beyond = (sign) => (over ? sign : "");
  if (!(top > 0)) return { kind: "signed", low: 0, high: 0, over: 0, at: (x) => x * 0 + 0.5, ticks: [[0.5, "0"]], words: "no difference anywhere" };
  return {
    kind: "signed", low: -top, high: top, over, at: (x) => clamp(0.5 + (0.5 * x) / top, 0, 1),
    ticks: [[0, `${beyond("≤ ")}−${format(top)}`], [0.5, "0"], [1, `${beyond("≥ ")}+${format(top)}`]],
    words: "linear, the same on both sides of 0" + (over ? `; ${strongest(over)} beyond` : ""),
  };
}

// right - left; all 0 if the difference may be the float16 rounding of traces.
function differenceOf(left, right, idle) {
  const made = right.map((x, i) => x - left[i]), largest = (map) => map.reduce((a, b) => (b > a ? b : a), 0);
  return idle || largest(made.map(Math.abs)) <= 2 ** -10 * Math.max(largest(left), largest(right)) ? made.fill(0) : made;
}
