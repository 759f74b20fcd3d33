"""Style and script of the page that `kebiolm link --html` writes; inside the page, so that one file is all there is."""

from __future__ import annotations

# Each semantic type has a hue (--h). Lightness is set once for light and once for dark, so all have the same contrast.
STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --paper: #fff; --ink: #1d232b; --soft: #5b6572; --line: #dfe3e8;
  --fill: 90%; --fill-strong: 82%; --edge: 40%; --sat: 75%; --shadow: 0 8px 28px rgb(20 30 45 / .18); }
@media (prefers-color-scheme: dark) { :root { --bg: #14171c; --paper: #1c2027; --ink: #e8ebef; --soft: #9aa5b1;
  --line: #323943; --fill: 24%; --fill-strong: 32%; --edge: 66%; --sat: 50%; --shadow: 0 8px 28px rgb(0 0 0 / .6); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.page { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
.summary { color: var(--soft); margin: .25rem 0 1.25rem; }
.legend { display: flex; flex-wrap: wrap; gap: .375rem .5rem; list-style: none; margin: 0 0 1.5rem; padding: 0; }
.legend li { display: inline-flex; align-items: center; gap: .45rem; font-size: .8125rem; color: var(--soft);
  background: var(--paper); border: 1px solid var(--line); border-radius: 99px; padding: .15rem .7rem; }
.legend i { width: .7rem; height: .7rem; border-radius: 3px; background: hsl(var(--h) var(--sat) var(--fill));
  border: 1.5px solid hsl(var(--h) 60% var(--edge)); }
.legend b { font-weight: 600; color: var(--ink); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 1.4rem 1.6rem;
  margin: 0 0 1.25rem; }
.text { margin: 0; font-size: 1.125rem; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.none { color: var(--soft); font-size: .875rem; margin: .5rem 0 0; }
.mention { border-radius: 4px; padding: .1em .25em; margin: 0 -.05em; cursor: pointer;
  background: hsl(var(--h) var(--sat) var(--fill)); border-bottom: 2px solid hsl(var(--h) 60% var(--edge));
  -webkit-box-decoration-break: clone; box-decoration-break: clone; transition: background .12s; }
.mention:hover, .mention[aria-expanded="true"] { background: hsl(var(--h) var(--sat) var(--fill-strong)); }
.mention:focus-visible { outline: 2px solid hsl(var(--h) 60% var(--edge)); outline-offset: 2px; }
.cards { display: grid; gap: .75rem; margin-top: 1.25rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-top: 3px solid hsl(var(--h) 60% var(--edge));
  border-radius: 10px; padding: .9rem 1.1rem 1rem; font-size: .875rem; max-width: 27rem; }
.js .cards { display: block; margin: 0; }
.js .card { position: absolute; z-index: 2; display: none; width: min(27rem, calc(100vw - 1.5rem));
  box-shadow: var(--shadow); }
.js .card.open { display: block; }
.card h2 { font-size: 1rem; line-height: 1.3; margin: 0; }
.card .about { color: var(--soft); margin: .15rem 0 .75rem; }
code { font: .8125em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
table { width: 100%; border-collapse: collapse; }
caption { text-align: left; color: var(--soft); font-size: .75rem; padding-bottom: .25rem; }
th, td { text-align: left; font-weight: 400; padding: .22rem 0; vertical-align: baseline; }
th { padding-right: .75rem; }
th code { color: var(--soft); white-space: nowrap; }
tr.best th { font-weight: 600; }
tr.rest th { color: var(--soft); }
td.bar { width: 7rem; }
td.bar span { display: block; height: .5rem; border-radius: 3px; background: var(--line); overflow: hidden; }
td.bar i { display: block; height: 100%; background: hsl(var(--h) 60% var(--edge)); }
tr.rest td.bar i { background: var(--soft); }
td.weight { width: 3.25rem; text-align: right; font-variant-numeric: tabular-nums; }
footer { color: var(--soft); font-size: .8125rem; }
@media print { .js .card { display: none; } section { break-inside: avoid; border: 0; padding: 0; } }
"""

# A card opens on hover, and stays after a click, Enter or Space until Escape or a click elsewhere. Without the script
# all cards are listed below their text.
SCRIPT = """
document.documentElement.classList.add("js");
let open = null, pinned = false, timer = 0;
const cardOf = mention => document.getElementById(mention.getAttribute("aria-controls"));
function hide() {
  clearTimeout(timer);
  if (open) { cardOf(open).classList.remove("open"); open.setAttribute("aria-expanded", "false"); }
  open = null; pinned = false;
}
function place() {
  if (!open) return;
  const card = cardOf(open), box = open.getClientRects()[0];
  const width = document.documentElement.clientWidth, height = document.documentElement.clientHeight;
  const below = box.bottom + 8, above = box.top - card.offsetHeight - 8;
  const top = below + card.offsetHeight > height && above > 0 ? above : below;
  card.style.left = Math.max(12, Math.min(box.left, width - card.offsetWidth - 12)) + scrollX + "px";
  card.style.top = top + scrollY + "px";
}
function show(mention, pin) {
  clearTimeout(timer);
  if (open !== mention) {
    hide();
    open = mention;
    mention.setAttribute("aria-expanded", "true");
    cardOf(mention).classList.add("open");
    place();
  }
  pinned = pinned || pin;
}
const leave = () => { clearTimeout(timer); if (!pinned) timer = setTimeout(hide, 180); };
for (const mention of document.querySelectorAll(".mention")) {
  const card = cardOf(mention);
  document.body.append(card);
  mention.addEventListener("mouseenter", () => { if (!pinned) show(mention, false); });
  mention.addEventListener("mouseleave", leave);
  mention.addEventListener("focus", () => { if (!pinned && mention.matches(":focus-visible")) show(mention, false); });
  mention.addEventListener("blur", leave);
  mention.addEventListener("click", event => {
    event.stopPropagation();
    if (open === mention && pinned) hide(); else { hide(); show(mention, true); }
  });
  mention.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); mention.click(); }
  });
  card.addEventListener("mouseenter", () => clearTimeout(timer));
  card.addEventListener("mouseleave", leave);
  card.addEventListener("click", event => event.stopPropagation());
}
document.addEventListener("click", hide);
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
addEventListener("resize", place);
const wanted = document.getElementById(location.hash.slice(1));
if (wanted && wanted.classList.contains("mention")) show(wanted, true);
"""
