"""Style of the run's page, added to that of the linked-text page, whose colours, cards and script it shares."""

from __future__ import annotations

STYLE = """
:root { --right: 145; --concept: 35; --span: 0; --found: 265; }
.page { max-width: 72rem; }
h2.part { font-size: 1.0625rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .9375rem; margin: 0; }
section { margin: 0 0 .75rem; padding: 1rem 1.2rem; min-width: 0; }
section > .about { color: var(--soft); font-size: .8125rem; margin: .1rem 0 .6rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(11rem, 100%), 1fr)); gap: .75rem;
  margin: 0; padding: 0; list-style: none; }
.tiles li { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .8125rem; display: block; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .75rem; }
.columns > section { margin: 0; }
.curves { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; margin: 0 0 .5rem; padding: 0;
  font-size: .8125rem; color: var(--soft); }
.curves li { display: inline-flex; align-items: center; gap: .4rem; }
.curves i { width: 1.25rem; height: 0; border-top: 2.5px solid var(--c); }
.curves .dotted i { border-top-style: dashed; }
.c0 { --c: hsl(0 0% var(--edge)); } .c1 { --c: hsl(212 70% var(--edge)); } .c2 { --c: hsl(30 80% var(--edge)); }
.c3 { --c: hsl(145 55% var(--edge)); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; text-anchor: middle; font-variant-numeric: tabular-nums; }
svg text.tick { text-anchor: end; }
svg line { stroke: var(--line); }
svg .curve { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .curve.dotted { stroke-dasharray: 5 4; stroke-width: 1.5; }
svg circle { fill: var(--c); }
svg .band { fill: transparent; }
svg g:hover .band { fill: var(--line); opacity: .6; }
.scroll { overflow-x: auto; }
.plain table { font-size: .875rem; }
.plain th, .plain td { padding: .3rem .75rem .3rem 0; overflow-wrap: anywhere; }
.plain thead th { color: var(--soft); font-size: .75rem; }
.plain tbody tr + tr > * { border-top: 1px solid var(--line); }
.plain tr > .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.plain td.bar { width: 11rem; }
.plain td.bar i { background: hsl(212 60% var(--edge)); }
table.confusion { width: auto; }
table.confusion td, table.confusion th { padding: .55rem 1rem; text-align: center; border: 1px solid var(--line); }
table.confusion td { background: hsl(212 70% 50% / var(--share)); font-variant-numeric: tabular-nums;
  min-width: 7rem; }
table.confusion small { display: block; color: var(--soft); }
.verdicts { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; padding: 0; margin: 0 0 1rem;
  font-size: .875rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.sides h4 { font-size: .75rem; font-weight: 600; color: var(--soft); margin: .5rem 0 .25rem; text-transform: uppercase;
  letter-spacing: .04em; }
.sides .text { font-size: .9375rem; line-height: 1.9; unicode-bidi: isolate; }
.mention.right { --h: var(--right); } .mention.concept { --h: var(--concept); }
.mention.span { --h: var(--span); border-bottom-style: dashed; }
.mention.extra { --h: var(--found); border-bottom-style: dashed; }
.card.right { --h: var(--right); } .card.concept { --h: var(--concept); } .card.span { --h: var(--span); }
.card.extra { --h: var(--found); }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .3rem 1.25rem; margin: 0;
  font-size: .8125rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
footer { margin-top: 2rem; }
@media (max-width: 48rem) { .sides { grid-template-columns: 1fr; gap: .5rem; } dl { display: block; } }
"""
