"""How fast the same networks train elsewhere, side by side with relu_study: `python benchmarks/speed/peers.py`.

Steps a second, summed over all networks on all cores, of nets A, B and C at batch sizes 32, 128 and 512: 140,000 rows, squared
error, he_normal, Adam 1e-3, float32, on the CPU. Each competitor has the machine to itself while it is measured:

- keras: `fit` on one network a process, a process a core; histograms of outputs and gradients are written after every epoch;
- keras, tuned: the same with 128 steps to an execution;
- torch eager: one network a process, a process a core, the fastest of PyTorch's implementations of Adam; nothing is watched;
- torch.func.vmap: at its best width, a process a core or one with a thread a core, whichever is faster; nothing is watched;
- jit(vmap) as written: 128 networks in one vmap in one process, with JAX's defaults, each with a seed and so an order of its
  own; nothing is watched;
- jit(vmap) best: at its best width, a process a core, one order for all networks of a process; nothing is watched;
- relu_study: one process, a device a core, each run with rows and order of its own; everything there is to watch, every epoch.

A competitor's processes are started once, sleep while others are measured, and begin each piece together. Their rates are
added, as if each always had more to do; ours ends with the slowest device. Keras and relu_study are measured over whole epochs,
their watching in them. The others train a piece and shuffle once, and the shuffle counts for as many epochs as the piece is
long; where several networks are trained in a process they share their rows, and their order unless it says otherwise, which is
less work than ours. Which way is
a competitor's best is tried on the same job just before, with all its processes at work.

Peers come with `pip install -e ".[peers]"`; one that cannot be started is skipped and named. Writes results/speed/peers.csv and
.md, and a picture; with a part of the nets or batches, the table's other rows stay as they were, each with its date, engine and
command. With a part of the competitors, or --no-memory, it only prints, unless --out names a folder.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import peer
import timing
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peer_team import ALL, EACH, Competitor, Missing, Team

from relu_study.engine.cohorts import ENGINE
from relu_study.report.figures.canvas import COLOURS, DPI, FAINT, WIDTH, render

OURS = "relu_study"
COMPETITORS = (
    Competitor("keras", "peer_keras.py", "histograms"),
    Competitor("keras, tuned", "peer_keras.py", "histograms", choices=({"steps_per_execution": 128},)),
    Competitor("torch eager", "peer_torch.py", "nothing", choices=("fused", "foreach", "for-loop"), argument="eager"),
    Competitor("torch.func.vmap", "peer_torch.py", "nothing", (EACH, ALL), (16, 32, 64, 128, 256, 512, 1024), "vmap"),
    Competitor("jit(vmap) as written", "peer_jax.py", "nothing", (ALL,), (128,), "own"),
    Competitor("jit(vmap) best", "peer_jax.py", "nothing", (EACH,), (2, 8, 32, 128, 512), "shared"),
    Competitor(OURS, "peer_ours.py", "everything", (ALL,)),
)
NETS = {name[0]: name for name in timing.NETS}
BATCHES = (32, 128, 512)
QUICK_ROWS = 14_000
NUMBERS = ("batch", "steps_per_s", "least", "most")  # what the picture shows


def start(competitors: Sequence[Competitor], stack: ExitStack) -> tuple[dict[str, Team], dict[str, str]]:
    """The competitors that can be started, and the versions of each, or why it cannot."""
    teams, versions = {c.name: Team(c, stack) for c in competitors}, {}
    for name in list(teams):
        try:
            versions[name] = teams[name].started()
        except Missing as reason:
            if name == OURS:
                raise
            versions[name] = f"skipped: {reason}"
            del teams[name]
            print(name, versions[name], flush=True)
    return teams, versions


def settle(teams: dict[str, Team], job: peer.Job, seconds: float, tries: int | None) -> None:
    """Make every team ready for a job; one that breaks down is out from here on, as its processes are in no known state."""
    for name in list(teams):
        try:
            teams[name].settle(job, seconds, tries)
        except Missing as reason:
            if name == OURS:
                raise
            del teams[name]
            print(f"{name} skipped from {job.net}, batch {job.batch} on: {reason}", flush=True)


def lines(job: peer.Job, teams: Mapping[str, Team], took: Mapping[str, list[float]], versions: Mapping[str, str]) -> list[dict]:
    """The rows of the table for one job."""
    table = []
    for name, rates in took.items():
        team = teams[name]
        ahead = [f"{r:.3g}" for r in timing.ratio(took[OURS], rates)] if OURS in took and name != OURS else [""] * 3
        rows = {
            "net": job.net,
            "batch": job.batch,
            "competitor": name,
            "watches": team.competitor.watches,
            "way": team.way,
            "width": team.width,
            "processes": len(team.processes),
            "steps": team.steps,
            "repeats": len(rates),
            "steps_per_s": round(statistics.median(rates)),
            "least": round(min(rates)),
            "most": round(max(rates)),
            **dict(zip(("ours_over_it", "ratio_least", "ratio_most"), ahead, strict=True)),
            "versions": versions[name],
            "engine": ENGINE,
            **timing.about(),
        }
        table.append(rows)
    return table


def kept(path: Path, table: list[dict]) -> list[dict]:
    """The new rows in a table that is there already, in place of those of the same nets and batch sizes."""
    new = {(row["net"], row["batch"]) for row in table}
    with path.open(newline="") if path.exists() else nullcontext([]) as file:
        old = [{**row, **{name: int(row[name]) for name in NUMBERS}} for row in csv.DictReader(file) if row["net"]]
    rows = [row for row in old if (row["net"], row["batch"]) not in new] + table
    return sorted(rows, key=lambda row: (row["net"], row["batch"]))


def skipped(versions: Mapping[str, str], columns: Sequence[str]) -> list[dict]:
    """A row for each competitor that could not be started."""
    out = [name for name, said in versions.items() if said.startswith("skipped")]
    return [{**dict.fromkeys(columns, ""), **timing.about(), "competitor": name, "versions": versions[name]} for name in out]


# ------------------------------------------------------------------------------------ the picture


def picture(table: Sequence[Mapping[str, Any]]) -> Figure:
    """Steps a second of each competitor, a panel a net, a block of lines a batch size, and how far ahead relu_study is."""
    nets, batches, names = (list(dict.fromkeys(row[key] for row in table)) for key in ("net", "batch", "competitor"))
    figure = Figure(figsize=(WIDTH, 0.165 * len(batches) * (len(names) + 1.2) + 0.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    places = {(b, n): i * (len(names) + 1.2) + j + 1.1 for i, b in enumerate(batches) for j, n in enumerate(names)}
    for panel, net in zip(panels, nets, strict=True):
        rows = [row for row in table if row["net"] == net]
        _panel(panel, rows, [places[row["batch"], row["competitor"]] for row in rows])
        panel.set_title(f"net {net}")
        for i, batch in enumerate(batches):
            panel.text(
                0, i * (len(names) + 1.2), f"batch {batch}", transform=panel.get_yaxis_transform(), va="center", color=FAINT
            )
    panels[0].set_yticks(list(places.values()), [name for _, name in places])
    panels[0].set_ylim(max(places.values()) + 0.7, -0.6)
    for label in panels[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")
    panels[len(nets) // 2].set_xlabel(
        "steps per second, all networks on all cores; beside it: relu_study, with everything watched, over it"
    )
    return figure


def _panel(panel: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    panel.set_xscale("log")
    slowest, fastest = min(row["least"] for row in rows), max(row["most"] for row in rows)
    left, right = slowest / 2, fastest * (fastest / slowest) ** 0.38  # room for the ratios
    for row, place in zip(rows, places, strict=True):
        shade = COLOURS[2] if row["competitor"] == OURS else COLOURS[1] if row["watches"] != "nothing" else COLOURS[0]
        panel.plot([left, row["steps_per_s"]], [place, place], color="#DDDDDD", linewidth=0.6, zorder=1)
        panel.plot([row["least"], row["most"]], [place, place], color=shade, linewidth=1.6, zorder=2, solid_capstyle="butt")
        panel.plot(row["steps_per_s"], place, "o", color=shade, markersize=4, zorder=3)
        if row["ours_over_it"]:
            panel.annotate(
                f"{float(row['ours_over_it']):.2g}x" if float(row["ours_over_it"]) < 10 else f"{float(row['ours_over_it']):.0f}x",
                (row["most"], place),
                (5, 0),
                textcoords="offset points",
                va="center",
            )
    ticks = [10**power for power in range(8) if left <= 10**power <= right]
    panel.set_xlim(left, right)
    panel.set_xticks(
        ticks, [f"{tick // 10**6} M" if tick >= 10**6 else f"{tick // 1000} k" if tick >= 1000 else str(tick) for tick in ticks]
    )
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)


# -------------------------------------------------------------------------------------- the door


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--only", nargs="+", choices=[c.name for c in COMPETITORS], default=[c.name for c in COMPETITORS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each piece, where it can be cut")
    parser.add_argument("--out", type=Path, help="folder of the table and the picture")
    parser.add_argument("--no-memory", action="store_true", help="tiny counts, to see that it runs")
    asked = parser.parse_args()
    if asked.quick:
        asked.repeats, asked.seconds = 1, 0.2
    if asked.out is None and len(asked.only) == len(COMPETITORS) and not asked.quick:
        asked.out = timing.RESULTS
    return asked


def main() -> None:
    asked, began, table = parsed(), time.perf_counter(), []
    with ExitStack() as stack:
        teams, versions = start([c for c in COMPETITORS if c.name in asked.only], stack)
        for net in asked.nets:
            layers = tuple(map(int, NETS[net].split()[1].split("-")))
            for batch in asked.batches:
                job = peer.Job(NETS[net], layers, batch, QUICK_ROWS if asked.quick else timing.ROWS)
                settle(teams, job, asked.seconds, 1 if asked.quick else None)
                took = timing.interleaved({name: team.measure for name, team in teams.items()}, asked.repeats)
                table += lines(job, teams, took, versions)
                for row in table[-len(took) :]:
                    print(*list(row.values())[:13], sep="  ", flush=True)
                print(f"{time.perf_counter() - began:.0f} s", flush=True)
        for name, team in teams.items():
            if team.spinning > 0.02:
                print(f"{name} used {team.spinning:.0%} of a core while others were measured", flush=True)
    if asked.out:
        table = kept(asked.out / "peers.csv", table)
        timing.write("peers", table + skipped(versions, list(table[0])), asked.out)
        for kind, image in render(lambda: picture(table)).items():
            (asked.out / f"peers.{kind}").write_bytes(image)


if __name__ == "__main__":
    main()
