// The page comes to life: one window of time, one cursor, and what pointers, wheel and keys do.
"use strict";

const LATENCY_BINS = 16; // of the others', to one with a histogram (pyvmm/report/timebins.py)
const CLICK = 5; // pixels

class View {
  constructor(data) {
    Object.assign(this, { data, from: 0, to: data.end, cursor: null, brush: null, charts: [], printWidth: 0, pending: false });
    this.least = Math.min(data.end, Math.max(data.width * 8, 1000));
    this.label = document.getElementById("window");
    this.live = document.getElementById("live");
    this.tip = document.getElementById("tip");
  }

  setWindow(from, to) {
    const span = Math.min(this.data.end, Math.max(this.least, to - from));
    this.from = Math.min(Math.max(0, (from + to - span) / 2), this.data.end - span);
    if (to - from >= this.least) this.from = Math.min(Math.max(0, from), this.data.end - span);
    this.to = this.from + span;
    this.schedule();
  }

  zoom(factor, around) {
    const at = around === undefined || around === null ? (this.from + this.to) / 2 : around;
    const span = Math.min(this.data.end, Math.max(this.least, (this.to - this.from) * factor));
    const share = (at - this.from) / (this.to - this.from);
    this.setWindow(at - share * span, at - share * span + span);
  }

  move(share) {
    const by = (this.to - this.from) * share;
    const from = Math.min(Math.max(0, this.from + by), this.data.end - (this.to - this.from));
    this.setWindow(from, from + (this.to - this.from));
  }

  reset() {
    this.setWindow(0, this.data.end);
  }

  schedule() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => this.renderNow());
  }

  renderNow() {
    this.pending = false;
    const span = this.to - this.from;
    const whole = span >= this.data.end;
    this.label.textContent = `${moment(this.from, span / 100, this.data.end)} – ${moment(this.to, span / 100, this.data.end)}${whole ? " (all)" : ""}`;
    for (const button of document.querySelectorAll("#toolbar button")) {
      const { do: what } = button.dataset;
      button.disabled = (what === "in" && span <= this.least) || (what !== "in" && whole)
        || (what === "left" && this.from <= 0) || (what === "right" && this.to >= this.data.end);
    }
    for (const chart of this.charts) chart.render();
  }

  // `chart` is the one that the pointer or the focus is on: its values are shown.
  setCursor(ns, chart, point) {
    this.cursor = ns;
    for (const each of this.charts) each.drawCursor();
    if (chart && ns !== null) this.showTip(chart, chart.describe(chart, ns), point);
    else this.tip.hidden = true;
  }

  showTip(chart, { head, rows }, point) {
    this.tip.replaceChildren(make("div", { class: "head" }, head), ...rows.map(([colour, name, value]) => {
      const line = make("div");
      if (colour !== null) line.append(swatch(colour));
      line.append(make("span", {}, name), make("span", { class: "value" }, value));
      return line;
    }));
    this.tip.hidden = false;
    // Above the chart, or below it: on the chart it would hide what it is about.
    const box = chart.svg.getBoundingClientRect();
    const at = point ? point[0] : box.left + chart.x(this.cursor) * (box.width / (chart.plotWidth + LEFT + RIGHT));
    const { offsetWidth: wide, offsetHeight: high } = this.tip;
    const left = Math.max(4, Math.min(at - wide / 2, document.documentElement.clientWidth - wide - 4));
    const above = box.top - high - 2;
    const top = above >= document.getElementById("toolbar").getBoundingClientRect().bottom ? above : box.bottom + 2;
    this.tip.style.left = `${left + scrollX}px`;
    this.tip.style.top = `${top + scrollY}px`;
  }

  announce(chart) {
    const { head, rows } = chart.describe(chart, this.cursor);
    this.live.textContent = `${head}: ${rows.map(([, name, value]) => `${name} ${value}`).join(", ")}`;
  }
}

// Mouse, pen and fingers on one chart. One finger sideways is a drag; two are a pinch.
function listenToPointers(view, chart, list) {
  const down = new Map();
  let pinch = null, start = null;
  const place = (event) => {
    const box = chart.svg.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * (chart.plotWidth + LEFT + RIGHT);
  };

  chart.svg.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    down.set(event.pointerId, place(event));
    chart.svg.setPointerCapture(event.pointerId);
    if (down.size === 1) start = place(event);
    if (down.size === 2) {
      const [a, b] = [...down.values()];
      pinch = { a: chart.time(a), b: chart.time(b) };
      start = view.brush = null;
    }
  });

  chart.svg.addEventListener("pointermove", (event) => {
    const x = place(event);
    if (down.has(event.pointerId)) down.set(event.pointerId, x);
    if (pinch && down.size === 2) {
      pinchTo(view, chart, pinch, [...down.values()]);
    } else if (start !== null && Math.abs(x - start) > CLICK) {
      view.brush = [chart.time(start), chart.time(x)];
      view.setCursor(null, null);
    } else if (!down.size || start !== null) {
      view.setCursor(chart.time(x), chart, [event.clientX, event.clientY]);
    }
  });

  const up = (event) => {
    if (!down.delete(event.pointerId)) return;
    const { brush } = view;
    view.brush = null;
    if (pinch) {
      if (!down.size) pinch = null;
    } else if (brush && event.type === "pointerup") {
      view.setWindow(Math.min(...brush), Math.max(...brush));
    } else if (event.type === "pointerup") {
      view.setCursor(chart.time(place(event)), chart, [event.clientX, event.clientY]);
      list.reveal();
    }
    start = null;
    for (const each of view.charts) each.drawCursor();
  };
  chart.svg.addEventListener("pointerup", up);
  chart.svg.addEventListener("pointercancel", up);
  chart.svg.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && !down.size) view.setCursor(null, null);
  });
  chart.svg.addEventListener("dblclick", () => view.reset());
}

