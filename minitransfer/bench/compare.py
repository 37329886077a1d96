"""Rows in turns: ours, the peer, ours, the peer; medians; one JSON line per row."""
from __future__ import annotations

import datetime
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config_parts import meant
from ..training.throughput import cpu_name
from ..weights.files import read_json, write_json
from . import gpu_rows
from .characters import check_clone
from .rows import ROWS, Row

RESULTS = Path(__file__).parent / "results"
NEED_TRANSFORMERS = ("finetune", "embed", "step", "memory", "generate", "generate-int8", "lora", "lora-memory")
MORE = ("loss", "loss_printed", "steps", "state", "optimizer", "attention", "perplexity", "accuracy", "peak_memory", "copy_share", "took_kernel")    # what a side may add


def last_line(module: str, *words: object) -> Any:
    """What a module of this room, run in a process of its own, prints last. Raises: RuntimeError with the end of what it said if it failed."""
    command = [sys.executable, "-m", f"{__package__}.{module}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed with\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(row: Row, side: str, threads: int, quick: bool, nanogpt: Path | None) -> dict[str, Any]:
    """One process of one side."""
    return last_line("side", row.name, side, threads, *(["--quick"] if quick else []), *(["--nanogpt", nanogpt] if nanogpt else []))


def compare(row: Row, quick: bool = False, nanogpt: Path | None = None) -> dict[str, Any]:
    """Measure both sides of a row in turns. Each side's value is the median of all its readings."""
    threads, load, sides = torch.get_num_threads(), os.getloadavg()[0], ["ours"] + (["peer"] if nanogpt or row.kind != "characters" else [])
    found: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(1 if quick else row.rounds):
        for side in sides:
            found[side].append(child(row, side, threads, quick, nanogpt))
    value = {side: statistics.median(reading for one in many for reading in one["readings"]) for side, many in found.items()}
    ours, peer = value["ours"], value.get("peer")
    ratio = None if peer is None else peer / ours if row.minimum else ours / peer
    line = {"name": row.name, "ours": ours, "peer": peer, "ratio": ratio, "ratio_is": "peer / ours" if row.minimum else "ours / peer",
            "bar": f"{'>=' if row.minimum else '<='} {row.bar}", "holds": None if ratio is None else ratio >= row.bar if row.minimum else ratio <= row.bar,
            "unit": row.unit, "threads": threads, "dtype": {side: many[0]["dtype"] for side, many in found.items()}}
    for name in MORE:
        if said := {side: many[-1][name] for side, many in found.items() if name in many[-1]}:
            line[name] = said
    spread = {side: [min(all_), max(all_)] for side, many in found.items() if (all_ := [reading for one in many for reading in one["readings"]])}
    merged = {name: number for many in found.values() for name, number in many[0]["versions"].items()}
    return line | {"range": spread, "readings": {side: sum(len(one["readings"]) for one in many) for side, many in found.items()}, "quick": quick,
                   "what": row.what, "peer_is": row.peer, "versions": merged, **machine(row), "load_before": round(load, 2),
                   "date": datetime.date.today().isoformat()}


def machine(row: Row) -> dict[str, str]:
    """The names of what a row was measured on."""
    return {"cpu": cpu_name()} | ({"gpu": torch.cuda.get_device_name()} if row.device == "cuda" and torch.cuda.is_available() else {})


def chosen(names: Sequence[str] | None, known: Iterable[str], called: str = "row") -> list[str]:
    """The names, or all that are known. Raises: KeyError for one that does not exist, with the nearest."""
    known = list(known)
    for name in names or ():
        if name not in known:
            raise KeyError(f"no {called} {name!r}{meant(name, known)}; there are {', '.join(known)}: name some of them, or none for all")
    return list(names or known)


def check(rows: list[Row], named: bool, nanogpt: Path | None) -> list[Row]:
    """The rows that can be measured here: without names, those that miss their data are left out with a word about it.

    Raises: ValueError for a peer that is not installed, and for a row that was asked for by name and has no data.
    """
    if importlib.util.find_spec("transformers") is None and any(row.kind in NEED_TRANSFORMERS for row in rows):
        raise ValueError('transformers is not installed; it is the peer of these rows: pip install "minitransfer[verify]", or choose others with --rows')
    if nanogpt is not None:
        check_clone(nanogpt)
    data = os.environ.get("MINITRANSFER_DATA")
    missing = [row for row in rows if row.data and not (data and (Path(data) / row.data).is_file())]
    if named and missing:
        raise ValueError(f"the row {missing[0].name}, and MINITRANSFER_DATA names no folder with {missing[0].data}; it reads that text: set the variable")
    return [row for row in rows if row not in missing]


def write(lines: list[dict[str, Any]]) -> Path:
    """Put the lines into the file of this machine; rows measured earlier and not now stay. Returns: the file."""
    name = lines[0].get("gpu", cpu_name()).lower()
    return kept(RESULTS / (re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".json"), {line["name"]: line for line in lines})


def kept(path: Path, lines: dict[str, Any]) -> Path:
    """Put lines into a file of results beside those it has. Returns: the file."""
    path.parent.mkdir(exist_ok=True)
    write_json(path, (read_json(path) if path.exists() else {}) | lines)
    return path


def run(names: Sequence[str] | None = None, quick: bool = False, nanogpt: str | Path | None = None, save: bool = False, gpu: bool = False) -> list[dict[str, Any]]:
    """Compare our side with its peers on this CPU, or on this GPU, and print a JSON line per row as soon as there is one.

    Args:    names: of the rows, default all; quick: one reading per side, to see that everything runs (a GPU's rows then run on a machine without one too, with
             tiny models); nanogpt: a clone of nanoGPT, the peer of `characters` (without it that row has our side only) and of `gpt2-step`;
             save: also write bench/results/<this machine>.json, row by row; gpu: the rows of a GPU.
    Returns: the lines. Each value is a median of readings taken after a warm-up, by processes of either side in turns; `ratio_is` says of what it is one.
    Raises:  KeyError for an unknown row; ValueError for a peer, data or a GPU that is not there, and for saving a quick run.
    """
    if quick and save:
        raise ValueError("a quick run, to be saved; one reading is no measurement: run without quick, or do not save")
    if gpu and not quick and not torch.cuda.is_available():
        raise ValueError("bench gpu without a GPU; its rows are measured on an NVIDIA GPU: run it there, or with --dry-run to see that the scripts work")
    clone = None if nanogpt is None else Path(nanogpt).expanduser()
    lines = []
    rows = gpu_rows.ROWS if gpu else ROWS
    for row in check([rows[name] for name in chosen(names, rows)], bool(names), clone):
        lines.append(compare(row, quick, clone))
        print(json.dumps(lines[-1]), flush=True)
        if save:
            print(f"written: {write(lines[-1:])}", file=sys.stderr)
    return lines
