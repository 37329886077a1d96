"""What was measured, as means over seeds, and as a table for a page."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .sets import SETS, Set

WITHIN_FULL = {"lora": 1.0, "adapter": 1.0}          # sst2: points that these may lie below full


def mean_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one method: mean and range over seeds, the mean ends of the 95 % intervals of the validation rows, and the first run's table of epochs."""
    values = [line["value"] for line in lines]
    found = {"mean": statistics.mean(values), "values": values, "seeds": [line["seed"] for line in lines], "trainable": lines[0].get("trainable"),
             "seconds": statistics.mean(line["seconds"] for line in lines) if "seconds" in lines[0] else None, "precision": lines[0].get("precision")}
    found |= {name: lines[0][name] for name in ("lr", "masked_loss_before", "table") if name in lines[0]}
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


def cell(one: dict[str, Any] | None, seeds: bool = False) -> str:
    """A mean with the interval that the validation rows allow it, or with what each seed gave."""
    if one is None or "mean" not in one:
        return ""
    more = " ".join(f"{value:.1f}" for value in one["values"]) if seeds else "{:.1f} to {:.1f}".format(*one["interval"]) if "interval" in one else ""
    return f"{one['mean']:.1f}" + (f" ({more})" if more else "")


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def verdict(one: dict[str, Any], what: str) -> str:
    """The points of a bar, what it asks, and whether it holds."""
    bar = next((bar for bar in one["bars"] if bar["what"].startswith(what)), None)
    return "" if bar is None else f"{bar['points']:+.2f} ({bar['bar']:+.1f}: {'holds' if bar['holds'] else 'missed'})"


def by_set(sets: dict[str, Any]) -> str:
    """Full fine-tuning on each set beside the twin's, a bag of words, and the same architecture without pretraining."""
    rows = []
    for name, one in sets.items():
        ours, twin = one["ours"], one["twin"]
        if "full" in ours and name not in ("imdb_100",):
            n = len(ours["full"]["values"])
            rows.append([name, one["metric"], cell(ours["full"]), f"{n} seed{'s' if n > 1 else ''}", cell(twin.get("full")), verdict(one, "full"),
                         cell(ours.get("logistic")), cell(ours.get("random"))])
    return grid(["set", "metric", "ours", "runs", "twin", "ours - twin (bar)", "TF-IDF", "no pretraining"], rows)


def by_method(name: str, one: dict[str, Any]) -> str:
    """Every way to adapt on one set."""
    rows = [[method, f"{found.get('trainable') or 0:,}", cell(found, seeds=True), cell(one["twin"].get(method), seeds=True)]
            for method, found in one["ours"].items() if "mean" in found]
    return grid([name, "trained", f"{one['metric']} (each seed)", "twin"], rows)


def by_epoch(one: dict[str, Any]) -> str:
    """What a long run at a high rate forgets, and a short one at a low rate."""
    rows = [[f"lr {found['lr']:g}", str(line["epoch"]), f"{line['train_loss']:.3f}", f"{line['accuracy']:.1f}", f"{line['masked_loss']:.2f}"]
            for found in one["ours"].values() if "table" in found for line in found["table"] if line["epoch"] in (1, 2, 3, 5, 10, 20)]
    return grid(["imdb, 1,000 rows", "epoch", "train loss", "accuracy", "masked loss on general text"], rows)


def by_pace(paces: Sequence[dict[str, Any]]) -> str:
    rows = [[one["set"], f"{one['rows']:,}", side, f"{one['seconds'][side]:.1f} s", f"{one['seconds']['twin']:.1f} s", f"{ratio:.2f}x", f"{one['bars'][side]:.1f}x"]
            for one in paces for side, ratio in one["ratio"].items()]
    return grid(["an epoch of", "rows", "our precision", "ours", "twin", "twin / ours", "bar"], rows)


def by_depth(steps: Sequence[dict[str, Any]]) -> str:
    rows = [[one["strategy"], f"{one['trainable']:,}", f"{one['seconds'] / steps[0]['seconds']:.0%}", f"{one['kept_bytes'] / 1e6:.1f} MB"] for one in steps]
    return grid(["a step of 16 x 128", "trained", "time", "kept for the backward pass"], rows)


def table(found: dict[str, Any]) -> str:
    """Markdown, a table for each question."""
    sets = found["sets"]
    parts = [by_set(sets), *(by_method(name, sets[name]) for name in ("sst2", "imdb_100", "medquad") if name in sets)]
    if "imdb_long" in sets:
        parts.append(by_epoch(sets["imdb_long"]))
    return "\n\n".join([*parts, *([by_pace(found["paces"])] if found["paces"] else []), *([by_depth(found["depth"])] if found["depth"] else [])])
