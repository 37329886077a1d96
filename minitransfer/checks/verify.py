"""The parity certificate: a checkpoint through transformers and through this engine, compared module by module."""
from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn.groups import GROUP
from ..nn.model import Model
from ..report import Table
from ..tasks.predict import tuned_folder
from ..text import Tokenizer
from ..training.throughput import cpu_name
from ..weights.files import read_json, write_json
from ..weights.sources import resolve
from ..weights.tensors import shards
from .modules import Comparison, ModuleRow, explain, listening, module_pairs
from .parity import Difference, batch, compare_gradients, compare_outputs
from .precision import DTYPES, PrecisionRow, compare_precision
from .reference import Reference, load_reference, perturbed

WITHOUT_LOSS = ("none", "embedding")
SHORTEST = 5                                    # tokens; the labels of a span lie inside
ROWS = 3                                        # of the batch that is timed
ROUNDING = 1e-9                                 # in fp64, what the order of sums may change


@dataclass(frozen=True, repr=False)
class ModuleTable(Table):
    """Every module in the order of execution: name here, name in the file, differences of what it makes."""

    rows: tuple[ModuleRow, ...]

    def cells(self) -> list[tuple[str, ...]]:
        body = [(row.module, row.in_file, f"{row.made.largest:.1e}", f"{row.made.mean:.1e}", f"{row.made.error:.1e}", "-" if row.read is None else f"{row.read:.1e}")
                for row in self.rows]
        return [("module", "in the file", "max", "mean", "relative", "given"), *body]


@dataclass(frozen=True)
class Certificate:
    """What `verify` found. Prints as a report; `modules` is the whole table; `to_dict` is what the file holds."""

    source: str
    class_name: str
    head: str
    sha256: dict[str, str]                      # of each file of weights
    versions: dict[str, str]
    processor: str
    settings: dict[str, Any]
    modules: ModuleTable
    outputs: tuple[Difference, ...]             # states, attention, logits, loss, gradients: the worst of each
    precision: tuple[PrecisionRow, ...]
    left_out: dict[str, str]                    # modules without a row, and why
    first: str | None                           # what diverges first, in the order of execution
    cause: str                                  # where to look
    cost: dict[str, Any] | None                 # seconds and bytes of both sides

    @property
    def holds(self) -> bool:
        return self.first is None

    @property
    def error(self) -> float:
        """The largest relative error there is, in fp32."""
        return max(one.error for one in (*(row.made for row in self.modules.rows), *self.outputs))

    def to_dict(self) -> dict[str, Any]:
        rows = [{"module": row.module, "in_file": row.in_file, "given_error": row.read, **numbers(row.made)} for row in self.modules.rows]
        return {"source": self.source, "class": self.class_name, "head": self.head, "sha256": self.sha256, "versions": self.versions, "processor": self.processor,
                "settings": self.settings, "modules": rows, "outputs": [{"what": one.what} | numbers(one) for one in self.outputs],
                "precision": [asdict(row) | {"holds": row.holds} for row in self.precision], "left_out": self.left_out, "largest_error": self.error,
                "holds": self.holds, "first": self.first, "cause": self.cause, "cost": self.cost}

    def groups(self) -> list[tuple[str, float]]:
        """The worst relative error of each layer group, and of states, attention, outputs, loss and gradients."""
        found: dict[str, float] = {}
        for row in self.modules.rows:
            match = GROUP.match(row.module)
            group = match[0] if match else row.module
            found[group] = max(found.get(group, 0.0), row.made.error)
        for one in self.outputs:
            kind = {"state": "states", "attention": "attention maps", "gradient": "gradients"}.get(one.what.split()[0], one.what.removesuffix(" (fast)"))
            found[kind] = max(found.get(kind, 0.0), one.error)
        return list(found.items())

    def __str__(self) -> str:
        bar, width = self.settings["bar"], max(len(name) for name, _ in [("part of the model", 0.0), *self.groups()])
        lines = [f"{self.source}: {self.class_name} of transformers {self.versions['transformers']} beside {self.head!r} here",
                 f"  {'part of the model':<{width + 2}}  largest relative error (at most {bar:.0e})"]
        lines += [f"  {name:<{width + 2}}  {error:.1e}" + ("" if error <= bar else "  too large") for name, error in self.groups()]
        lines += [f"  {row}" for row in self.precision]
        lines += [f"  {line}" for line in cost_lines(self.cost)]
        if self.left_out:
            lines.append(f"  without a row of their own: {', '.join(self.left_out)}")
        return "\n".join([*lines, "holds" if self.holds else f"does not hold: {self.first} is the first that diverges; {self.cause}"])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>{self.modules._repr_html_()}"


