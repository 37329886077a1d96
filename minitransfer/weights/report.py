"""What happened to every tensor when a checkpoint was loaded."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """Four groups, so that nothing happens in silence. (What is unexpected in the body is an error, not a row here.)"""

    source: str                                             # where the body is saved; empty if it has been trained since and is nowhere
    loaded: list[str] = field(default_factory=list)         # parameters of ours that were filled
    new: list[str] = field(default_factory=list)            # parameters of the head (or pooler) that start fresh: train them before use
    dropped: list[str] = field(default_factory=list)        # tensors of the file's own head that this model does not have
    ignored: dict[str, str] = field(default_factory=dict)   # tensors that are no parameters, and why

    def renewed(self, names: set[str]) -> None:
        """These parameters have been put in place of what was loaded."""
        self.loaded = [name for name in self.loaded if name not in names]
        self.new = [*(name for name in self.new if name not in names), *sorted(names)]

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} parameters loaded"]
        if self.new:
            lines.append(f"  new, to be trained: {', '.join(self.new)}")
        if self.dropped:
            lines.append(f"  dropped with the file's own head: {', '.join(self.dropped)}")
        lines += [f"  ignored: {name} ({why})" for name, why in self.ignored.items()]
        return "\n".join(lines)

    __repr__ = __str__
