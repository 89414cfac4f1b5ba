// The list of console lines: those in the window, and the one at the cursor.
"use strict";

const PRINTED_LINES = 40;

class ConsoleList {
  constructor(view) {
    this.view = view;
    this.box = document.getElementById("console");
    this.note = document.getElementById("console-count");
    this.lines = view.data.console;
    this.now = -1;
    const list = this.box.querySelector("ol");
    this.items = this.lines.map(([ns, text], i) => {
      const next = i + 1 < this.lines.length ? this.lines[i + 1][0] : view.data.end;
      const words = make("span", { class: "text" }, text);
      const item = make("li", {}, make("time", {}, moment(ns, 1e6, view.data.end)), words);
      if ((next - ns) * 50 >= view.data.end) words.append(make("span", { class: "gap" }, `then ${duration(next - ns)} of silence`));
      item.addEventListener("click", () => view.setCursor(ns, null));
      return item;
    });
    list.append(...this.items);
    this.printNote = make("p", { class: "print-only soft" });
    this.box.after(this.printNote);
    if (!this.lines.length) this.box.hidden = true;
    view.charts.push(this);
  }

  render() {
    const { from, to } = this.view;
    let seen = 0;
    this.items.forEach((item, i) => {
      const within = this.lines[i][0] >= from && this.lines[i][0] <= to;
      item.hidden = !within;
      item.classList.toggle("late", within && ++seen > PRINTED_LINES);
    });
    this.note.textContent = seen === this.items.length ? `(${count(seen)})` : `(${count(seen)} of ${count(this.items.length)}, in the window above)`;
    this.printNote.textContent = seen > PRINTED_LINES ? `The first ${PRINTED_LINES} of ${count(seen)} lines are printed.` : "";
    this.drawCursor();
  }

  drawCursor() {
    const now = this.view.cursor === null ? -1 : lineAt(this.lines, this.view.cursor);
    if (now === this.now) return;
    if (this.now >= 0) this.items[this.now].classList.remove("now");
    if (now >= 0) this.items[now].classList.add("now");
    this.now = now;
  }

  // Scrolls the list, not the page.
  reveal() {
    const item = this.items[this.now];
    if (!item || item.hidden) return;
    this.box.scrollTop += item.getBoundingClientRect().top - this.box.getBoundingClientRect().top - this.box.clientHeight / 3;
  }
}
