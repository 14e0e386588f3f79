"""The look of the report: one style sheet, no script, nothing fetched from elsewhere."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f8; --ink: #1b1f24; --muted: #656d76; --line: #e2e5e9;
  --real: #0072b2; --ours: #e69f00; --other: #b9c0c8; --bad: #b54a00; --good: #00704f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171b20; --raised: #1f242b; --ink: #e6e9ec; --muted: #98a2ad; --line: #2d333b;
    --real: #56b4e9; --ours: #e69f00; --other: #59636e; --bad: #f08a4b; --good: #35c496;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
main { max-width: 70rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
header { margin-bottom: 2.5rem; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em;
  margin: .3rem 0 .6rem; font-weight: 680; }
h2 { font-size: 1.4rem; line-height: 1.25; letter-spacing: -.01em; margin: 4rem 0 .4rem;
  font-weight: 650; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; font-weight: 620; }
p { margin: .4rem 0 1rem; max-width: 46rem; }
nav { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0 0 1.6rem; }
nav a { color: var(--ink); background: var(--raised); border-radius: 99px; text-decoration: none;
  padding: .3rem .85rem; font-size: .85rem; }
nav a:hover, nav a:focus { outline: 2px solid var(--real); }
.eyebrow { color: var(--muted); font-size: .82rem; letter-spacing: .06em;
  text-transform: uppercase; margin: 0; }
.lead { font-size: 1.08rem; color: var(--muted); }
.muted, figcaption { color: var(--muted); font-size: .9rem; }
.verdict { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.card { background: var(--raised); border-radius: 14px; padding: 1.2rem 1.35rem; }
.card h3 { margin: 0 0 .4rem; }
.card p { margin: 0; }
.note { border-left: 3px solid var(--ours); padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.tiles { display: grid; gap: .9rem 1.2rem; margin: .9rem 0 1.1rem;
  grid-template-columns: repeat(auto-fit, minmax(6.6rem, 1fr)); }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; font-weight: 640;
  letter-spacing: -.02em; }
.tile span { color: var(--muted); font-size: .82rem; line-height: 1.35; display: block; }
.card .says { font-size: .95rem; margin: .45rem 0 0; }
.panels { display: grid; gap: 1.75rem 2.25rem; margin-top: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.panels h3 { margin: 0 0 .55rem; }
.bars { display: grid; grid-template-columns: minmax(6.5rem, 11.5rem) 1fr 3rem;
  gap: .34rem .7rem; align-items: center; font-size: .88rem; line-height: 1.25; }
.bars .name { color: var(--muted); }
.bars .value { text-align: right; }
.bars .ours { color: var(--ink); font-weight: 640; }
.track { height: .72rem; border-radius: 3px; background: var(--raised); overflow: hidden; }
.track i { display: block; height: 100%; background: var(--other); border-radius: 3px; }
.track i.generated { background: var(--ours); }
.track i.floor { background: var(--real); }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: 10px; }
figcaption { margin-top: .35rem; }
.figures { display: grid; gap: 2rem; margin-top: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.figures.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.figures figure { max-width: 34rem; }
.scroll { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.35; width: 100%; }
th, td { text-align: right; padding: .42rem .7rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.ours { font-weight: 640; }
td.text { text-align: left; }
tr.section td { color: var(--muted); padding-top: 1.2rem; font-weight: 600; }
.worse { color: var(--bad); font-weight: 640; }
.better { color: var(--good); font-weight: 640; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.4rem;
  font-size: .92rem; margin: .8rem 0; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.figures + .figures { margin-top: 2rem; }
.figures + details, .panels + details { margin-top: 1.5rem; }
details { border-top: 1px solid var(--line); padding: .7rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; background: var(--raised);
  padding: 1rem; border-radius: 10px; }
ul { padding-left: 1.15rem; max-width: 46rem; }
li { margin: .25rem 0; }
@media (max-width: 34rem) {
  nav { flex-wrap: nowrap; overflow-x: auto; margin: 0 -1.25rem 1.6rem; padding: 3px 1.25rem; }
  nav a { white-space: nowrap; }
  main { padding-top: 1.75rem; }
  h2 { margin-top: 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .55rem; }
}
@media print { h2, figure, .bars { break-inside: avoid; } }
"""