// The moments that the two fingers took hold of stay below them.
function pinchTo(view, chart, { a, b }, [x1, x2]) {
  if (Math.abs(x2 - x1) < 10 || a === b) return;
  const perPixel = Math.abs((b - a) / (x2 - x1));
  const from = Math.min(a, b) - (Math.min(x1, x2) - LEFT) * perPixel;
  view.setWindow(from, from + perPixel * chart.plotWidth);
}

// The wheel zooms on the timeline; on other charts it scrolls the page, unless Ctrl is held (which
// is also what a touchpad's pinch comes as). Where there is nothing to zoom out of, it scrolls, too:
// a page that is scrolled down must not be stopped by the chart below the pointer.
function listenToWheel(view, chart, always) {
  chart.svg.addEventListener("wheel", (event) => {
    const whole = view.to - view.from >= view.data.end;
    if (!event.ctrlKey && (!always || (whole && event.deltaY >= 0))) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      view.move(event.deltaX / 1000);
      return;
    }
    const box = chart.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * (chart.plotWidth + LEFT + RIGHT);
    view.zoom(Math.exp(Math.max(-100, Math.min(100, event.deltaY)) / 250), chart.time(x));
  }, { passive: false });
}

function listenToKeys(view, chart, list) {
  chart.svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = ((view.to - view.from) / chart.plotWidth) * 2 * COLUMN;
    const at = view.cursor === null ? (view.from + view.to) / 2 : view.cursor;
    const within = (ns) => Math.min(view.to, Math.max(view.from, ns));
    const cursorTo = (ns) => {
      view.setCursor(within(ns), chart);
      view.announce(chart);
      list.reveal();
    };
    const actions = {
      ArrowLeft: () => (event.shiftKey ? view.move(-0.25) : cursorTo(at - step)),
      ArrowRight: () => (event.shiftKey ? view.move(0.25) : cursorTo(at + step)),
      Home: () => cursorTo(view.from),
      End: () => cursorTo(view.to),
      "+": () => view.zoom(0.5, within(at)),
      "=": () => view.zoom(0.5, within(at)),
      "-": () => view.zoom(2, within(at)),
      0: () => view.reset(),
      Escape: () => view.setCursor(null, null),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  chart.svg.addEventListener("blur", () => { view.tip.hidden = true; });
}

function addCharts(view) {
  const { data } = view;
  const figure = (name) => document.querySelector(`[data-chart="${name}"]`);
  const seconds = (ns) => ns / 1e9;
  const rate = {
    scaled: (sum, ns) => sum / seconds(ns),
    label: (value) => `${short(value)}/s`,
    value: (n, ns) => `${count(n)} (${short(n / seconds(ns))}/s)`,
  };
  const share = (value) => `${+value.toPrecision(value < 1 ? 1 : 3)} %`;
  const timeline = timelineChart(view, figure("timeline"));
  stackChart(view, figure("reasons"), data.reasons, { ...rate, nothing: "no exits in the trace" });
  stackChart(view, figure("devices"), data.devices, { ...rate, nothing: "no exits in the trace" });
  stackChart(view, figure("took"), data.took, {
    scaled: (sum, ns) => (100 * sum) / ns,
    label: share,
    value: (sum, ns) => `${duration(sum)} (${share((100 * sum) / ns)})`,
    nothing: "no exits in the trace",
  });
  stackChart(view, figure("interrupts"), data.interrupts, { ...rate, nothing: "no interrupts in the trace" });
  addQueues(view);
  const memorySteps = (needed) => { let top = 1024; while (top < needed) top *= 2; return top; };
  curveChart(view, figure("memory"), data.memory, { colour: 1, label: size, value: size, carry: true, most: memorySteps });
  return timeline;
}

function addQueues(view) {
  const host = document.getElementById("queues");
  const add = (caption) => {
    const figure = make("figure", { class: "chart" }, make("figcaption", {}, caption));
    host.append(figure);
    return figure;
  };
  for (const { name, depth, latency } of view.data.queues) {
    const steps = (needed) => (needed <= 2 ? 2 : niceCeiling(needed));
    curveChart(view, add(`${name}: requests in flight`), depth, { colour: 1, label: short, value: count, most: steps });
    latencyChart(view, add(`${name}: latency`), latency, LATENCY_BINS);
  }
}

function start() {
  const view = new View(JSON.parse(document.getElementById("data").textContent));
  const timeline = addCharts(view);
  const charts = [...view.charts];
  const list = new ConsoleList(view);
  for (const chart of charts) {
    listenToPointers(view, chart, list);
    listenToWheel(view, chart, chart === timeline);
    listenToKeys(view, chart, list);
  }
  const actions = {
    left: () => view.move(-0.25),
    right: () => view.move(0.25),
    in: () => view.zoom(0.5, view.cursor),
    out: () => view.zoom(2, view.cursor),
    reset: () => view.reset(),
  };
  const toolbar = document.getElementById("toolbar");
  toolbar.hidden = false;
  for (const button of toolbar.querySelectorAll("button")) button.addEventListener("click", actions[button.dataset.do]);
  addEventListener("resize", () => view.schedule());
  addEventListener("beforeprint", () => { view.printWidth = 680; view.renderNow(); });
  addEventListener("afterprint", () => { view.printWidth = 0; view.renderNow(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") view.tip.hidden = true; });
  view.renderNow();
}

start();
