"""What articles on transfer learning claim in numbers, each beside what decides it: a result committed in bench/results, arithmetic, or a small experiment.

    reproduced      what was found agrees with the claim, within the interval
    partly          a part of the claim holds, or it holds under a condition that the claim does not name
    not as stated   what was found contradicts it
    not tested      nothing here decides it; the reason says what would

Reading order: base.py (what a claim is), arithmetic.py, measured.py and experiments.py (what decides them), cited.py.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ...config_parts import meant
from ...weights.files import read_json, write_json
from . import arithmetic, cited, experiments, measured
from .base import RESULTS, Claim, Claims, Finding, Judged, Missing, result

__all__ = ["CLAIMS", "Claim", "Claims", "Finding", "claims", "run_claim"]

CLAIMS: dict[str, Claim] = {one.id: one for one in (*measured.CLAIMS, *arithmetic.CLAIMS, *experiments.CLAIMS, *cited.CLAIMS)}


def judged(claim: Claim) -> Judged:
    try:
        return Judged(claim, claim.judge())
    except Missing as why:
        return Judged(claim, Finding("not tested", "-", str(why)))


def named(ids: Sequence[str]) -> list[Claim]:
    """Raises: KeyError for a claim that is not there, with the nearest."""
    for id in ids:
        if id not in CLAIMS:
            raise KeyError(f"no claim {id!r}{meant(id, CLAIMS)}; there are {', '.join(CLAIMS)}: name some of these")
    return [CLAIMS[id] for id in ids]


def claims(ids: Sequence[str] = ()) -> Claims:
    """The table of claims and verdicts; nothing is trained.

    Args:   ids: of the claims that are wanted; none: all.
    Raises: KeyError for a claim that is not there.
    """
    return Claims(tuple(judged(one) for one in (named(ids) or CLAIMS.values())))


def run_claim(id: str, save: bool = False) -> Claims:
    """Run a claim's experiment anew, or read again what decides it.

    Args:   save: also keep what was found in bench/results/claims.json.
    Raises: KeyError for a claim that is not there; ValueError for one without an experiment, and without the data it reads.
    """
    claim, = named([id])
    if claim.run is None:
        can = [one.id for one in CLAIMS.values() if one.run is not None]
        raise ValueError(f"{id} has no experiment, it is decided by {claim.evidence}; those that can be run are {', '.join(can)}: choose one, or print the table")
    found = claim.run()
    if save:
        path = RESULTS / "claims.json"
        write_json(path, (read_json(path) if path.is_file() else {}) | {id: asdict(found)})
        result.cache_clear()
    return Claims((Judged(claim, found),))
