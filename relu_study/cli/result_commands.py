"""The commands that read a results folder: figure, table, compare and view. None of them imports JAX."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from relu_study.cli.arguments import Folder, existing_folder
from relu_study.errors import UserError

Names = tuple[str, ...]
Where = Annotated[Names, arg(metavar="CONDITION ...", help_behavior_hint="")]
Factors = Annotated[Names, arg(metavar="FACTOR ...")]
SiteName = Annotated[str, arg(metavar="SITE")]
Baseline = Annotated[str | None, arg(metavar="LABEL", help_behavior_hint="(default: none)")]


def draw_figure(
    folder: Folder,
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    kind: Annotated[str | None, arg(metavar="KIND", help_behavior_hint="")] = None,
    metrics: Annotated[Names, arg(metavar="METRIC ...", aliases=("--metric",), help_behavior_hint="")] = (),
    experiments: Annotated[Names, arg(metavar="NAME ...", help_behavior_hint="")] = (),
    arms: Annotated[Names, arg(metavar="ARM ...", help_behavior_hint="")] = (),
    rows: Annotated[str | None, arg(metavar="FACTOR", help_behavior_hint="")] = None,
    cols: Annotated[str | None, arg(metavar="FACTOR", help_behavior_hint="")] = None,
    epoch: Annotated[Names, arg(metavar="EPOCH ...", help_behavior_hint="")] = (),
    claims: Annotated[Names, arg(metavar="CLAIM ...", help_behavior_hint="")] = (),
    log: bool = False,
    where: Where = (),
    out: Annotated[Names, arg(metavar="FILE ...", help_behavior_hint="(default: KIND.png in the current folder)")] = (),
) -> None:
    """Draw a declared figure of a study, or a new one.

    Args:
        name: A figure that the study declares.
        kind: The kind of a new figure: curves, survival, forest, depth, histograms or map.
        metrics: "metric", "metric/site", or "metric/*" for each site; for histograms: pre, post or gradient.
        experiments: Only these experiments.
        arms: Only these arms, in this order.
        rows: Map only: the factor on the vertical axis (a RunSpec field, an option, "arm" or "experiment").
        cols: Map only: the factor on the horizontal axis.
        epoch: Map and depth only: "last" or a number; depth takes several.
        claims: Forest only: only these claims.
        log: Use a logarithmic axis where possible.
        where: Conditions, all required: activation=relu,selu "learning_rate>=0.01" "dead_fraction/site_1<0.5" seed=0,1.
        out: Output files; the suffix .png, .svg or .pdf sets the format.
    """
    from relu_study.report.figures.on_demand import figure

    paths = figure(
        existing_folder(folder),
        kind,
        name=name,
        metrics=metrics,
        experiments=experiments,
        arms=arms,
        rows=rows,
        cols=cols,
        epoch=epoch,
        claims=claims,
        log=log,
        where=where,
        out=out,
    )
    print("\n".join(map(str, paths)))


def make_table(
    folder: Folder,
    rows: Annotated[Names, arg(metavar="FACTOR ...", help_behavior_hint="(default: arm; site)")] = (),
    cols: Annotated[Names, arg(metavar="FACTOR ...", help_behavior_hint="")] = (),
    metric: Annotated[Names, arg(metavar="METRIC ...", aliases=("--metrics",), help_behavior_hint="(default: val_loss)")] = (),
    site: SiteName = "all",
    epoch: Annotated[str, arg(metavar="EPOCH")] = "last",
    baseline: Baseline = None,
    where: Where = (),
    format: Annotated[str, arg(metavar="FORMAT")] = "markdown",
) -> None:
    """Print a table of a results folder: factors as rows and columns, metrics as cells.

    The factors of a monitored training are site, step and member. Its epochs are steps.

    Args:
        rows: Factors of the rows: RunSpec fields, options, "arm" or "experiment".
        cols: Factors of the columns.
        metric: One or more metrics of the study.
        site: "all", or one site of the networks, for example site_1.
        epoch: "last", or a number (requires raw/).
        baseline: Label of the row to compare the others with.
        where: Conditions, all required: activation=relu,selu "learning_rate<=0.01" "dead_fraction<0.5" "seed<16".
        format: markdown, latex (booktabs) or csv.
    """
    from relu_study.report.tables.pivot_table import table

    text = table(existing_folder(folder), rows or None, cols, metric or None, site, epoch, baseline, where, format)
    print(text, end="")


def make_comparison(
    folder: Folder,
    by: Factors = ("arm",),
    metric: Annotated[str, arg(metavar="METRIC")] = "val_loss",
    site: SiteName = "all",
    epoch: Annotated[str, arg(metavar="EPOCH")] = "last",
    baseline: Baseline = None,
    where: Where = (),
) -> None:
    """Print comparisons between the configurations of a results folder as CSV, paired by seed.

    Args:
        by: Factors that define the groups: RunSpec fields, options, "arm" or "experiment".
        metric: A metric of the study.
        site: "all", or one site of the networks, for example site_1.
        epoch: "last", or a number (requires raw/).
        baseline: Label to compare all others with (Holm correction). Without it: every pair (Benjamini-Hochberg).
        where: Conditions as for `relu-study table`.
    """
    from relu_study.report.tables.pivot_table import compare
    from relu_study.storage.csv_files import csv_text

    print(csv_text(compare(existing_folder(folder), by, metric, site, epoch, baseline, where)), end="")


def view(
    folder: Folder,
    port: Annotated[int, arg(metavar="N")] = 6006,
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1",
    path_prefix: Annotated[str, arg(metavar="PATH", help_behavior_hint="(default: none)")] = "",
    options: Annotated[Positional[tuple[str, ...]], arg(metavar="-- OPTION", help_behavior_hint="")] = (),
) -> int:
    """Start TensorBoard on a results folder and print its address.

    Args:
        port: Port of the server; 0 picks a free port.
        host: Address of the server. The default accepts connections only from this machine.
        path_prefix: URL path of the server, for example /tb behind a proxy.
        options: TensorBoard options, after --, for example -- --reload_interval 5.
    """
    from relu_study.report.tensorboard.server import show
    from relu_study.storage.manifest import is_monitored, read_manifest

    logs = existing_folder(folder) / "tensorboard"
    declaration = None if is_monitored(logs.parent) else read_manifest(logs.parent)["declaration"]
    if not logs.is_dir():
        if "cells" in (declaration or {}):
            raise UserError(f"{folder} holds a draw study, which has no TensorBoard runs. Open {folder}/report.html instead.")
        raise UserError(f"{logs} is missing. Create it with 'relu-study report {folder}' (requires raw/), or run the study.")
    return show(logs, host, port, path_prefix, options)
