"""Style of the report, added to that of the linked-text page, whose colours, cards and script it shares."""

from __future__ import annotations

STYLE = """
.page { max-width: 68rem; }
h2.part { font-size: 1.0625rem; margin: 2.25rem 0 .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .75rem; margin: 0;
  padding: 0; list-style: none; }
.tiles li { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .8125rem; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .75rem; }
.charts.two { grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); align-items: start; }
.charts section, section.plain { margin: 0; padding: 1rem 1.2rem; min-width: 0; }
section h3 { font-size: .9375rem; margin: 0; }
section > .about { color: var(--soft); font-size: .8125rem; margin: .1rem 0 .6rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; text-anchor: middle; font-variant-numeric: tabular-nums; }
svg text.tick { text-anchor: end; }
svg line { stroke: var(--line); }
svg .column { fill: hsl(212 60% var(--edge)); }
svg .band { fill: transparent; }
svg g:hover .band { fill: var(--line); opacity: .6; }
.scroll { overflow-x: auto; }
section.plain table { font-size: .875rem; }
section.plain th, section.plain td { padding: .3rem .75rem .3rem 0; overflow-wrap: anywhere; }
section.plain thead th { color: var(--soft); font-size: .75rem; }
section.plain tbody tr + tr > * { border-top: 1px solid var(--line); }
section.plain tr > .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
section.plain td.soft, td.soft { color: var(--soft); }
section.plain td.code { white-space: nowrap; }
section.plain td.bar { width: 9rem; padding-right: .75rem; }
section.plain td.bar i { background: hsl(212 60% var(--edge)); }
.example { margin: 0 0 .75rem; }
.example h3 { margin-bottom: .4rem; }
.example .text { font-size: 1rem; unicode-bidi: isolate; }
.card { border-top-width: 3px; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .3rem 1.25rem; margin: 0;
  font-size: .875rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
dd code { font-size: .8125rem; }
footer { margin-top: 2rem; }
@media (max-width: 40rem) { section.plain td.bar, section.plain th.bar { display: none; } dl { display: block; }
  dd { margin: 0 0 .4rem; } }
@media print { .tiles li, .charts section { break-inside: avoid; } }
"""
