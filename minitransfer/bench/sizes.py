"""Full-size shapes with random weights beside transformers: how far apart, how long loading takes, how much memory loading and one pass need."""
from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checks.verify import verify
from ..training.throughput import cpu_name
from ..weights.files import read_json
from .compare import RESULTS, chosen, kept
from .families import in_checkout

RESULT = RESULTS / "sizes.json"
BAR = 1e-4
SHAPES = ("roberta-base", "deberta-v3-base", "ModernBERT-base", "t5-small", "bart-base", "qwen2-0.5b")       # one of each group of families


def write_reference(folder: str | Path, model_type: str, class_name: str, changes: dict[str, Any]) -> int:
    """The reference's model of this shape with every parameter moved from its start; returns how many parameters it has."""
    import torch
    import transformers
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(transformers.AutoConfig.for_model(model_type, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def measure(name: str, shape: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        parameters = write_reference(folder, *shape)
        found = verify(folder, lengths=(47,), bar=BAR, gradients=False, repeats=3)
    assert found.cost is not None
    sides = {side: {what: found.cost[side][what] for what in ("load_seconds", "bytes", "seconds")} for side in ("ours", "reference")}
    return {"shape": name, "class": shape[1], "parameters": parameters, "error": found.error, "bar": BAR, "holds": found.holds, "first": found.first, **sides,
            "threads": found.cost["threads"], "cpu": cpu_name(), "versions": found.versions}


def run(names: Sequence[str] | None = None, save: bool = False) -> list[dict[str, Any]]:
    """Measure shapes, a JSON line each.

    Args:   names: of SHAPES, default all; save: also write bench/results/sizes.json (shapes not measured now stay).
    Raises: KeyError for a shape that does not exist; ValueError in an installed package, whose shapes are in the tests it does not have.
    """
    wanted = chosen(names, SHAPES, "shape")
    with in_checkout():
        full = importlib.import_module("tests.families.test_sizes").FULL
    lines = []
    for name in wanted:
        lines.append(measure(name, full[name]))
        print(json.dumps(lines[-1]), flush=True)
        if save:
            kept(RESULT, {name: lines[-1]})
    if save:
        print(f"written: {RESULT}", file=sys.stderr)
    return lines


def markdown(table: dict[str, Any] | None = None) -> str:
    """The saved table for a page."""
    table = read_json(RESULT) if table is None else table
    rows = ["| shape | parameters | largest error (bar 1e-4) | loading, ours | transformers | peak memory of loading and a pass, ours | transformers |",
            "|---|---|---|---|---|---|---|"]
    for one in [table[name] for name in SHAPES if name in table]:
        ours, theirs = one["ours"], one["reference"]
        rows.append(f"| {one['shape']} | {one['parameters']:,} | {one['error']:.1e} | {ours['load_seconds']:.2f} s | {theirs['load_seconds']:.2f} s | "
                    f"{ours['bytes'] / 2**20:,.0f} MiB | {theirs['bytes'] / 2**20:,.0f} MiB |")
    return "\n".join(rows)