def numbers(one: Difference) -> dict[str, float]:
    return {"largest": one.largest, "mean": one.mean, "scale": one.scale, "error": one.error}


def cost_lines(cost: dict[str, Any] | None) -> list[str]:
    if cost is None:
        return []
    ours, theirs = cost["ours"], cost["reference"]
    return [f"a forward pass of {cost['rows']} x {cost['length']} tokens: {1000 * ours['seconds']:.1f} ms here, {1000 * theirs['seconds']:.1f} ms there "
            f"({ours['attention']}, {theirs['attention']} attention, {cost['threads']} threads)",
            f"peak memory of loading and that pass, beyond the imports: {ours['bytes'] / 2**20:.0f} MiB here, {theirs['bytes'] / 2**20:.0f} MiB there"]


def verify(source: str | Path, *, texts: Sequence[str] | None = None, lengths: Sequence[int] | None = None, dtypes: Sequence[str] = ("fp32",), perturb: float = 0.0,
           bar: float = 1e-5, gradients: bool = True, repeats: int = 5, seed: int = 0, out: str | Path | None = None, revision: str | None = None) -> Certificate:
    """Put the same inputs through a checkpoint as transformers loads it (eager attention) and as this engine does, and compare everything in between.

    fp32 holds if max |ours - theirs| <= bar * max(1, max |theirs|) for what every module makes, every state, attention map and output, the loss and every gradient;
    bf16 and fp16 if our mean distance from the fp64 truth is no larger than theirs (see checks.precision). What is beyond the bar is compared in fp64 too: `cause` says
    whether it is more than rounding.

    Args:    source: a folder, a bundled name or a hub id; texts: through the folder's tokenizer, else random ids; lengths: of the longest row, in tokens, each with
             left and right padding (default: two, the second past a sliding window of up to 512 tokens); dtypes: of "fp32" "bf16" "fp16"; perturb: standard
             deviation of what is added to every parameter first (0.1 shows tensors that were swapped while still constant); bar: for fp32; repeats: timed
             forward passes of either side in turns (0: none, and no memory); out: write the certificate there as JSON.
    Raises:  ValueError without transformers, without config.json or weights, or for a class it does not have; KeyError for a family we do not have.
    """
    if unknown := set(dtypes) - set(DTYPES):
        raise ValueError(f"dtypes={list(dtypes)}; they are of {', '.join(DTYPES)}: remove {', '.join(sorted(unknown))}")
    folder = tuned_folder(source) if revision is None else resolve(source, revision)
    theirs, hashes = load_reference(folder), file_hashes(folder)
    with perturbed(theirs, folder, perturb, seed) as place:
        ours = Model.from_pretrained(place, head=theirs.head)
        sizes = checked_lengths(ours, lengths)
        inputs = list(batches(ours, sizes, read_json(place / "config.json").get("pad_token_id"), seed) if texts is None else tokenized(folder, ours, texts))
        compared, outputs = compare_all(theirs, ours, inputs, gradients)
        lower = [row for name in dtypes if name != "fp32" for row in compare_precision(place, name, theirs.class_name, inputs)]
        cost = measured(place, repeats, min(sizes[-1], ours.longest)) if repeats else None
    rows = list(compared.rows.values())
    first, cause = explain(rows, bar)
    if first is None:
        first = next((one.what for one in outputs if not one.error <= bar), None) or next((f"{row.what} in {row.dtype}" for row in lower if not row.holds), None)
        cause = "every module agrees where it was compared: look at what happens between and after them" if first else ""
    if not all(one.error <= bar for one in (*(row.made for row in rows), *outputs)):
        cause += in_double(theirs, ours, inputs, gradients)
    settings = {"texts": None if texts is None else list(texts), "lengths": None if texts else sizes, "dtypes": list(dtypes), "perturb": perturb, "bar": bar,
                "gradients": gradients, "seed": seed, "attention": "eager", "window": ours.config.window}
    found = Certificate(str(source), theirs.class_name, theirs.head, hashes, {name: version(name) for name in ("torch", "transformers", "minitransfer")}, cpu_name(),
                        settings, ModuleTable(tuple(rows)), tuple(outputs), tuple(lower), compared.left_out, first, cause, cost)
    if out is not None:
        write_json(Path(out), found.to_dict())
    return found


def file_hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(shards(folder)):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def checked_lengths(model: Model, lengths: Sequence[int] | None) -> list[int]:
    """Raises: ValueError for a length the model cannot read."""
    window = model.config.window
    if lengths is None:
        lengths = [min(n, model.longest) for n in (13, 31 if window is None or window > 512 else max(31, window + 7))]
    if wrong := [n for n in lengths if not SHORTEST <= n <= model.longest]:
        raise ValueError(f"lengths={list(lengths)}; this model reads up to {model.longest} tokens, and labels need {SHORTEST}: give others than {wrong}")
    return list(lengths)


