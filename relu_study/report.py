"""Everything a results folder derives from raw/ and its manifest: CSVs, verdicts, TensorBoard, tables, figures and one page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from relu_study import tables
from relu_study.events import write_events
from relu_study.figures import draw_tabulated
from relu_study.frames import at_epochs, csv_text, frames, read_csv, report_epochs, summary_frame, survival_frame
from relu_study.registry import UserError, nearest
from relu_study.store import Configuration, collect, read_manifest, write_atomically
from relu_study.typeset import markdown_grid, markdown_text
from relu_study.verdicts import COLUMNS, TEXTS, answer

SUFFIXES = {"tables": (".csv", ".md", ".tex"), "figures": (".png", ".svg")}
NEEDED = ("runs", "summary", "units", "survival", "verdicts")  # the CSVs that tables, figures and the page are made of


def check(declaration: dict[str, Any]) -> None:
    """Refuse a table or section that names what is not there. Nothing has to have run: this is for before it."""
    tables.check(declaration)
    names = {kind: [item["name"] for item in declaration[kind]] for kind in ("tables", "figures")}
    for kind, found in names.items():
        for name in found:
            if not re.fullmatch(r"[\w+=-][\w+=.-]*", name):
                raise UserError(f"{name!r} of {kind} cannot be the name of a file; use letters, digits and - _ + = .")
            if found.count(name) > 1:
                raise UserError(f"{kind}: {name!r} is declared twice; choose another name")
    asked = [(c["metric"], site, f"claim {c['claim']}") for c in declaration["claims"] for site in (c["site"], c["over"]) if site]
    asked += [
        (m.partition("/")[0], m.partition("/")[2] or "all", f"figure {f['name']}")
        for f in declaration["figures"]
        for m in f["metrics"]
    ]
    for metric, site, where in asked:
        if metric not in declaration["metrics"]:
            raise nearest(metric, declaration["metrics"], f"metric of {where}")
        if site != "last":
            tables.check_site(metric, site, declaration["columns"], f"in {where}")
    names["claims"] = [claim["claim"] for claim in declaration["claims"]]
    for item in (*declaration["sections"], *declaration["figures"]):
        for kind in names:
            for name in item.get(kind, ()):
                if name not in names[kind]:
                    raise nearest(name, names[kind], f"name among the {kind} of {item.get('title', item.get('name'))!r}")


def report(folder: str | Path, all_epochs: bool = False) -> list[str]:
    """Derive every file of a results folder from raw/ and manifest.json, the same bytes each time.

    Without raw/ (a clone) the tables, the page and the figures that the committed CSVs suffice for are made anew and the
    rest stays as it is. Files of tables and figures that are no longer made are removed. `all_epochs` puts
    every epoch into summary.csv. Returns what there is to say: lines on what was left, missing or removed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check(manifest["declaration"])
    raw, said = (folder / "raw").is_dir(), []
    if raw:
        whole = _derive(folder, manifest, all_epochs)
    else:
        said.append(f"{folder / 'raw'} is not here (a clone has none): the CSV files and tensorboard/ stay as they are")
    found = _read(folder, said)
    made = _write_tables(folder, manifest, found, said)
    figures = manifest["declaration"]["figures"] if raw else _drawable(folder, manifest, found, said)
    some = {**manifest, "declaration": {**manifest["declaration"], "figures": figures}}
    summary = whole if raw else found.get("summary", summary_frame({}, manifest))
    drawn = draw_tabulated(some, summary, found.get("survival", survival_frame({})), _rows(found), folder)
    declared = {kind: {item["name"] for item in manifest["declaration"][kind]} for kind in SUFFIXES}
    kept = {"tables": declared["tables"] if made is None else set(made)}
    kept["figures"] = {path.stem for path in drawn} if raw else declared["figures"]
    said += _drop_stale(folder, kept)
    if {"runs", "units", "verdicts"} <= set(found):
        write_atomically(folder / "report.md", page(folder, manifest, found["runs"], found["units"], _rows(found)).encode())
    else:
        said.append(f"{folder / 'report.md'} stays as it is: it needs runs.csv, units.csv and verdicts.csv")
    return said


# ------------------------------------------------------------------------------------------ files


