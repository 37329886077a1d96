"""Why two runs differ: the first reading that is not the same in both, and what was not the same before it."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.log import read_log
from ..training.settings import FREE
from ..weights.files import read_json

READ = ("lr", "tokens", "targets", "loss", "grad_norm")         # of a step; its times and its memory are the machine's
KINDS = ("seed", "weights", "data", "setting", "batches", "model", "precision", "versions", "machine")       # what others follow from comes first
OF_RATE, OF_ROWS = ("setting",), ("data", "seed", "batches")
LIKELY = {"lr": OF_RATE, "tokens": OF_ROWS, "targets": OF_ROWS}      # where to look for what makes this differ; else in the order of KINDS


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same: of which kind, its name, and its values in the two runs."""

    kind: str
    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {shown(self.a)} and {shown(self.b)}"


@dataclass(frozen=True, repr=False)
class Why:
    """What `why` found; prints as a few lines.

    `step`: the first whose readings differ (None: none does), after `agreed`, the last whose readings are equal; `numbers`: what differs there;
    `causes`: what the runs were given otherwise, the likeliest first.
    """

    a: Path
    b: Path
    agreed: int
    step: int | None
    numbers: tuple[Difference, ...]
    causes: tuple[Difference, ...]
    ended: tuple[int, int]                  # the last step of each

    @property
    def cause(self) -> str:
        """The likeliest one, in words."""
        if self.causes:
            return str(self.causes[0])
        return ("a number: settings, data, weights at the start, versions and machine are the same as far as they are written down; sums in another order (threads, kernels of a "
                "GPU) or changed code give other digits") if self.step is not None else "nothing"

    def to_dict(self) -> dict[str, Any]:
        return {"agreed": self.agreed, "step": self.step, "cause": self.cause, "numbers": [vars(one) for one in self.numbers], "causes": [vars(one) for one in self.causes],
                "ended": self.ended}

    def __str__(self) -> str:
        if self.step is None:
            lines = [f"{self.a} and {self.b} logged no step in common: their readings cannot be compared" if not self.agreed else
                     f"{self.a} and {self.b} are the same up to step {self.agreed}" + (
                "" if self.ended[0] == self.ended[1] else f"; then one ends, at step {min(self.ended)}, and the other goes on to {max(self.ended)}")]
        else:
            lines = [f"{self.a} and {self.b} are the same up to step {self.agreed} and differ at step {self.step}:", *(f"  {one}" for one in self.numbers)]
        lines.append(f"cause: {self.cause}" if self.step is not None or self.causes else "nothing that is written down differs")
        return "\n".join([*lines, *(["also different:", *(f"  {one}" for one in self.causes[1:])] if len(self.causes) > 1 else [])])

    __repr__ = __str__


def shown(value: Any) -> str:
    return "absent" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)


def why(a: str | Path, b: str | Path) -> Why:
    """The first step at which two runs differ, and the cause, from their manifest.json and log.jsonl.

    Readings are compared bit for bit: learning rate, tokens and targets of a step, loss, gradient norm and held-out metrics; a run logs every `log_every` steps, so
    that the difference may have begun up to so many steps earlier. The cause is looked for in seed, weights at the start (16 values of every
    parameter, of body and head), data, settings, architecture, precision, versions and machine.

    Raises: ValueError for a folder without a manifest, or with a manifest or a log that is none.
    """
    folders = Path(a), Path(b)
    logs, told = [reading(folder) for folder in folders], [facts(folder) for folder in folders]
    agreed, step, numbers = first_difference(*logs)
    likely = next((LIKELY[one.name] for one in numbers if one.name in LIKELY), ())
    causes = sorted(differences(*told), key=lambda one: (likely.index(one.kind) if one.kind in likely else len(likely), KINDS.index(one.kind)))
    return Why(*folders, agreed, step, tuple(numbers), tuple(causes), (last(logs[0]), last(logs[1])))


Log = dict[tuple[int, str], dict[str, Any]]
Facts = dict[tuple[str, str], Any]


def reading(folder: Path) -> Log:
    """(step, "training" or "held-out") -> what was read there."""
    found: Log = {}
    for one in read_log(folder / "log.jsonl"):
        if "evaluation" in one:
            found[one["step"], "held-out"] = one["evaluation"]
        else:
            found[one["step"], "training"] = {name: one.get(name) for name in READ}
    return found


def last(log: Log) -> int:
    return max((step for step, _ in log), default=0)


def same(one: Any, other: Any) -> bool:
    """Equal, or both no number."""
    return one == other or (one != one and other != other)


def first_difference(a: Log, b: Log) -> tuple[int, int | None, list[Difference]]:
    """The last step that agrees, the first that does not, and what does not there. Steps that one of them did not log say nothing."""
    agreed = 0
    for step, kind in sorted(set(a) & set(b), key=lambda one: (one[0], one[1] == "held-out")):
        one, other = a[step, kind], b[step, kind]
        found = [Difference(kind, name, one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other]) if not same(one.get(name), other.get(name))]
        if found:
            return agreed, step, found
        agreed = step
    return agreed, None, []


def facts(folder: Path) -> Facts:
    """(kind, name) -> value, of everything in a manifest that can move a number. Raises: ValueError for a folder without one."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} holds no manifest.json; a run is compared with what it wrote when it began: give the folder that was its out")
    told = read_json(folder / "manifest.json")
    if wrong := [name for name in ("settings", "data", "weights", "versions", "machine", "model") if not isinstance(told.get(name, {}), dict)]:
        raise ValueError(f"{wrong[0]}={told[wrong[0]]!r} in {folder / 'manifest.json'}; it is an object of names and values: give the folder as the run left it")
    settings = dict(told.get("settings", {}))
    found: Facts = {("seed", "of the run"): settings.pop("seed", None), ("precision", "of the products"): told.get("precision")}
    found |= {("setting", name): value for name, value in settings.items() if name not in FREE}
    data = dict(told.get("data", {}))
    found["batches", "(of other sizes or lengths, unless rows or seed differ)"] = data.pop("batches", None)
    found |= {("data", name): value for name, value in data.items()}
    found |= {(kind, name): value for kind in ("weights", "versions", "machine") for name, value in told.get(kind, {}).items()}
    return found | {("model", name): value for name, value in flat(told.get("model", {}))}


def flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        yield from flat(value) if isinstance(value, dict) else [(name, value)]


def differences(a: Facts, b: Facts) -> list[Difference]:
    return [Difference(*key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
