// The charts: SVG over one window of time that all of them share.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 54, RIGHT = 10, TOP = 8, BOTTOM = 22;
const PLOT_HEIGHT = 120;
const COLUMN = 3; // pixels, at least

// Text from the trace only ever becomes a text node: see make() and draw().
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function swatch(colour) {
  const square = document.createElementNS(SVG, "svg");
  square.setAttribute("class", "swatch");
  square.setAttribute("aria-hidden", "true");
  draw(square, "rect", { class: `f${colour}`, width: "100%", height: "100%" });
  return square;
}

class Chart {
  // `paint(chart)` draws the plot; `describe(chart, ns)` is what to say of that moment: a heading
  // and rows of [colour or null, name, value].
  constructor(view, figure, height, paint, describe) {
    Object.assign(this, { view, figure, height, paint, describe, isolated: null });
    this.svg = draw(figure, "svg", { tabindex: 0, role: "application", "aria-roledescription": "chart",
      "aria-label": figure.querySelector("figcaption").textContent, "aria-describedby": "help" });
    view.charts.push(this);
  }

  x(ns) {
    return LEFT + ((ns - this.view.from) / (this.view.to - this.view.from)) * this.plotWidth;
  }

  time(x) {
    const share = Math.min(1, Math.max(0, (x - LEFT) / this.plotWidth));
    return this.view.from + share * (this.view.to - this.view.from);
  }

  render() {
    const width = Math.max(260, this.view.printWidth || this.figure.clientWidth);
    this.plotWidth = width - LEFT - RIGHT;
    const height = TOP + this.height + BOTTOM;
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    draw(this.svg, "rect", { class: "plot", x: LEFT, y: TOP, width: this.plotWidth, height: this.height });
    this.drawTimeAxis();
    this.paint(this);
    this.overlay = draw(this.svg, "g", {});
    this.drawCursor();
  }

  drawTimeAxis() {
    const span = this.view.to - this.view.from;
    const step = niceCeiling(span / Math.max(2, this.plotWidth / 110), [1, 2, 5, 10]);
    const bottom = TOP + this.height;
    for (let n = Math.ceil(this.view.from / step); n * step <= this.view.to; n++) {
      const x = this.x(n * step);
      draw(this.svg, "line", { class: "grid", x1: x, x2: x, y1: TOP, y2: bottom });
      const anchor = x > LEFT + this.plotWidth - 30 ? "end" : x < LEFT + 30 ? "start" : "middle";
      draw(this.svg, "text", { x, y: bottom + 15, "text-anchor": anchor }, moment(n * step, step, this.view.to));
    }
    draw(this.svg, "line", { class: "axis", x1: LEFT, x2: LEFT + this.plotWidth, y1: bottom, y2: bottom });
  }

