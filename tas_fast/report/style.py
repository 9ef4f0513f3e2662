"""The style sheet of the page: from a telephone to a desk, light and dark, on screen and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --page: #f4f6f8; --surface: #ffffff; --ink: #1b1f24; --muted: #59636e; --line: #d8dee4;
  --unpruned: #b4bcc6;
  --blue: #0072b2; --orange: #b87400; --green: #00805d; --purple: #a3477f; --sky: #3a9bd9;
  --good: #00694c; --good-back: #dff3ec; --bad: #8f3a00; --bad-back: #fdebdd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1317; --surface: #171c21; --ink: #e8edf2; --muted: #9aa6b2; --line: #2b333b; --unpruned: #4d5865;
    --blue: #4db1ee; --orange: #f0a93b; --green: #3ecf9f; --purple: #dc8fbd; --sky: #9bd4f7;
    --good: #6fdcb5; --good-back: #12332a; --bad: #ffb37a; --bad-back: #3d2412;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 1100px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
.eyebrow { margin: 0 0 .5rem; color: var(--muted); font-size: .875rem; letter-spacing: .02em; }
h1 { margin: 0 0 1.75rem; max-width: 34em; font-size: clamp(1.3rem, 2.6vw, 1.9rem); line-height: 1.28; font-weight: 650;
  letter-spacing: -.01em; text-wrap: pretty; overflow-wrap: anywhere; }
h2 { margin: 2.75rem 0 .9rem; font-size: 1.15rem; line-height: 1.3; }
p { margin: .6rem 0; max-width: 46em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.card, figure { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 1rem 1.15rem; }
.tile b { display: block; font-size: 1.85rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .9rem; }
.badge { display: inline-block; margin-top: .35rem;
  padding: .1rem .6rem; border-radius: 7px; font-size: .85rem;
  font-weight: 600; }
.tile .badge.good { color: var(--good); background: var(--good-back); }
.tile .badge.bad { color: var(--bad); background: var(--bad-back); }
.notes { margin: 1rem 0 0; padding: .8rem 1.15rem .8rem 2.2rem; border-radius: 10px; color: var(--bad);
  background: var(--bad-back);
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; font-size: .86rem; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody th { font-weight: 500; }
th.text { text-align: left; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
td.widths { min-width: 15rem; text-align: left; white-space: normal; color: var(--muted);
  font: .84rem/1.5 var(--mono); }
td.widths i { font-style: normal; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); grid-auto-flow: dense; gap: 1rem; }
figure { margin: 0; padding: .6rem .6rem .9rem; min-width: 0; display: flex; flex-direction: column; }
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: auto; padding: .4rem .6rem 0; color: var(--muted); font-size: .88rem; line-height: 1.45; }
pre { margin: .6rem 0; padding: .85rem 1.05rem; overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  background: var(--surface); font: .86rem/1.55 var(--mono); }
details { margin-top: .8rem; }
summary { padding: .2rem 0; cursor: pointer; font-weight: 600; }
footer { margin-top: 3rem; color: var(--muted); font-size: .86rem; }
@media (max-width: 720px) {
  main { padding: 1.4rem .9rem 3rem; }
  .plots { grid-template-columns: minmax(0, 1fr); }
  figure.wide svg { min-width: 680px; }
  .card { padding: .85rem .9rem; }
  table { font-size: .84rem; }
  th, td { padding: .4rem .4rem; }
  thead th, tbody th { white-space: normal; }
}
@media print {
  body { background: #fff; }
  figure, .card { break-inside: avoid; }
}
"""
