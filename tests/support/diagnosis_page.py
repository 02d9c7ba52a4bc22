"""The generated parts of docs/diagnosis.md: thresholds, error rates, and rules of other tools.

`python tests/support/diagnosis_page.py` writes them, from thresholds.json, error_rates.json and the registered detectors.
"""

from __future__ import annotations

from paths import ROOT

from relu_study.diagnosis.detector import Detector, above, detectors
from relu_study.diagnosis.error_rates import as_text, error_rates
from relu_study.diagnosis.thresholds import packaged
from relu_study.report.markup import markdown_grid, markdown_text

PAGE = ROOT / "docs" / "diagnosis.md"
MEANINGS = {  # of the numbers besides thresholds
    "after": "share of training before which only clear evidence counts; the rule abstains in its first fifth",
    "early": "loss over the reference that is clear evidence",
    "margin": "taken off the share of dead units of a site before it is compared",
    "site": "least share of dead units of a site",
}


def thresholds() -> str:
    """Return the table of every number of our rules."""
    rows = [
        [f"`{rule}`", name, f"{number:g}" if float(f"{number:g}") == number else repr(number), _meaning(rule, name)]
        for rule, numbers in sorted(packaged().items())
        for name, number in sorted(numbers.items())
    ]
    return _grid(["rule", "number", "value", "meaning"], rows)


def rates() -> str:
    """Return the table of the measured error rates, or a sentence without them."""
    measured = {name: found for name in detectors if (found := error_rates(name)) is not None}
    if not measured:
        return "No error rate is measured yet: `error_rates.json` is absent, and the command prints *not measured*."
    rows = [
        [f"`{name}`", as_text(found.recall), as_text(found.false_alarms), f"{found.configurations:,}"]
        for name, found in measured.items()
    ]
    return _grid(["rule", "recall", "false alarms", "configurations"], rows)


def rivals() -> str:
    """Return the table of other tools' rules."""
    headers = ["rule", "problem", "description", "fires", "metrics", "source", "differences here"]
    return _grid(headers, [_rival(entry) for entry in detectors.values() if entry.rival])


PARTS = {"thresholds": thresholds, "error rates": rates, "rules of other tools": rivals}


def generated(text: str) -> str:
    """Return the text of the page with its generated parts written again."""
    for name, part in PARTS.items():
        start, end = f"<!-- {name} -->\n\n", f"\n\n<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        assert found, f"{PAGE} has no part {name!r}"
        text = before + start + part() + end + after
    return text


def _rival(entry: Detector) -> list[str]:
    text, needs = entry.text.removeprefix("Rule re-implemented from its description: "), ", ".join(entry.requires)
    cells = [entry.problem, text, _fires(entry), needs or "any metric", entry.source, entry.adaptation]
    return [f"`{entry.name}`", *map(markdown_text, cells)]


def _meaning(rule: str, name: str) -> str:
    return f"{detectors[rule].quantity}: sick from here on" if name == "threshold" else MEANINGS[name]


def _fires(entry: Detector) -> str:
    """Return the quantity of a rule with its threshold. A rule "more than x" has the next float above x as threshold."""
    number = float(f"{entry.threshold:.6g}")
    return f"{entry.quantity} {'>' if entry.threshold == above(number) else '>='} {number:g}"


def _grid(headers: list[str], rows: list[list[str]]) -> str:
    return markdown_grid(headers, rows, len(headers))


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
