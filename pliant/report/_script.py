"""The script of the report page: it filters, sorts, and shows numbers under the pointer. Without it nothing is lost."""

from __future__ import annotations

__all__ = ["PAGE_SCRIPT"]

# Names from records reach the page as text and attributes only; the script sets textContent and never HTML.
PAGE_SCRIPT = """
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

/* Filters: a method is shown if its button is pressed and all words of the search are in its name or its settings. */
const buttons = all(".legend button"), search = document.querySelector("#search");
const streams = document.querySelector("#streams"), count = document.querySelector("#count");
const known = new Set(buttons.map(button => button.dataset.label));
function apply() {
  const words = (search ? search.value : "").toLowerCase().split(/\\s+/).filter(Boolean);
  const matches = button => words.every(word => button.dataset.search.includes(word));
  const shown = new Set(buttons.filter(b => b.getAttribute("aria-pressed") === "true" && matches(b))
    .map(b => b.dataset.label));
  for (const button of buttons) button.hidden = !matches(button);
  for (const part of all("tr[data-label], svg [data-label], details[data-label]"))
    part.toggleAttribute("hidden", known.has(part.dataset.label) && !shown.has(part.dataset.label));
  const stream = streams ? streams.value : "";
  for (const part of all("[data-stream]"))
    part.toggleAttribute("hidden", stream !== "" && part.dataset.stream !== stream);
  if (count) count.textContent = shown.size + " of " + buttons.length + " methods";
}
for (const button of buttons) button.addEventListener("click", () => {
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  apply();
});
if (search) search.addEventListener("input", apply);
if (streams) streams.addEventListener("change", apply);
for (const reset of all(".reset")) reset.addEventListener("click", () => {
  if (search) search.value = "";
  if (streams) streams.value = "";
  for (const button of buttons) button.setAttribute("aria-pressed", "true");
  apply();
});

/* Sorting: the better end first, then the other; rows without a number stay at the bottom. */
for (const button of all("button.sort")) button.addEventListener("click", () => {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentNode.children].indexOf(head), first = head.dataset.first;
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const th of all("th[aria-sort]", table)) th.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = row => row.children[column].dataset.value;
  const text = column === 0;
  const rows = [...body.rows].map((row, i) => [row, i]);
  rows.sort(([a, i], [b, j]) => {
    const x = key(a), y = key(b);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || i - j;
    const difference = text ? x.localeCompare(y) : Number(x) === Number(y) ? 0 : Number(x) - Number(y);
    return sign * difference || i - j;
  });
  for (const [row] of rows) body.append(row);
});

/* What the pointer is on is drawn strongly, everything else faintly. */
let hot = null;
document.addEventListener("pointerover", event => {
  const on = event.target.closest("tr[data-label], .legend button, svg g[data-label]:not(.curve)");
  const label = on ? on.dataset.label : null;
  if (label === hot) return;
  hot = label;
  document.body.classList.toggle("focus", hot !== null);
  for (const part of all("svg.chart [data-label]")) part.classList.toggle("on", part.dataset.label === hot);
});

/* Numbers under the pointer, or with the arrow keys when a figure has the focus. */
for (const figure of all("figure[data-chart]")) {
  const svg = figure.querySelector("svg"), tip = figure.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const left = +svg.dataset.left, right = +svg.dataset.right, tasks = data.tasks, step = data.step;
  const num = Math.ceil(tasks / step);
  const text = value => (data.percent ? value.toFixed(1) : String(value)).replace("-", "\\u2212");
  let at = 0;
  const hide = () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); };
  const show = i => {
    at = Math.min(num - 1, Math.max(0, i));
    const from = at * step + 1, to = Math.min(tasks, from + step - 1);
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = tasks > 1 ? left + (right - left) * ((from + to) / 2 - 1) / (tasks - 1) : (left + right) / 2;
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = from === to ? "task " + from : "tasks " + from + " to " + to;
    tip.append(head);
    const pressed = label => buttons.every(b => b.dataset.label !== label || b.getAttribute("aria-pressed") === "true");
    const seen = data.rows.filter(row => row.mean[at] != null && pressed(row.label));
    for (const row of seen.sort((a, b) => b.mean[at] - a.mean[at])) {
      const line = document.createElement("div"), name = document.createElement("span");
      const value = document.createElement("span"), swatch = document.createElement("i");
      swatch.style.background = row.colour;
      name.append(swatch, row.label);
      const half = row.half[at] == null ? "?" : text(row.half[at]), fewer = row.seeds[at];
      value.textContent = text(row.mean[at]) + " \\u00b1 " + half + (data.percent ? " %" : "")
        + (fewer ? " (" + fewer + ")" : "");
      line.append(name, value);
      tip.append(line);
    }
    tip.style.display = "block";
    const place = x / scale, beside = place + tip.offsetWidth + 24 < box.width;
    tip.style.left = Math.max(0, beside ? place + 14 : place - tip.offsetWidth - 14) + "px";
    tip.style.top = box.top - figure.getBoundingClientRect().top + 12 + "px";
  };
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(at); });
  svg.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -num, End: num }[event.key];
    if (event.key === "Escape") hide();
    if (move === undefined) return;
    event.preventDefault();
    show(at + move);
  });
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const share = ((event.clientX - box.left) * scale - left) / (right - left);
    if (share < -0.02 || share > 1.02) return hide();
    show(Math.floor(share * (tasks - 1) / step + (step > 1 ? 0 : 0.5)));
  });
}

/* A number leads to its run, which may be folded away. */
function open() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target.scrollIntoView();
}
window.addEventListener("hashchange", open);
open();
apply();
"""