  // Horizontal lines at `values`, of which `top` is at the plot's upper edge.
  drawValueAxis(values, y, label) {
    for (const value of values) {
      const at = y(value);
      draw(this.svg, "line", { class: "grid", x1: LEFT, x2: LEFT + this.plotWidth, y1: at, y2: at });
      draw(this.svg, "text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, label(value));
    }
  }

  drawPhaseLines() {
    for (const { start } of this.view.data.phases) {
      if (start <= this.view.from || start >= this.view.to) continue;
      const x = this.x(start);
      draw(this.svg, "line", { class: "phase-line", x1: x, x2: x, y1: TOP, y2: TOP + this.height });
    }
  }

  drawCursor() {
    this.overlay.replaceChildren();
    const { cursor, from, to } = this.view;
    if (cursor !== null && cursor >= from && cursor <= to) {
      const x = this.x(cursor);
      draw(this.overlay, "line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: TOP + this.height });
    }
    const { brush } = this.view;
    if (brush) {
      const [x1, x2] = brush.map((ns) => this.x(ns)).sort((a, b) => a - b);
      draw(this.overlay, "rect", { class: "brush", x: x1, y: TOP, width: x2 - x1, height: this.height });
    }
  }

  // The bins in view, in groups so wide that each has a few pixels. A group's edges don't depend
  // on where the window is, so bars don't flicker when it moves.
  groups(used, width, pixels) {
    const visible = (this.view.to - this.view.from) / width;
    const group = 2 ** Math.max(0, Math.ceil(Math.log2(visible / (this.plotWidth / pixels))));
    const found = [];
    for (let first = Math.floor(this.view.from / width / group) * group; first < used && first * width < this.view.to; first += group) {
      found.push([first, Math.min(first + group, used)]);
    }
    return { group, found };
  }

  groupAt(ns, used, width, group) {
    const first = Math.floor(ns / width / group) * group;
    return [Math.min(first, used - 1), Math.min(first + group, used)];
  }

  // A group's left and right edge, cut at the plot's.
  edges(first, last, width) {
    return [Math.max(LEFT, this.x(first * width)), Math.min(LEFT + this.plotWidth, this.x(last * width))];
  }

  sayEmpty(sentence) {
    draw(this.svg, "text", { x: LEFT + this.plotWidth / 2, y: TOP + this.height / 2 + 4, "text-anchor": "middle" }, sentence);
  }
}

function interval(first, last, width, end) {
  const from = first * width, to = Math.min(last * width, end);
  return `${moment(from, to - from, end)} – ${moment(to, to - from, end)}`;
}

// Stacked columns. `scaled(sum, ns)` is what the axis shows of a group's sum.
function stackChart(view, figure, series, { scaled, label, value, nothing }) {
  const { width } = view.data;
  const rows = series.map(({ name, colour, bins }) => ({ name, colour, sums: prefixSums(expand(bins)) }));
  const used = rows.length ? rows[0].sums.length - 1 : 1;
  const sum = (row, [first, last]) => row.sums[last] - row.sums[first];
  const shown = (chart) => (chart.isolated === null ? rows : rows.filter((row) => row.colour === chart.isolated));

  function paint(chart) {
    const { group, found } = chart.groups(used, width, COLUMN);
    chart.group = group;
    const wide = group * width;
    const most = Math.max(0, ...found.map((g) => shown(chart).reduce((total, row) => total + sum(row, g), 0)));
    if (!most) {
      chart.sayEmpty(rows.length ? "none in this window" : nothing);
      return;
    }
    const top = niceCeiling(scaled(most, wide));
    const y = (shownValue) => TOP + chart.height * (1 - shownValue / top);
    chart.drawValueAxis([top, top / 2], y, label);
    const base = new Float64Array(found.length);
    for (const row of shown(chart)) {
      let path = "";
      found.forEach((g, i) => {
        const n = sum(row, g);
        if (!n) return;
        const [x1, x2] = chart.edges(...g, width);
        const low = y(scaled(base[i], wide));
        base[i] += n;
        const high = y(scaled(base[i], wide));
        const right = x2 - (x2 - x1 > 4 ? 1 : 0);
        path += `M${x1.toFixed(1)} ${low.toFixed(1)}V${high.toFixed(1)}H${right.toFixed(1)}V${low.toFixed(1)}z`;
      });
      if (path) draw(chart.svg, "path", { class: `f${row.colour}`, d: path });
    }
    chart.drawPhaseLines();
  }

  function describe(chart, ns) {
    const g = chart.groupAt(ns, used, width, chart.group || 1);
    const lines = rows.map((row) => [row, sum(row, g)]).filter(([, n]) => n);
    return {
      head: interval(...g, width, view.data.end),
      rows: lines.length ? lines.reverse().map(([row, n]) => [row.colour, row.name, value(n, (g[1] - g[0]) * width)]) : [[null, "nothing", ""]],
    };
  }

  const chart = new Chart(view, figure, PLOT_HEIGHT, paint, describe);
  if (rows.length > 1) addLegend(chart, rows);
  return chart;
}

// A press shows one series alone.
function addLegend(chart, rows) {
  const legend = make("div", { class: "legend", role: "group", "aria-label": "Show one alone" });
  for (const { name, colour } of rows) {
    const button = make("button", { type: "button", "aria-pressed": "false" }, swatch(colour), name);
    button.addEventListener("click", () => {
      chart.isolated = chart.isolated === colour ? null : colour;
      for (const other of legend.children) other.setAttribute("aria-pressed", String(other === button && chart.isolated !== null));
      chart.render();
    });
    const dim = (on) => chart.svg.querySelectorAll("path").forEach((path) => path.classList.toggle("dim", on && !path.classList.contains(`f${colour}`)));
    button.addEventListener("pointerenter", () => dim(true));
    button.addEventListener("pointerleave", () => dim(false));
    legend.append(button);
  }
  chart.figure.append(legend);
}

// A curve over the greatest value of each group, with the area below it. `carry`: what isn't
// sampled stays what it was.
function curveChart(view, figure, encoded, { colour, label, value, carry, most, height }) {
  const { width } = view.data;
  const bins = expand(encoded);
  if (carry) bins.forEach((n, i) => { if (!n && i) bins[i] = bins[i - 1]; });
  const used = bins.length;
  const greatest = ([first, last]) => Math.max(...bins.slice(first, last));

  function paint(chart) {
    const { group, found } = chart.groups(used, width, COLUMN);
    chart.group = group;
    const tops = found.map(greatest);
    const needed = Math.max(0, ...tops);
    if (!needed) {
      chart.sayEmpty("none in this window");
      return;
    }
    const top = most ? most(needed) : niceCeiling(needed);
    const y = (n) => TOP + chart.height * (1 - n / top);
    chart.drawValueAxis(top > 1 ? [top, top / 2] : [top], y, label);
    let line = "";
    found.forEach((g, i) => {
      const [x1, x2] = chart.edges(...g, width);
      line += `${i ? "L" : "M"}${x1.toFixed(1)} ${y(tops[i]).toFixed(1)}H${x2.toFixed(1)}`;
    });
    const ends = [chart.edges(...found[0], width)[0], chart.edges(...found[found.length - 1], width)[1]];
    draw(chart.svg, "path", { class: `area f${colour}`, d: `${line}V${y(0)}H${ends[0].toFixed(1)}z` });
    draw(chart.svg, "path", { class: `curve s${colour}`, d: line });
    chart.drawPhaseLines();
  }

  function describe(chart, ns) {
    const g = chart.groupAt(ns, used, width, chart.group || 1);
    return { head: interval(...g, width, view.data.end), rows: [[colour, "at most", value(greatest(g))]] };
  }

  return new Chart(view, figure, height || PLOT_HEIGHT, paint, describe);
}

// For each group a bar from the median to the slowest, with a mark at 99 %; the scale is logarithmic.
function latencyChart(view, figure, encoded, bins) {
  const width = view.data.width * bins;
  const used = Math.ceil(view.data.end / width) || 1;
  const histograms = new Map(encoded.map(([index, ...pairs]) => [index, pairs]));
  const all = encoded.flatMap(([, ...pairs]) => pairs.filter((_, i) => i % 2 === 0));
  const low = 10 ** Math.floor(Math.log10(Math.max(1, bucketValue(Math.min(...all)))));
  const high = 10 ** Math.ceil(Math.log10(Math.max(10 * low, bucketValue(Math.max(...all)))));

  function merged([first, last]) {
    const histogram = new Map();
    for (let index = first; index < last; index++) {
      const pairs = histograms.get(index) || [];
      for (let i = 0; i < pairs.length; i += 2) histogram.set(pairs[i], (histogram.get(pairs[i]) || 0) + pairs[i + 1]);
    }
    return histogram;
  }

  function paint(chart) {
    const y = (ns) => TOP + chart.height * (1 - Math.log(Math.max(ns, low) / low) / Math.log(high / low));
    const decades = [];
    for (let ns = low; ns <= high * 1.01; ns *= 10) decades.push(ns);
    chart.drawValueAxis(decades, y, (ns) => duration(ns).replace(/\.0+(?=\D)/, ""));
    const { group, found } = chart.groups(used, width, 6);
    chart.group = group;
    let bars = "", marks = "", medians = "";
    for (const g of found) {
      const histogram = merged(g);
      if (!histogram.size) continue;
      const [median, late, slowest] = percentiles(histogram, [50, 99, 100]).map(y);
      let [x1, x2] = chart.edges(...g, width);
      if (x2 - x1 > 40) [x1, x2] = [(x1 + x2) / 2 - 20, (x1 + x2) / 2 + 20];
      bars += `M${x1 + 1} ${median + 1}V${slowest - 1}H${x2 - 1}V${median + 1}z`;
      medians += `M${x1} ${median}H${x2}`;
      marks += `M${x1} ${late}H${x2}`;
    }
    draw(chart.svg, "path", { class: "area f1", d: bars });
    draw(chart.svg, "path", { class: "curve s2", d: marks });
    draw(chart.svg, "path", { class: "curve s3", d: medians, "stroke-width": 2 });
    chart.drawPhaseLines();
    if (!medians) chart.sayEmpty("none in this window");
  }

  function describe(chart, ns) {
    const g = chart.groupAt(ns, used, width, chart.group || 1);
    const histogram = merged(g);
    const head = interval(...g, width, view.data.end);
    if (!histogram.size) return { head, rows: [[null, "nothing", ""]] };
    const [median, late, slowest] = percentiles(histogram, [50, 99, 100]);
    const requests = [...histogram.values()].reduce((a, b) => a + b, 0);
    return { head, rows: [[1, "slowest", duration(slowest)], [2, "99 %", duration(late)], [3, "median", duration(median)], [null, "requests", count(requests)]] };
  }

  const key = make("div", { class: "legend" });
  for (const [colour, name] of [[3, "median"], [2, "99 %"], [1, "median to slowest"]]) key.append(make("span", {}, swatch(colour), name));
  const chart = new Chart(view, figure, PLOT_HEIGHT, paint, describe);
  figure.append(key);
  return chart;
}

// The phases as bands; below them, the console's lines as ticks, and as many of them in words as
// there is room for, those before a long silence first.
function timelineChart(view, figure) {
  const { phases, console: lines, end } = view.data;
  const BAND = 26, ROW = 15, TICKS = 12, CHARACTER = 6.7;
  const silences = lines.map(([ns], i) => (i + 1 < lines.length ? lines[i + 1][0] : end) - ns);
  const ranked = lines.map((_, i) => i).sort((a, b) => silences[b] - silences[a]);

  function paint(chart) {
    for (const { phase, title, start, end: stop } of phases) {
      if (stop < view.from || start > view.to) continue;
      const x1 = Math.max(LEFT, chart.x(start));
      const x2 = Math.max(x1 + 1.5, Math.min(LEFT + chart.plotWidth, chart.x(stop)));
      const known = ["setup", "entry", "console", "init", "shutdown", "reset", "end"].includes(phase);
      draw(chart.svg, "rect", { class: `phase-${known ? phase : "other"} phase-edge`, x: x1, y: TOP, width: x2 - x1, height: BAND });
      const room = Math.floor((x2 - x1 - 8) / 6.2);
      const words = [`${title}, ${duration(stop - start)}`, title, duration(stop - start)].find((text) => text.length <= room);
      if (words) draw(chart.svg, "text", { class: "strong", x: (x1 + x2) / 2, y: TOP + 17, "text-anchor": "middle" }, words);
    }
    const bottom = TOP + chart.height;
    let ticks = "";
    for (const [ns] of lines) {
      if (ns < view.from || ns > view.to) continue;
      ticks += `M${chart.x(ns).toFixed(1)} ${bottom}V${bottom - TICKS}`;
    }
    draw(chart.svg, "path", { class: "tick", d: ticks });
    if (!lines.length) chart.sayEmpty("the console said nothing");
    paintWords(chart, bottom - TICKS);
  }

  function paintWords(chart, bottom) {
    const rows = Math.floor((bottom - TOP - BAND - 4) / ROW);
    const taken = Array.from({ length: rows }, () => []);
    const free = (row, x1, x2) => taken[row].every(([a, b]) => x2 < a || x1 > b);
    const room = Math.max(18, Math.min(48, Math.floor((chart.plotWidth * 0.35) / CHARACTER)));
    let tried = 0;
    for (const i of ranked) {
      const [ns, text] = lines[i];
      if (ns < view.from || ns > view.to) continue;
      if (++tried > 300) break;
      const plain = text.replace(/^\s*(<\d+>)?(\[[^\]]{0,20}\]\s*)+/, "").replace(/\s+/g, " ").trim();
      if (!plain) continue;
      const words = plain.length > room ? `${plain.slice(0, room - 1)}…` : plain;
      const x = chart.x(ns), wide = words.length * CHARACTER + 6;
      const flip = x + wide > LEFT + chart.plotWidth;
      const [x1, x2] = flip ? [x - wide, x + 2] : [x - 2, x + wide];
      if (x1 < LEFT - 4) continue;
      for (let row = rows - 1; row >= 0; row--) {
        let clear = free(row, x1, x2);
        for (let below = row + 1; clear && below < rows; below++) clear = free(below, x - 2, x + 2);
        if (!clear) continue;
        taken[row].push([x1, x2]);
        for (let below = row + 1; below < rows; below++) taken[below].push([x - 2, x + 2]);
        const y = TOP + BAND + 4 + row * ROW;
        draw(chart.svg, "line", { class: "stem", x1: x, x2: x, y1: y + 2, y2: bottom });
        draw(chart.svg, "text", { class: "said", x: flip ? x - 4 : x + 4, y: y + 11, "text-anchor": flip ? "end" : "start" }, words);
        break;
      }
    }
  }

  function describe(chart, ns) {
    const phase = phases.find(({ start, end: stop }) => ns >= start && ns <= stop);
    const rows = phase ? [[null, phase.title, duration(phase.end - phase.start)]] : [];
    const line = lineAt(lines, ns);
    if (line >= 0) {
      rows.push([null, lines[line][1], ""], [null, "said at", moment(lines[line][0], 1e5, end)], [null, "then silence for", duration(silences[line])]);
    }
    return { head: moment(ns, (view.to - view.from) / 1000, end), rows };
  }

  return new Chart(view, figure, figure.clientWidth < 520 ? 130 : 160, paint, describe);
}

// The last line at or before a moment; -1 if there is none.
function lineAt(lines, ns) {
  let low = 0, high = lines.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lines[middle][0] <= ns) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
