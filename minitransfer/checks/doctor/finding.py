"""What a check says: what was tried, what was seen, what to do."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...transfer.groups import Table

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """`result`: "ok", "note" (worth knowing, and may be meant) or "wrong"."""

    check: str
    result: str
    tried: str
    seen: str
    do: str = ""


@dataclass(frozen=True)
class Tried:
    """One check with what it did, from which its findings are made."""

    check: str
    tried: str

    def ok(self, seen: str) -> Finding:
        return Finding(self.check, OK, self.tried, seen)

    def note(self, seen: str, do: str) -> Finding:
        return Finding(self.check, NOTE, self.tried, seen, do)

    def wrong(self, seen: str, do: str) -> Finding:
        return Finding(self.check, WRONG, self.tried, seen, do)

    def of_share(self, n: int, of: int, seen: str, do: str, bar: float) -> Finding:
        """Wrong where n of `of` reaches the share `bar`, a note from one on."""
        return self.ok(seen) if not n else self.wrong(seen, do) if n >= bar * of else self.note(seen, do)


@dataclass(frozen=True, repr=False)
class Diagnosis(Table):
    """Every finding, the worst first. Prints as a table, with what to do below it."""

    findings: tuple[Finding, ...] = field(default=())

    @property
    def problems(self) -> list[Finding]:
        return [one for one in self.findings if one.result == WRONG]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "findings": [asdict(one) for one in self.findings]}

    def cells(self) -> list[tuple[str, ...]]:
        return [("result", "check", "tried", "seen", "what to do"), *((one.result, one.check, one.tried, one.seen, one.do) for one in self.findings)]

    def __str__(self) -> str:
        width = max((len(one.check) for one in self.findings), default=0)
        counts = ", ".join(f"{n} {word}" for result, word in ((WRONG, "wrong"), (NOTE, "to look at"), (OK, "as it should be"))
                           if (n := sum(one.result == result for one in self.findings)))
        lines = [f"{one.result:<5}  {one.check:<{width}}  {one.seen}" + (f"\n{'':<{width + 9}}-> {one.do}" if one.do else "") for one in self.findings]
        return "\n".join([*lines, counts or "nothing to check"])

    __repr__ = __str__
