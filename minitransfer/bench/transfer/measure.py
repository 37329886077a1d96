"""All sets and both sides, a process for each pair, as many at a time as there are cores, one thread each; then one file and one table."""
from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...training.throughput import cpu_name
from ...weights.files import write_json
from ..compare import RESULTS, chosen
from .sets import SETS, body, data_folder
from .speed import PACES, depth, pace
from .studies import STUDIES
from .table import summaries, table

RESULT = RESULTS / "transfer_cpu.json"
WITHOUT_TWIN = ("trec", "ag_news", "sms_spam", *STUDIES)


def jobs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Set and side of each process."""
    return [(name, side) for name in names for side in (("ours",) if name in WITHOUT_TWIN else ("ours", "twin"))]


def produced(job: tuple[str, str], folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """The lines of one process as they come. Raises: RuntimeError with the end of what it said if it failed."""
    command = [sys.executable, "-m", "minitransfer.bench.transfer.job", *job, "1", str(folder)] + (["--quick"] if quick else [])
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout if line.startswith("{\""))
        if process.wait():
            said.seek(0)
            raise RuntimeError(f"{' '.join(job)} failed with\n{said.read()[-2000:]}")


def measure(job: tuple[str, str], folder: Path, quick: bool) -> None:
    """Run one process and keep each of its lines at once."""
    for line in produced(job, folder, quick):
        with open(folder / "lines.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({name: line[name] for name in ("set", "side", "method", "seed", "value", "seconds") if name in line}), flush=True)


def run(names: Sequence[str] | None = None, quick: bool = False, save: bool = False, folder: str | Path = "runs/bench-transfer") -> dict[str, Any]:
    """Tune on real labelled sets, our side and the twin's, and print one table.

    Args:    names: of SETS, default all; quick: a few rows and one seed, to see that everything runs; save: also write bench/results/transfer_cpu.json.
             folder: keeps every line; a run that was cut off goes on from there.
    Returns: what is written. Values are percents of the validation file, means over seeds.
    Raises:  KeyError for an unknown set; ValueError without the data or the body, or for saving a quick run.
    """
    if quick and save:
        raise ValueError("a quick run, to be saved; a few rows are no measurement: run without quick, or do not save")
    wanted, folder = chosen(names, SETS, "set"), Path(folder) / ("quick" if quick else "full")
    data_folder(), body()
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        for done in [pool.submit(measure, job, folder, quick) for job in jobs(wanted)]:
            done.result()
    paces = [pace(name, quick) for name in wanted if name in PACES]
    lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    found = {"cpu": cpu_name(), "date": datetime.date.today().isoformat(), "quick": quick, "sets": summaries(lines), "paces": paces, "depth": depth(quick), "lines": lines}
    print(table(found))
    if save:
        write_json(RESULT, found)
    return found
