"""What was measured, as means over seeds, and as a table for a page."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .sets import SETS, Set

WITHIN_FULL = {"lora": 1.0, "adapter": 1.0}          # sst2: points that these may lie below full


def mean_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one method: mean and range over seeds, and the mean ends of the 95 % intervals of the validation rows."""
    values = [line["value"] for line in lines]
    found = {"mean": statistics.mean(values), "values": values, "seeds": [line["seed"] for line in lines], "trainable": lines[0].get("trainable"),
             "seconds": statistics.mean(line["seconds"] for line in lines) if "seconds" in lines[0] else None, "precision": lines[0].get("precision")}
    if all("interval" in line for line in lines):
        found["interval"] = [statistics.mean(line["interval"][end] for line in lines) for end in (0, 1)]
    return found


def summaries(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Set -> its settings, what each method of each side gave, and whether its bars hold."""
    found: dict[str, Any] = {}
    for name, one in SETS.items():
        mine = [line for line in lines if line["set"] == name]
        if not mine:
            continue
        methods: dict[str, dict[str, Any]] = {"ours": {}, "twin": {}}
        for side, method in dict.fromkeys((line["side"], line["method"]) for line in mine):
            runs = [line for line in mine if (line["side"], line["method"]) == (side, method)]
            methods[side][method] = mean_of(runs) if "value" in runs[0] else runs[0]
        found[name] = {"metric": one.metric, "settings": one.shared(), **methods, "bars": list(bars(one, methods["ours"], methods["twin"]))}
    return found


def bars(one: Set, ours: dict[str, Any], twin: dict[str, Any]) -> list[dict[str, Any]]:
    """Each promise, in points, and whether it holds."""
    found = []

    def within(what: str, value: float, of: float, points: float) -> None:
        found.append({"what": what, "points": value - of, "bar": -points, "holds": value - of >= -points})
    if one.bar is not None and "full" in ours and "full" in twin:
        within("full against the twin", ours["full"]["mean"], twin["full"]["mean"], one.bar)
    if "zero-shot" in ours and "zero-shot" in twin:
        gap = abs(ours["zero-shot"]["mean"] - twin["zero-shot"]["mean"])
        found.append({"what": "zero-shot equal to the twin, in correlation", "points": gap / 100, "bar": 0.001, "holds": gap / 100 <= 0.001})
    for method, points in WITHIN_FULL.items() if one.name == "sst2" else ():
        if method in ours:
            within(f"{method} against full", ours[method]["mean"], ours["full"]["mean"], points)
    return found


def cell(one: dict[str, Any]) -> str:
    interval = " ({:.1f} to {:.1f})".format(*one["interval"]) if "interval" in one else ""
    return f"{one['mean']:.1f}{interval}" + ("" if len(one["values"]) == 1 else ", seeds " + " ".join(f"{value:.1f}" for value in one["values"]))


def table(found: dict[str, Any]) -> str:
    """Markdown: a line per set and method, the twin's beside ours, then the paces."""
    rows = ["| set | metric | method | ours | twin |", "|---|---|---|---|---|"]
    for name, one in found["sets"].items():
        both = {**one["ours"], **one["twin"]}
        for method in both:
            mine, other = (cell(side[method]) if "mean" in side.get(method, {}) else "" for side in (one["ours"], one["twin"]))
            if mine or other:
                rows.append(f"| {name} | {one['metric']} | {method} | {mine} | {other} |")
    for one in found["paces"]:
        ratios = ", ".join(f"{side} {ratio:.2f}x" for side, ratio in one["ratio"].items())
        rows.append(f"| {one['set']} | seconds of an epoch | full | {ratios} faster | {one['seconds']['twin']:.1f} s |")
    for one in found["depth"]:
        full = found["depth"][0]
        rows.append(f"| step of 16 x 128 | {one['trainable']:,} train | {one['strategy']} | {one['seconds'] / full['seconds']:.0%} of full's time, "
                    f"{one['kept_bytes'] / full['kept_bytes']:.0%} of what it keeps for the backward pass ({full['kept_bytes'] / 1e6:.0f} MB) | |")
    return "\n".join(rows)
