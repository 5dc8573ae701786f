"""The style sheet of the report page, and of other pages that look like it."""

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
h1,h2,h3,p,figcaption{overflow-wrap:anywhere}
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
nav a{display:inline-block;max-width:100%;overflow-wrap:anywhere;margin-right:18px;
  text-decoration:none;border-bottom:1px solid var(--grid)}
nav a:hover{border-color:currentColor}
section{margin:52px 0 0}
.tag{display:inline-block;white-space:nowrap;font-size:12.5px;font-weight:600;vertical-align:middle;color:var(--muted);
  border:1px solid var(--grid);border-radius:99px;padding:1px 10px;margin-left:10px;letter-spacing:0}
.swatch{width:22px;height:10px;margin-right:8px;vertical-align:.5px}
.filters{background:var(--paper);border-bottom:1px solid var(--grid);padding:12px 0;margin:22px 0 0;display:flex;
  flex-wrap:wrap;gap:8px 18px;align-items:center;font-size:14px;position:sticky;top:0;z-index:3}
.filters label{color:var(--muted)}.filters .control{display:none}.js .filters .control{display:inline-block}
.filters input,.filters select,.filters .reset{font:inherit;color:var(--ink);background:var(--paper);
  border:1px solid var(--axis);border-radius:8px;padding:4px 10px;margin-left:6px;max-width:230px}
.filters .reset{cursor:pointer;margin:0}
.legend{display:flex;flex-wrap:wrap;gap:6px 8px;flex-basis:100%}
.legend button{font:inherit;font-size:14px;color:var(--ink);background:none;border:1px solid var(--grid);
  border-radius:99px;padding:2px 12px;cursor:pointer;max-width:100%;overflow-wrap:anywhere;text-align:left}
.legend button:hover{border-color:var(--muted);background:var(--wash)}
.legend button[aria-pressed=false]{color:var(--muted);text-decoration:line-through;opacity:.6}
button.sort{font:inherit;color:inherit;background:none;border:0;padding:0;text-align:inherit;line-height:inherit;
  cursor:default}
.js button.sort{cursor:pointer}.js button.sort:hover{color:var(--ink)}
.js th[aria-sort] button.sort{color:var(--ink)}
th[aria-sort=descending] .name::after{content:" ▾"}th[aria-sort=ascending] .name::after{content:" ▴"}
a.run{color:inherit;text-decoration:underline;text-decoration-color:var(--grid);text-underline-offset:3px}
a.run:hover{text-decoration-color:currentColor}
a:focus-visible,button:focus-visible,input:focus-visible,select:focus-visible,summary:focus-visible,
svg:focus-visible{outline:2px solid var(--c1);outline-offset:2px}
tbody tr:hover td,tbody tr:hover th{background:var(--wash)}
tbody th{font-weight:400;font-size:15px;color:inherit;text-align:left;overflow-wrap:anywhere;min-width:200px;
  padding-left:30px;text-indent:-30px}tbody th .tag{text-indent:0;margin-left:8px}
.scroll.wide tbody th,.scroll.wide thead th:first-child{position:sticky;left:0;background:var(--paper);z-index:1;
  max-width:260px}
.scroll.wide tbody tr:hover th{background:var(--wash)}
.best{font-weight:700}
thead .name{display:inline-block;max-width:170px;overflow-wrap:break-word}
a,b,span,button,option,code{unicode-bidi:isolate}
[hidden]{display:none!important}
.none{color:var(--muted);font-size:15px}
.scroll{overflow-x:auto;margin:14px 0 34px}
table{border-collapse:collapse;width:100%;font-size:15px}
th{font-weight:600;font-size:13px;color:var(--muted);text-align:right;vertical-align:bottom;line-height:1.3}
th,td{padding:8px 14px 8px 0;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child,.left{text-align:left}
td{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.left,td:first-child{white-space:normal}
thead th{min-width:72px}
td.wrap{white-space:normal;text-align:left}
th:last-child,td:last-child{padding-right:0}
th small{display:block;font-weight:400;font-size:12.5px}
tr.reference td{color:var(--muted)}
.pm{color:var(--muted)}
.good{color:var(--good)}.bad{color:var(--bad)}
.failed{color:var(--bad);font-weight:600}
.slope{display:block;margin:0 auto;width:150px;height:22px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:28px 32px;margin-top:26px}
figure{margin:0;position:relative;min-width:0;display:flex;flex-direction:column}
figcaption{margin:0 0 4px}
figcaption b{font-size:15.5px}
figcaption span{display:block;font-size:14px;color:var(--muted);line-height:1.4}
svg.chart{display:block;width:100%;height:auto;margin-top:auto;touch-action:pan-y}
.focus .chart [data-label]:not(.on){opacity:.12}
.focus .chart .on .line{stroke-width:3.2}
.chart circle,.chart g[data-label]{transition:opacity .12s}
@media(prefers-reduced-motion:reduce){.chart g[data-label]{transition:none}html{scroll-behavior:auto}}
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:28px 32px;margin:18px 0 20px;
  align-items:start}.pair svg.chart{margin-top:4px}
section,details[id]{scroll-margin-top:100px}
.tip{position:absolute;pointer-events:none;z-index:2;background:var(--paper);color:var(--ink);
  border:1px solid var(--grid);border-radius:8px;box-shadow:0 4px 18px rgb(0 0 0/.16);padding:8px 12px;
  font-size:13px;line-height:1.5;white-space:nowrap;display:none}
.tip b{display:block}.tip i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px}
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
@media(max-width:640px){main,header,footer{padding-left:16px;padding-right:16px}
  .grid,.pair{grid-template-columns:1fr}tbody th{min-width:130px}
  section,details[id]{scroll-margin-top:8px}.filters{position:static}
  h1,h2,h3,p,figcaption{overflow-wrap:anywhere}
h1{font-size:27px}h2{font-size:22px}dl.settings{grid-template-columns:1fr;gap:0}dl.settings dd{margin-bottom:6px}
  figure.wide{overflow-x:auto}figure.wide svg.chart{min-width:760px}}
@media print{.legend button{border:0;padding:0 12px 0 0}figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
  nav,.js .filters .control{display:none}.filters{position:static}.scroll{overflow:visible}body{font-size:12px}
  table,tbody th{font-size:11px}th,td{padding:4px 8px 4px 0}
  tbody th,thead th{min-width:0;padding-left:0;text-indent:0}.scroll.wide tbody th{position:static}
  .grid,.pair{grid-template-columns:1fr 1fr}figcaption span{font-size:11px}main,header,footer{max-width:none;padding:0}}
"""
)
