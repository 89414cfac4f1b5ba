// Numbers as a person reads them, and the bins as arrays that can be added up over any window.
"use strict";

function duration(ns) {
  if (ns < 999.5) return `${Math.round(ns)}\u00a0ns`;
  for (const [scale, unit] of [[1e3, "µs"], [1e6, "ms"]]) {
    const value = ns / scale;
    if (value < 999.5) return `${value.toFixed(value >= 99.5 ? 0 : 1)}\u00a0${unit}`;
  }
  return `${(ns / 1e9).toFixed(2)} s`;
}

// A point in time, with as many digits as tell it from its neighbour `step` later, in the unit
// that suits `reach`, the greatest of those it stands beside.
function moment(ns, step, reach = ns) {
  const [scale, unit] = reach >= 1e9 ? [1e9, "s"] : reach >= 1e6 ? [1e6, "ms"] : [1e3, "µs"];
  const digits = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step / scale) - 1e-9)));
  return `${(ns / scale).toFixed(digits)}\u00a0${unit}`;
}

function size(kib) {
  for (const [scale, unit] of [[1, "KiB"], [1024, "MiB"]]) {
    const value = kib / scale;
    if (value < 1023.5) return `${value.toFixed(value >= 99.5 || Number.isInteger(value) ? 0 : 1)}\u00a0${unit}`;
  }
  return `${(kib / 1048576).toFixed(1)} GiB`;
}

function count(value) {
  return value.toLocaleString("en", { maximumFractionDigits: 0 });
}

function short(value) {
  for (const [scale, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= scale) return `${+(value / scale).toPrecision(3)}\u00a0${unit}`;
  }
  return `${+value.toPrecision(2)}`;
}

// The least of `digits` times a power of ten that isn't below `value`.
function niceCeiling(value, digits = [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) {
  const power = 10 ** Math.floor(Math.log10(value));
  return digits.map((n) => n * power).find((n) => n >= value * 0.999999);
}

function expand(encoded) {
  const bins = [];
  for (const value of encoded) {
    if (value >= 0) bins.push(value);
    else for (let n = value; n; n++) bins.push(0);
  }
  return bins;
}

// sums[i]: all bins before the ith, so that any window's sum is one subtraction.
function prefixSums(bins) {
  const sums = new Float64Array(bins.length + 1);
  bins.forEach((value, i) => { sums[i + 1] = sums[i] + value; });
  return sums;
}

// Python's bucket_value (pyvmm/report/queues.py).
function bucketValue(number) {
  if (number < 4) return number;
  const octave = Math.floor(number / 4) - 1;
  return (number - octave * 4) * 2 ** octave + 2 ** octave / 2 - (octave ? 0 : 0.5);
}

// The percentiles of a histogram, a Map of bucket to count.
function percentiles(histogram, wanted) {
  const buckets = [...histogram].sort((a, b) => a[0] - b[0]);
  const total = buckets.reduce((sum, [, n]) => sum + n, 0);
  return wanted.map((percent) => {
    let seen = 0;
    for (const [bucket, n] of buckets) {
      seen += n;
      if (seen >= (total * percent) / 100) return bucketValue(bucket);
    }
    return 0;
  });
}
