"""The style sheet of the results page."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5d6670; --rule: #dfe3e7;
  --ground: #ffffff; --tint: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e8; --soft: #98a2ad; --rule: #343a41;
  --ground: #16191d; --tint: #1f2328; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; margin: 2rem 0 .25rem; overflow-wrap: anywhere; }
p, .notes { color: var(--soft); font-size: .875rem; }
.notes { padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
th { font-weight: 500; }
thead th { color: var(--soft); border-bottom: 1px solid var(--soft); }
.figures th + th, .figures td { text-align: right; white-space: nowrap; padding: .35rem 0
  .35rem 1.4rem; }
figure { margin: 0; }
.plot { margin: 1.5rem 0; }
.plot img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
.charts svg { width: 100%; height: auto; display: block; color: var(--soft); }
.key { width: 24px; height: 8px; vertical-align: middle; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0 0 .25rem;
  padding: 0; color: var(--soft); font-size: .8rem; }
details { font-size: .875rem; margin-top: .25rem; }
summary { color: var(--soft); cursor: pointer; }
pre { background: var(--tint); padding: .75rem 1rem; border-radius: 4px; overflow-x: auto; }
code { user-select: all; font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
"""
