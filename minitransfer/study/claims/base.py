"""A claim, what was found, and the table of both."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ...config import choose
from ...transfer.groups import Table
from ...weights.files import read_json
from ..tables import Interval, new_axes

RESULTS = Path(__file__).parents[2] / "bench" / "results"      # of a checkout: they are not in the wheel
VERDICTS = ("reproduced", "partly", "not as stated", "not tested")
COLOURS = dict(zip(VERDICTS, ("tab:green", "tab:olive", "tab:red", "lightgrey"), strict=True))
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}     # the t distribution holds 95 % between -t and t, by degrees of freedom


@dataclass(frozen=True)
class Finding:
    """One of VERDICTS, what was found, with its interval where it has one, and why that is the verdict."""

    verdict: str
    found: str
    reason: str
    interval: Interval | None = None

    def __post_init__(self) -> None:
        choose("verdict", self.verdict, VERDICTS)


@dataclass(frozen=True)
class Claim:
    """What is claimed, and what decides it. `evidence`: "arithmetic", "cited", "experiment", or the committed result that `judge` reads.

    Args: source: which of the five articles say so, S0 to S4. run: of an experiment: what is done anew.
    """

    id: str
    source: str
    text: str
    evidence: str
    judge: Callable[[], Finding]
    run: Callable[[], Finding] | None = None


@dataclass(frozen=True)
class Judged:
    claim: Claim
    finding: Finding


@dataclass(frozen=True, repr=False)
class Claims(Table):
    """Claims and verdicts. Prints as a table; `draw` shows how many of each verdict there are."""

    rows: tuple[Judged, ...]

    def cells(self) -> list[tuple[str, ...]]:
        body = [(one.claim.id, one.claim.source, one.claim.text, one.finding.verdict, one.finding.found, one.finding.reason, one.claim.evidence) for one in self.rows]
        return [("id", "source", "claim", "verdict", "found", "reason", "decided by"), *body]

    def __str__(self) -> str:
        """A paragraph for each claim: as columns its sentences would fill no screen."""
        blocks = [f"{one.claim.id} ({one.claim.source}): {one.claim.text}\n    {one.finding.verdict}: {one.finding.found}\n    {one.finding.reason} [{one.claim.evidence}]"
                  for one in self.rows]
        return "\n".join([*blocks, self.summary])

    __repr__ = __str__

    @property
    def counts(self) -> dict[str, int]:
        return {verdict: sum(one.finding.verdict == verdict for one in self.rows) for verdict in VERDICTS}

    @property
    def summary(self) -> str:
        return f"{len(self.rows)} claim{'s' if len(self.rows) != 1 else ''}: " + ", ".join(f"{n} {verdict}" for verdict, n in self.counts.items() if n)

    def markdown(self) -> str:
        """For a page of the docs."""
        head, *body = self.cells()
        return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in (head, ["---"] * len(head), *body))

    def to_dict(self) -> dict[str, Any]:
        return {one.claim.id: {"source": one.claim.source, "claim": one.claim.text, "evidence": one.claim.evidence, **vars(one.finding)} for one in self.rows}

    def draw(self, axes: Any = None) -> Any:
        """Returns: matplotlib's axes."""
        axes = new_axes(7, 2.2)[0, 0] if axes is None else axes
        for i, (verdict, n) in enumerate(self.counts.items()):
            axes.barh(-i, n, color=COLOURS[verdict])
            axes.text(n, -i, f" {n}", va="center")
        axes.set(yticks=[-i for i in range(len(VERDICTS))], yticklabels=VERDICTS, xlabel="claims", title=f"{len(self.rows)} claims in numbers")
        return axes


class Missing(Exception):
    """A committed result that is not here."""


@cache
def result(name: str) -> Any:
    """The committed result of this name. Raises: Missing."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise Missing(f"{path.name} {'has not been measured yet' if path.parent.is_dir() else 'is not here: such results belong to a checkout of the project'}")
    return read_json(path)


def over_seeds(values: list[float]) -> Interval:
    """The mean of a few runs with Student's interval, which knows how few they are."""
    centre, half = mean(values), T95[len(values) - 1] * stdev(values) / len(values) ** 0.5
    return Interval(centre, centre - half, centre + half)
