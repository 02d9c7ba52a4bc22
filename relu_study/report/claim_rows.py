"""Rows of verdicts.csv before a study runs: their seeds, and the rows that cannot be decided with these seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from relu_study.report.verdicts import SIGNIFICANT, arm_labels, corrected_p, is_share
from relu_study.stats.hypothesis_tests import least_counted_p
from relu_study.stats.sign_flips import EXACT, least_sign_flip
from relu_study.storage.declaration import CellDeclaration, Declaration, DeclaredConfiguration
from relu_study.storage.quantities import Values
from relu_study.study.claims import CellClaim, Claim, Target

MOST = 1 << 20  # seeds or draws that a hint names


@dataclass(frozen=True)
class ClaimRow:
    """A row with `n` seeds or draws, of which it needs `least` to be testable. `of_test(n)` is the smallest p of its test."""

    n: int
    least: int
    of_test: Callable[[int], float]

    def least_p(self, n: int) -> float:
        """Return the smallest p with n seeds or draws; 1 for too few."""
        return self.of_test(n) if n >= self.least else 1.0


def arms_and_targets(declaration: Declaration) -> tuple[dict[tuple[str, str], DeclaredConfiguration], list[Target]]:
    """Return the declared configurations by (arm, target), and the targets of this preset.

    Without declared targets there is one target for all arms, with the name that they share or an empty name.
    """
    present = dict.fromkeys(entry.target for entry in declaration.configurations)
    targets = [target for target in declaration.targets if target.name in present]
    shared = "" if len(present) > 1 else next(iter(present), "")
    arms = {(entry.arm, entry.target if targets else shared): entry for entry in declaration.configurations}
    return arms, targets or [Target(shared)]


def undecidable_rows(declaration: Declaration | CellDeclaration) -> str:
    """Return two sentences on the rows of which no outcome has a corrected p below 0.05; empty if there are none.

    The p of a row is smallest if all its pairs of runs are on the same side of the margin. The corrected p of every row is
    smallest if that is so for all rows. A row counts as testable if its arms are trained with at least its `least_seeds`. If
    fewer rows are testable in the end, fewer seeds suffice.
    """
    if isinstance(declaration, CellDeclaration):
        rows, noun = [_cell_row(claim, declaration) for claim in declaration.claims], "draw"
    else:
        (arms, targets), noun = arms_and_targets(declaration), "seed"
        rows = [_row(claim, target, arms) for claim in declaration.claims for target in targets]
    return _message([row for row in rows if row is not None], noun)


def _row(claim: Claim, target: Target, arms: Mapping[tuple[str, str], DeclaredConfiguration]) -> ClaimRow | None:
    """Return the row of a claim on a target, or None if it is not testable with any number of seeds."""
    labels = [*arm_labels(claim), *([claim.against] if isinstance(claim.against, str) else [])]
    seeds = [arms[label, target.name].seeds for label in labels if (label, target.name) in arms]
    if (claim.targets and target.name not in claim.targets) or len(seeds) < len(labels):
        return None
    if claim.against_dead_site and not isinstance(claim.against, str):
        return None
    if isinstance(claim.against, str) or not is_share(claim):
        return ClaimRow(min(seeds), claim.least_seeds, least_sign_flip)
    unit = target.variance if claim.relative else 1.0
    return ClaimRow(min(seeds), claim.least_seeds, _binomial(claim.against * unit, claim.direction, claim.margin * unit))


def _cell_row(claim: CellClaim, declaration: CellDeclaration) -> ClaimRow | None:
    """Return the row of a claim about draws, or None if it is not testable with any number of draws."""
    cell = next(c for c in declaration.cells if (c.experiment, c.label) == (claim.experiment, claim.cell))
    number = declaration.numbers[cell.statistic][claim.number]
    estimated = any(e.theory for e in declaration.experiments if e.name == claim.experiment)
    if not number.share or (isinstance(claim.against, str) and (claim.against != "theory" or estimated)):
        return ClaimRow(cell.draws, 2, _normal)
    value, error = claim.against, 0.0
    if isinstance(value, str):
        place = cell.along[number.along].index(claim.at) if claim.at is not None else 0
        theory = cell.theory.get(claim.number)
        value, error = (_at(theory.value, place), _at(theory.error, place)) if theory else (math.nan, 0.0)
    if not math.isfinite(value):
        return None
    margin = claim.margin * (abs(value) if claim.relative else 1.0)
    return ClaimRow(cell.draws, 2, _normal if error > 0 else _binomial(value, claim.direction, margin))


def _at(values: Values, place: int) -> float:
    """Return one of the values along a factor. NaN where there is none."""
    value = values[place] if isinstance(values, tuple) else values
    return math.nan if value is None else value


def _binomial(against: float, direction: str, margin: float) -> Callable[[int], float]:
    return functools.cache(lambda n: least_counted_p(n, against, direction, margin))


def _normal(n: int) -> float:
    """Return 0: a normal test has no smallest p."""
    return 0.0


def _message(every: Sequence[ClaimRow], noun: str) -> str:
    rows = [row for row in every if row.n >= row.least]
    if every and not rows:
        return f"With {_sizes(every, noun)} no claim is testable. {_hint(every, range(len(every)), noun)}"
    best = [row.least_p(row.n) for row in rows]
    stuck = [i for i, p in enumerate(corrected_p(best)) if not p < SIGNIFICANT]
    if not stuck:
        return ""
    size, whole = _sizes([rows[i] for i in stuck], noun), len(stuck) == len(rows)
    return (
        f"{size} {'gives' if size.startswith('1 ') else 'give'} p = {min(best[i] for i in stuck):.3g} at best, and Holm's "
        f"correction over {_counted(len(rows), 'testable row')} needs p < {SIGNIFICANT / 2 / len(stuck):.3g}: "
        f"{'no row can' if whole else f'{len(stuck):,} of them cannot'} be confirmed or refuted. {_hint(rows, stuck, noun)}"
    )


def _hint(rows: Sequence[ClaimRow], stuck: Sequence[int], noun: str) -> str:
    """Return the sentence with the numbers of seeds and of rows that suffice."""
    in_doubt = set(stuck)

    def suffices(n: int) -> bool:
        p = [row.least_p(n if i in in_doubt else row.n) for i, row in enumerate(rows)]
        return bool((corrected_p(p) < SIGNIFICANT).all())

    few, enough = 0, 1
    while not suffices(enough) and enough < MOST:
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if suffices(middle) else (middle, enough)
    hints = []
    if suffices(enough):  # sign flips of more than 32 seeds are sampled, so their p can be larger
        hints = [f"at least {_counted(enough, noun)}" if suffices(max(enough, EXACT + 1)) else f"{enough} to {EXACT} {noun}s"]
    best = {row.least_p(row.n) for row in rows} if len(stuck) == len(rows) else set()
    if len(best) == 1 and (most := sum(2 * p * m < SIGNIFICANT for p in best for m in range(1, len(rows)))):
        hints.append(f"at most {_counted(most, 'row')}")
    return f"Use {', or '.join(hints)}." if hints else "Make fewer claims, or claims with other margins."


def _sizes(rows: Sequence[ClaimRow], noun: str) -> str:
    """Return the words for the numbers of seeds of these rows, such as "4 to 8 seeds"."""
    few, many = min(row.n for row in rows), max(row.n for row in rows)
    return _counted(few, noun) if few == many else f"{few:,} to {_counted(many, noun)}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
