"""Tables, ratios against the targets, and the plot of `bench_knn_entity_attention`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.knn_peers import BOTH, ENTITIES, FORWARD, OURS, PEERS, SIZE, K


@dataclass
class Measured:
    """One peer on one input."""

    seconds: list[float] = field(default_factory=list)
    memory_mib: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Case = dict[str, dict[str, Measured]]
"""Part of the work -> peer -> what was measured."""


CPU_TARGETS = {
    ("cpu", FORWARD): {"naive": 5.0, "matmul": 0.45, "faiss": 8.0, "memory": 0.003},
    ("cpu", BOTH): {"naive": 3.5, "matmul": 0.8},
    ("tiled", FORWARD): {"naive": 1.8, "memory": 0.06},
    ("tiled", BOTH): {"naive": 1.5},
}
"""At M = 400 and 3,200: x a peer's speed (of matmul: x its time), share of naive's memory."""
_PEERS_ON_GPUS = {"naive": 4.0, "torch.compile": 2.0, "Liger + topk": 2.0, "CCE + topk": 2.0, "floor": 2.2}
GPU_TARGETS = {("triton", FORWARD): _PEERS_ON_GPUS | {"memory": 0.05}, ("triton", BOTH): _PEERS_ON_GPUS}
FLOOR_SECONDS = {(3200, FORWARD): 1.2e-3, (3200, BOTH): 2.1e-3}
"""Of an H200 in half precision, counted: matrix products at 790 TFLOP/s (2 and 4 passes over the table), and the
selection of the nearest, 0.3 ms."""


def write_report(cases: dict[str, Case], machine: dict[str, str], to: Path) -> str:
    """Write TO.md and TO.png; returns the text."""
    lines = ["# The entity-attention operator", "", *(f"- {name}: {said}" for name, said in machine.items())]
    targets = CPU_TARGETS if machine["device"].endswith("GB") else GPU_TARGETS
    lines += ["", "## Against the targets", "", *_against_targets(cases, targets)]
    lines += ["", "## Peers", ""]
    lines += [
        f"- {peer}: {said}."
        for peer, said in PEERS.items()
        if any(peer in case[BOTH] | case[FORWARD] for case in cases.values())
    ]
    for work in (FORWARD, BOTH):
        lines += ["", f"## {work.capitalize()}: E = {ENTITIES:,}, d = {SIZE}, k = {K}", "", *_table(cases, work)]
    gradient = ENTITIES * SIZE * 4 / 2**20
    lines += [
        "",
        "Median of the rounds. Errors are against naive, as a share of the largest value. Memory is the peak above "
        "what was held before; forward + backward includes the table's gradient "
        f"({gradient:.0f} MiB in fp32), except for matmul, which frees each product.",
    ]
    text = "\n".join(lines) + "\n"
    to.with_suffix(".md").write_text(text, encoding="utf-8")
    _plot(cases, to.with_suffix(".png"))
    return text


def _against_targets(cases: dict[str, Case], targets: dict[tuple[str, str], dict[str, float]]) -> list[str]:
    lines = ["| M | backend | work | measure | target | measured | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for mentions in (400, 3200):
        case = cases.get(f"{mentions}, usual")
        for (backend, work), bounds in targets.items() if case else ():
            for what, bound in bounds.items():
                if what == "floor" and (mentions, work) in FLOOR_SECONDS:
                    value = case[work][backend].median / FLOOR_SECONDS[mentions, work]
                    cells = "x the floor's time", f"<= {bound}", f"{value:.2f}", "met" if value <= bound else "missed"
                elif what in case[work] or what == "memory":
                    cells = _against(case[work], backend, what, bound)
                else:
                    continue
                lines.append(f"| {mentions} | {backend} | {work} | {' | '.join(cells)} |")
    return lines


def _against(peers: dict[str, Measured], backend: str, what: str, bound: float) -> tuple[str, str, str, str]:
    """Measure, target, value, and whether the target is met."""
    got = peers[backend]
    if what == "memory":
        value = got.memory_mib / peers["naive"].memory_mib
        return "share of naive's memory", f"<= {bound:.1%}", f"{value:.2%}", "met" if value <= bound else "missed"
    if what == "matmul":
        value = got.median / peers["matmul"].median
        return "x matmul's time", f"<= {bound}", f"{value:.2f}", "met" if value <= bound else "missed"
    value = peers[what].median / got.median
    return f"x {what}'s speed", f">= {bound}", f"{value:.2f}", "met" if value >= bound else "missed"


def _table(cases: dict[str, Case], work: str) -> list[str]:
    lines = [
        "| M, scores | peer | seconds (lowest - highest) | x naive's speed | x matmul's time | x faiss's speed "
        "| extra memory, MiB | share of naive's | largest error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, found in cases.items():
        measured = found[work]
        for peer, got in measured.items():
            faiss = f"{measured['faiss'].median / got.median:.1f}" if "faiss" in measured and peer in OURS else ""
            cells = [
                case,
                peer,
                f"{got.median:.4g} ({min(got.seconds):.4g} - {max(got.seconds):.4g})",
                f"{measured['naive'].median / got.median:.2f}",
                f"{got.median / measured['matmul'].median:.2f}",
                faiss,
                f"{got.memory_mib:,.1f}",
                f"{got.memory_mib / measured['naive'].memory_mib:.2%}",
                f"{max(got.errors.values()):.0e}" if got.errors else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _plot(cases: dict[str, Case], to: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {peer: f"C{number}" for number, peer in enumerate(PEERS)}
    usual = dict(sorted((int(case.split(",")[0]), found) for case, found in cases.items() if case.endswith("usual")))
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for column, work in enumerate((FORWARD, BOTH)):
        for peer in next(iter(usual.values()))[work]:
            style = {"marker": "o", "label": peer, "color": colours[peer], "linewidth": 2.5 if peer in OURS else 1.2}
            seconds = [found[work][peer].median for found in usual.values()]
            memory = [max(found[work][peer].memory_mib, 0.1) for found in usual.values()]
            axes[0][column].loglog(list(usual), seconds, **style)
            axes[1][column].loglog(list(usual), memory, **style)
        axes[0][column].set(title=work, ylabel="seconds")
        axes[1][column].set(xlabel="mentions", ylabel="extra memory, MiB", xticks=list(usual))
        axes[1][column].set_xticklabels([str(mentions) for mentions in usual])
        axes[1][column].minorticks_off()
        axes[0][column].legend(fontsize="small")
    figure.savefig(to, dpi=110, metadata={"Software": None})
