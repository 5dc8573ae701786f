"""The style sheet and the script of the report page; the page is complete without the script."""

from __future__ import annotations

from pliant.report.style import CHART_STYLE, COLOUR_STYLE

PAGE_STYLE = (
    COLOUR_STYLE
    + CHART_STYLE
    + """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:44px}
.brand{font-size:13px;letter-spacing:.08em;text-transform:uppercase;color:var(--muted)}
h1{font-size:34px;line-height:1.2;margin:6px 0 12px;letter-spacing:-.015em}
h2{font-size:25px;line-height:1.25;margin:0 0 8px;letter-spacing:-.01em}
h3{font-size:17px;margin:30px 0 6px}
p{margin:0 0 12px}
.lede{font-size:18px;max-width:46em}
.text{max-width:46em}
.muted,.facts{color:var(--muted)}
.facts{font-size:14px}
a{color:var(--c1)}
nav{margin:18px 0 0;font-size:15px}
nav a{margin-right:18px;text-decoration:none;border-bottom:1px solid var(--grid)}
nav a:hover{border-color:currentColor}
section{margin:52px 0 0}
.tag{display:inline-block;font-size:12.5px;font-weight:600;vertical-align:middle;color:var(--muted);
  border:1px solid var(--grid);border-radius:99px;padding:1px 10px;margin-left:10px;letter-spacing:0}
.short{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:16px;margin:26px 0 0}
.card{background:var(--wash);border-radius:12px;padding:18px 20px}
.card h3{margin:0 0 8px;font-size:15px}
.card{font-size:15px}.card p{margin:0 0 10px}.card p:last-child,.card table:last-child{margin:0}
.card b{font-variant-numeric:tabular-nums}
.card table{max-width:520px;font-size:14.5px;margin:0 0 10px}.card td{padding:3px 0;border:0}
.swatch{width:22px;height:10px;margin-right:8px;vertical-align:.5px}
.legend{display:flex;flex-wrap:wrap;gap:6px 8px;margin:18px 0 8px}
.legend button{font:inherit;font-size:14px;color:var(--ink);background:none;border:1px solid var(--grid);
  border-radius:99px;padding:2px 12px;cursor:pointer}
.legend button:hover,.legend button[aria-pressed=true]{border-color:var(--muted);background:var(--wash)}
.scroll{overflow-x:auto;margin:14px 0 34px}
table{border-collapse:collapse;width:100%;font-size:15px}
th{font-weight:600;font-size:13px;color:var(--muted);text-align:right;vertical-align:bottom;line-height:1.3}
th,td{padding:8px 14px 8px 0;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child,.left{text-align:left}
td{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.left,td:first-child{white-space:normal}
td.wrap{white-space:normal;text-align:left}
th:last-child,td:last-child{padding-right:0}
th small{display:block;font-weight:400;font-size:12.5px}
tr.reference td{color:var(--muted)}
.pm{color:var(--muted)}
.good{color:var(--good)}.bad{color:var(--bad)}
.failed{color:var(--bad);font-weight:600}
.slope{display:block;margin:0 auto;width:150px;height:22px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:28px 32px;margin-top:26px}
figure{margin:0;position:relative;min-width:0;display:flex;flex-direction:column}
figcaption{margin:0 0 4px}
figcaption b{font-size:15.5px}
figcaption span{display:block;font-size:14px;color:var(--muted);line-height:1.4}
svg.chart{display:block;width:100%;height:auto;margin-top:auto;touch-action:pan-y}
.dim figure [data-label]:not(.on){opacity:.12}
.dim .chart .band{opacity:.1}
.tip{position:absolute;pointer-events:none;z-index:2;background:var(--paper);color:var(--ink);
  border:1px solid var(--grid);border-radius:8px;box-shadow:0 4px 18px rgb(0 0 0/.16);padding:8px 12px;
  font-size:13px;line-height:1.5;white-space:nowrap;display:none}
.tip b{display:block}
.tip div{display:flex;justify-content:space-between;gap:16px;font-variant-numeric:tabular-nums}
dl.settings{display:grid;grid-template-columns:max-content 1fr;gap:3px 20px;font-size:14px;margin:6px 0 16px}
dl.settings dt{color:var(--muted)}dl.settings dd{margin:0;overflow-wrap:anywhere}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere}
pre{background:var(--wash);border-radius:8px;padding:12px 14px;overflow-x:auto;margin:8px 0}
details{border-bottom:1px solid var(--grid);padding:9px 0}
details>summary{cursor:pointer;font-size:15px}
details[open]>summary{margin-bottom:10px}
details .facts{margin-left:8px}
.alert{border-left:3px solid var(--bad);background:var(--wash);border-radius:0 8px 8px 0;padding:10px 16px;
  font-size:15px;margin:14px 0;overflow-wrap:anywhere}
.alert ul{margin:4px 0 0;padding-left:20px}
footer{margin-top:64px;padding-top:18px;padding-bottom:40px;font-size:14px;color:var(--muted)}
footer p{border-top:1px solid var(--grid);padding-top:18px}
@media(max-width:640px){main,header,footer{padding-left:16px;padding-right:16px}.grid{grid-template-columns:1fr}
  h1{font-size:27px}h2{font-size:22px}dl.settings{grid-template-columns:1fr;gap:0}dl.settings dd{margin-bottom:6px}
  figure.wide{overflow-x:auto}figure.wide svg.chart{min-width:760px}}
@media print{.legend button{border:0;padding:0 12px 0 0}section,figure,.card{break-inside:avoid}nav{display:none}}
"""
)

PAGE_SCRIPT = """
"use strict";
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const svg = figure.querySelector("svg"), tip = figure.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  const rows = JSON.parse(figure.querySelector("script").textContent);
  const left = +svg.dataset.left, right = +svg.dataset.right, num = Math.max(...rows.map(r => r.mean.length));
  const hide = () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const share = ((event.clientX - box.left) * scale - left) / (right - left);
    if (share < -0.02 || share > 1.02) return hide();
    const i = num > 1 ? Math.min(num - 1, Math.max(0, Math.round(share * (num - 1)))) : 0;
    const x = num > 1 ? left + (right - left) * i / (num - 1) : (left + right) / 2;
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    const head = document.createElement("b"); head.textContent = "task " + (i + 1); tip.append(head);
    const seen = rows.filter(r => r.mean[i] != null).sort((a, b) => b.mean[i] - a.mean[i]);
    for (const row of seen) {
      const line = document.createElement("div"), name = document.createElement("span"),
        value = document.createElement("span"), swatch = document.createElement("i");
      swatch.style.cssText =
      "display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px;background:" + row.colour;
      name.append(swatch, row.label); value.textContent = row.text[i]; line.append(name, value); tip.append(line);
    }
    tip.style.display = "block";
    const at = x / scale, side = at + tip.offsetWidth + 24 < box.width;
    tip.style.left = Math.max(0, side ? at + 14 : at - tip.offsetWidth - 14) + "px";
    tip.style.top = box.top - figure.getBoundingClientRect().top + 12 + "px";
  });
}
for (const section of document.querySelectorAll("section[data-stream]")) {
  const buttons = [...section.querySelectorAll(".legend button")];
  for (const button of buttons) button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of buttons) other.setAttribute("aria-pressed", String(on && other === button));
    section.classList.toggle("dim", on);
    for (const part of section.querySelectorAll("figure [data-label]"))
      part.classList.toggle("on", part.dataset.label === button.dataset.label);
  });
}
"""