Batch = tuple[Tensor, Tensor, Tensor | None]


def batches(model: Model, lengths: Iterable[int], pad: int | None, seed: int) -> Iterable[Batch]:
    """Random ids in rows of three lengths, padded on the right and on the left. None is the padding token: some classes of transformers look for it."""
    n_types = min(2, model.config.n_token_types)
    for longest in lengths:
        for left in (False, True):
            ids, keep = batch(model.config.vocab_size, [longest, SHORTEST, max(SHORTEST, longest // 2)], left, seed)
            ids = ids.where(ids != pad, ids - 1) if pad is not None else ids
            yield ids, keep, torch.randint(0, n_types, ids.shape, generator=torch.Generator().manual_seed(seed)) if n_types else None


def tokenized(folder: Path, model: Model, texts: Sequence[str]) -> Iterable[Batch]:
    tok = Tokenizer.from_pretrained(folder)
    for side in ("right", "left"):
        made = tok(list(texts), max_length=model.longest, padding_side=side)
        types = made.get("token_type_ids")
        yield made["input_ids"], made["attention_mask"], torch.zeros_like(made["input_ids"]) if types is None and model.config.n_token_types else types


def compare_all(theirs: Reference, ours: Model, inputs: list[Batch], gradients: bool) -> tuple[Comparison, list[Difference]]:
    """Modules, states, attention and outputs over all inputs, then loss and gradients on the shortest rows cut to one length. Of each, the worst."""
    pairs = module_pairs(theirs.model, ours)
    compared = Comparison(pairs)
    worst: dict[str, Difference] = {}
    for ids, keep, types in inputs:
        with listening(ours, [pair.ours for pair in pairs]) as here, listening(theirs.model, [pair.theirs for pair in pairs]) as there:
            found = compare_outputs(theirs.model, ours, ids, keep, types)
        compared.add(here, there, [keep, *here.masks])
        for one in found:
            worst[one.what] = max(worst.get(one.what, one), one, key=lambda d: d.error)
    if gradients and theirs.head not in WITHOUT_LOSS:
        ids, keep, types = inputs[0]                                             # padded on the right; without its mask the padding is text like any other,
        pad = getattr(theirs.model.config, "pad_token_id", None)
        if pad is not None and bool((ids[~keep] == pad).any()):                  # unless it is padding tokens, whose vector does not train there
            n = int(keep.sum(1).min())
            ids, types = ids[:, :n], None if types is None else types[:, :n]
        worst |= {one.what: one for one in compare_gradients(theirs.model, ours, ids, types)}
    return compared, list(worst.values())


def in_double(theirs: Reference, ours: Model, inputs: list[Batch], gradients: bool) -> str:
    """What the same comparison finds in fp64: a model that computes something else differs there as much, one that rounds in another order does not."""
    theirs.model.double()
    compared, outputs = compare_all(theirs, ours.double(), inputs, gradients)
    worst = max(one.error for one in (*(row.made for row in compared.rows.values()), *outputs))
    return f". In fp64 the largest relative error is {worst:.1e}" + (": both compute the same, and fp32 rounds it in two orders" if worst < ROUNDING else "")


def measured(folder: Path, repeats: int, length: int) -> dict[str, Any]:
    """Seconds of a forward pass, and the most memory beyond the imports, each side in a process of its own; passes are taken in turns after one that warms up.

    Raises: RuntimeError with the end of what a side said, if it failed.
    """
    threads, sides = torch.get_num_threads(), ("ours", "reference")
    command = [sys.executable, "-m", "minitransfer.checks.side", str(folder)]
    found: dict[str, dict[str, Any]] = {}
    running = {side: subprocess.Popen([*command, side, *map(str, (threads, ROWS, length))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                      env=os.environ | {"HF_HUB_OFFLINE": "1"}) for side in sides}

    def answer(side: str, word: str | None) -> Any:
        process = running[side]
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        if word is not None:
            process.stdin.write(word + "\n")
            process.stdin.flush()
        if line := process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"the side {side!r} failed with\n{process.stderr.read()[-2000:]}")
    try:
        for side in sides:
            found[side] = answer(side, None) | {"readings": []}
        for turn in range(repeats + 1):
            for side in sides:
                seconds = answer(side, "go")
                if turn:
                    found[side]["readings"].append(seconds)
        for side in sides:
            memory = answer(side, "end")
            found[side] |= memory | {"bytes": memory["peak_bytes"] - memory["before_loading_bytes"], "seconds": statistics.median(found[side]["readings"])}
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return found | {"rows": ROWS, "length": length, "threads": threads}