def _derive(folder: Path, manifest: dict[str, Any], all_epochs: bool) -> pd.DataFrame:
    """Write the CSVs, verdicts.csv and tensorboard/ from raw/; the summary at every epoch."""
    configurations = collect(folder, manifest)
    found = frames(configurations, manifest, all_epochs=True)
    whole = found["summary"]
    if not all_epochs:
        found["summary"] = at_epochs(whole, report_epochs(manifest["declaration"]))
    arms, targets = _asked(manifest["declaration"], configurations)
    found["verdicts"] = pd.DataFrame(answer(manifest["declaration"]["claims"], arms, targets), columns=list(COLUMNS))
    for name, frame in found.items():
        write_atomically(folder / f"{name}.csv", csv_text(frame).encode())
    write_events(manifest, configurations, folder)
    return whole


def _asked(
    declaration: dict[str, Any], configurations: dict[str, Configuration]
) -> tuple[dict[tuple[str, str], Configuration], list[dict[str, Any]]]:
    """The stored runs by (arm, target), and the targets at this size.

    Without declared targets every arm keeps its own and there is one question for all: its target has the
    name that the arms share, or none.
    """
    present = dict.fromkeys(entry["spec"]["target"] for entry in declaration["configurations"])
    targets = [target for target in declaration["targets"] if target["name"] in present]
    shared = "" if len(present) > 1 else next(iter(present), "")
    arms = {
        (entry["arm"], entry["spec"]["target"] if targets else shared): configurations[entry["config_id"]]
        for entry in declaration["configurations"]
        if entry["config_id"] in configurations
    }
    return arms, targets or [{"name": shared, "variance": 1.0, "floor": 0.0}]


def _read(folder: Path, said: list[str]) -> dict[str, pd.DataFrame]:
    """The CSVs that are there, as they are on disk: what is made of them is then the same in a clone."""
    found, missing = {}, []
    for name in NEEDED:
        path = folder / f"{name}.csv"
        if path.is_file():
            found[name] = read_csv(path, TEXTS if name == "verdicts" else ())
        else:
            missing.append(f"{path} is missing; it is made from {folder / 'raw'}: run the study again, or restore the file")
    if not found:
        raise UserError(f"{folder} has neither raw/ nor any of its CSV files, so there is nothing to report; run the study again")
    said += missing
    return found


def _rows(found: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    rows = found["verdicts"].to_dict("records") if "verdicts" in found else []
    return [{str(name): value for name, value in row.items()} for row in rows]


def _write_tables(
    folder: Path, manifest: dict[str, Any], found: dict[str, pd.DataFrame], said: list[str]
) -> dict[str, dict[str, str]] | None:
    if "runs" not in found or "summary" not in found:
        said.append(f"{folder / 'tables'} stays as it is: it needs runs.csv and summary.csv")
        return None
    made = tables.tables(manifest, found["runs"], found["summary"])
    for name, texts in made.items():
        for suffix, text in texts.items():
            write_atomically(folder / "tables" / f"{name}.{suffix}", text.encode())
    return made


def _drawable(folder: Path, manifest: dict[str, Any], found: dict[str, pd.DataFrame], said: list[str]) -> list[dict[str, Any]]:
    """The figures that the committed CSVs suffice for: curves need every epoch, which a small summary.csv has not."""
    at = [set(zip(found[n]["config_id"], found[n]["epoch"], strict=True)) for n in ("summary", "survival") if n in found]
    have = {"curves": len(at) == 2 and at[0] >= at[1], "survival": "survival" in found, "forest": "verdicts" in found}
    need = {
        "curves": f"{folder / 'raw'} (summary.csv has the report epochs only)",
        "survival": "survival.csv",
        "forest": "verdicts.csv",
    }
    for figure in manifest["declaration"]["figures"]:
        if not have[figure["kind"]]:
            said.append(f"{folder / 'figures' / figure['name']} stays as it is: it needs {need[figure['kind']]}")
    return [figure for figure in manifest["declaration"]["figures"] if have[figure["kind"]]]


def _drop_stale(folder: Path, kept: dict[str, set[str]]) -> list[str]:
    said = []
    for kind, suffixes in SUFFIXES.items():
        for path in sorted((folder / kind).glob("*")):
            if path.suffix in suffixes and path.stem not in kept[kind]:
                path.unlink()
                said.append(f"removed {path}: the study at this size no longer makes it")
    return said


# ------------------------------------------------------------------------------------------- page


def page(
    folder: Path, manifest: dict[str, Any], runs: pd.DataFrame, units: pd.DataFrame, verdicts: Sequence[dict[str, Any]]
) -> str:
    """The text of report.md: the study's prose, and after each question its tables, pictures, verdicts and answer.

    Tables and pictures are those that `folder` holds; a picture of survival has the counts of its units below it.
    Every number comes from the files or the manifest.
    """
    declaration = manifest["declaration"]
    blocks = [f"# {declaration['title']}", inspect.cleandoc(declaration["text"]), _size(declaration, runs), _in_short(verdicts)]
    by_name = {figure["name"]: figure for figure in declaration["figures"]}
    for section in _sections(declaration):
        blocks += [f"## {section['title']}", inspect.cleandoc(section["text"])]
        blocks += [_table(folder, name) for name in section["tables"]]
        for figure in (by_name[name] for name in section["figures"]):
            blocks += [_picture(folder, figure), _lives(figure, declaration, units) if figure["kind"] == "survival" else ""]
        blocks += [_answer(claim, verdicts, declaration) for claim in section["claims"]]
    return "\n\n".join(filter(None, [*blocks, _closing(manifest, runs)])) + "\n"


def _sections(declaration: dict[str, Any]) -> list[dict[str, Any]]:
    """The declared sections, and one more for whatever they leave out."""
    sections = declaration["sections"]
    every = {kind: [item["name"] for item in declaration[kind]] for kind in ("tables", "figures")}
    every["claims"] = list(dict.fromkeys(claim["claim"] for claim in declaration["claims"]))
    left = {kind: [n for n in names if not any(n in s[kind] for s in sections)] for kind, names in every.items()}
    rest = {"title": "Further results" if sections else "Results", "text": "", **left}
    return [*sections, *([rest] if any(left.values()) else [])]


def _size(declaration: dict[str, Any], runs: pd.DataFrame) -> str:
    counts = runs["status"].value_counts()
    status = ", ".join(f"{counts[s]:,} {s}" for s in ("ok", "nonfinite", "oom", "interrupted") if s in counts)
    targets = ", ".join(dict.fromkeys(runs["target"]))
    several = "s" if runs["target"].nunique() > 1 else ""
    return (
        f"{len(runs):,} runs of {runs['config_id'].nunique():,} configurations with {declaration['seeds']:,} seeds each, "
        f"on the target{several} {markdown_text(targets)}: {status}. {_probed(runs)}"
    )


def _probed(runs: pd.DataFrame) -> str:
    sizes = sorted(runs["probe_examples"].dropna().unique())
    return f"Dead units are counted on N = {', '.join(f'{n:,}' for n in sizes)} probe examples a run." if sizes else ""


def _in_short(verdicts: Sequence[dict[str, Any]]) -> str:
    rows = [[row["claim"], row["statement"], row["verdict"]] for row in verdicts if row["contrast"] == "overall"]
    return markdown_grid(["", "claim", "answer"], [[markdown_text(text) for text in row] for row in rows], 3) if rows else ""


def _table(folder: Path, name: str) -> str:
    path = folder / "tables" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else _absent(f"The table {name}")


def _picture(folder: Path, figure: dict[str, Any]) -> str:
    if not (folder / "figures" / f"{figure['name']}.png").is_file():
        return _absent(f"The figure {figure['name']}")
    text = markdown_text(figure["caption"])
    return f"![{text}](figures/{figure['name']}.png)\n\n*{text}*"


def _lives(figure: dict[str, Any], declaration: dict[str, Any], units: pd.DataFrame) -> str:
    """What became of the units of a figure's arms, as units.csv counts them."""
    by_config = {str(config_id): rows for config_id, rows in units.groupby("config_id", sort=False)}
    cells: dict[tuple[str, str, str], list[str]] = {}
    for entry in declaration["configurations"]:
        if entry["experiment"] in (figure["experiments"] or [entry["experiment"]]) and entry["arm"] in (
            figure["arms"] or [entry["arm"]]
        ):
            for row in by_config.get(entry["config_id"], units[:0]).to_dict("records"):
                counts = [f"{row[name]:,}" for name in ("units", "born_dead", "died", "revived")]
                certified = "-" if pd.isna(row["certified_revived"]) else f"{row['certified_revived']:,}"
                share = f"{row['dead_at_end_fraction']:.3g} [{row['ci_lo']:.3g}, {row['ci_hi']:.3g}]"
                cells[entry["arm"], entry["spec"]["target"], row["site"]] = [*counts, certified, f"{row['dead_at_end']:,}", share]
    headers = ["arm", "target", "site", "units", "born dead", "died", "revived", "revived (certified)", "dead at end", "share"]
    grid = markdown_grid(headers, [[*map(markdown_text, key), *row] for key, row in cells.items()], 3)
    return f"{grid}\n\nUnits of all runs; of those at the end the share [95 % bootstrap interval over runs]." if cells else ""


def _absent(what: str) -> str:
    return f"*{what} is not here: nothing that it shows is part of the study at this size.*"


def _answer(claim: str, verdicts: Sequence[dict[str, Any]], declaration: dict[str, Any]) -> str:
    rows = [row for row in verdicts if row["claim"] == claim]
    if not rows:
        return ""
    *parts, overall = rows
    several = len({row["target"] for row in parts}) > 1
    headers = ["contrast", *(["target"] if several else []), "number", "effect [interval]", "claimed", "n", "verdict"]
    cells = [[row["contrast"], *([row["target"]] if several else []), _number(row), *_effect(row)] for row in parts]
    grid = markdown_grid(headers, [[markdown_text(text) for text in row] for row in cells], 3 if several else 2)
    whys = dict.fromkeys(c["why"] for c in declaration["claims"] if c["claim"] == claim and c["why"])
    return "\n\n".join(
        [
            grid,
            *([f"On the margins: {markdown_text('; '.join(whys))}."] if whys else []),
            f"**{markdown_text(claim)}: {overall['verdict']}.** {markdown_text(overall['statement'])}: {overall['reason']}.",
        ]
    )


def _number(row: Mapping[str, Any]) -> str:
    epoch = {"last": "", "min": "least of all epochs", "max": "greatest of all epochs"}.get(row["epoch"], f"epoch {row['epoch']}")
    return ", ".join(filter(None, [row["metric"].replace("_", " "), "" if row["site"] == "all" else row["site"], epoch]))


def _effect(row: Mapping[str, Any]) -> list[str]:
    margin = row["margin"]
    claimed = {"less": f"< {0 - margin:.3g}", "greater": f"> {margin:.3g}", "equivalent": f"within ±{margin:.3g}"}[
        row["direction"]
    ]
    if row["verdict"] == "not testable":
        return ["", claimed, f"{row['n']:.0f}", row["reason"]]
    return [f"{row['effect']:.3g} [{row['ci_lo']:.3g}, {row['ci_hi']:.3g}]", claimed, f"{row['n']:.0f}", row["verdict"]]


def _closing(manifest: dict[str, Any], runs: pd.DataFrame) -> str:
    made = [
        ("command", f"`{manifest['command']}`"),
        ("preset", manifest["preset"]),
        ("seeds", f"{manifest['declaration']['seeds']}"),
    ]
    known = {name: value for name, value in manifest["provenance"].items() if name != "probe_examples" and value != {}}
    made += [(name.replace("_", " "), _flat(value)) for name, value in known.items()]
    lines = [f"- {name}: {text}" for name, text in made]
    files = ", ".join(f"[{name}]({name})" for name in (*(f"{n}.csv" for n in _CSVS), "manifest.json"))
    return "\n\n".join(
        [
            "## How this page was made",
            f"{_probed(runs)} A dead fraction depends on that number: fewer examples make more units look dead.",
            "\n".join(lines),
            _RULE,
            f"The numbers: {files}. `relu-study report` makes this page anew from them.",
        ]
    )


_CSVS = ("runs", "experiments", "summary", "units", "survival", "verdicts")
_RULE = (
    "Comparisons are paired by seed. An effect is shown with its 95 % interval (90 % for `within`). Its claim is confirmed if "
    "the whole interval lies in the claimed region and refuted if none of it does; both need a p below 0.05 after Holm's "
    "correction over all testable rows; p is one-sided, that of the claim or, where the effect lies on the other side, of its "
    "opposite, and counts twice. An answer is confirmed if every testable row is, and refuted if any is."
)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    return "all" if value is None else f"{value}"
