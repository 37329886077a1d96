"""What a model holds, layer by layer: probes, senses and attention heads side by side, and beside them what articles say of such layers."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import samples
from ..config import RecurrentConfig
from ..nn.model import Model
from ..report import in_columns
from ..text import Tokenizer, read_rows
from ..transfer.groups import Table
from .heads import HeadAccuracy, head_accuracy
from .mix import Centre, centre_of_gravity
from .probe import Probe, probe
from .separation import Separation, separation_ratio
from .tables import draw_line, new_axes
from .treebank import Labels, Treebank, read_treebank

# What four of the articles of `claims` say that layers hold: bands of the same height, from the bottom of a body to its top; "": nothing is said
ROLES = {"S0": ("", "syntax", ""), "S1": ("syntax, morphology", "semantics", ""), "S2": ("surface", "syntax", "semantic roles", "the task"),
         "S3": ("co-occurrence", "syntax", "semantics")}


def roles_of(layer: int, layers: int) -> tuple[str, ...]:
    """What each article says of a layer: all the bands of which it has a part, of a body with so many layers."""
    def said(bands: Sequence[str]) -> str:
        return " / ".join(filter(None, bands[(layer - 1) * len(bands) // layers : -(-layer * len(bands) // layers)]))
    return tuple(said(bands) if layer else "" for bands in ROLES.values())


@dataclass(frozen=True, repr=False)
class LayerReport(Table):
    """Each result as its own function gives it. Prints as one table, a row a layer; `draw` shows curves above what the articles say.

    Columns: accuracy of each probe, and how much better it is than its control task; between / within of the senses; mean cosine of two tokens; how often the attention
    head of the block that does so most often finds a word's head; S0 to S3, the articles. Last row: centres of gravity.
    """

    probes: tuple[Probe, ...]
    centres: tuple[Centre, ...]         # of the same tasks
    separation: Separation
    heads: HeadAccuracy | None          # None: sentences without trees, or a body without attention

    @property
    def note(self) -> str:      # type: ignore[override]
        """Which layers may be the best ones."""
        def best(one: Probe) -> str:
            top = max(one.rows, key=lambda row: row.score.value)
            return f"{one.task} {top.layer} ({', '.join(str(row.layer) for row in one.rows if row.score.high >= top.score.low)})"
        return f"The best layer of each task (and those whose intervals overlap with its own): {'; '.join(map(best, self.probes))}."

    @property
    def best_heads(self) -> list[float]:
        """Of each block, how often its best attention head finds a word's head."""
        return [] if self.heads is None else self.heads.accuracy.max(1).tolist()

    def cells(self) -> list[tuple[str, ...]]:
        head = ("layer", *(f"{one.task} (selectivity)" for one in self.probes), "senses apart", "anisotropy", *(["best head"] if self.heads else []), *ROLES)
        body = [(str(i) if i else "embed", *(f"{one.rows[i].score} ({one.rows[i].selectivity.value:+.3f})" for one in self.probes), str(ratio), f"{cosine:.3f}",
                 *([f"{self.best_heads[i - 1]:.3f}" if i else ""] if self.heads else []), *roles_of(i, len(self.separation.ratio) - 1))
                for i, (ratio, cosine) in enumerate(zip(self.separation.ratio, self.separation.anisotropy, strict=True))]
        return [head, *body, ("centre", *(str(one.centre) for one in self.centres), *[""] * (len(head) - 1 - len(self.centres)))]

    def __str__(self) -> str:
        return f"{in_columns(self.cells())}\n{self.note}"

    def draw(self) -> Any:
        """Probes; senses, anisotropy and heads; what the articles say. Returns: matplotlib's axes of the probes."""
        (probes,), (others,), (said,) = new_axes(7, 8, 3)
        layers = np.arange(len(self.separation.ratio))
        for one in self.probes:
            draw_line(probes, layers, [row.score for row in one.rows], one.task)
        others.plot(layers, [one.value for one in self.separation.ratio], marker=".", label=f"{self.separation.word}: between / within")
        others.plot(layers, self.separation.anisotropy, marker=".", label="anisotropy")
        others.plot(layers[1:][: len(self.best_heads)], self.best_heads, marker=".", label="best attention head")
        for row, bands in enumerate(ROLES.values()):
            height = layers[-1] / len(bands)
            for band, words in enumerate(bands):
                if words:
                    said.barh(-row, height, left=0.5 + band * height, color="lightsteelblue", edgecolor="white")
                    said.text(0.5 + (band + 0.5) * height, -row, words, ha="center", va="center", fontsize="small")
        probes.set(ylabel=self.probes[0].title, title="what each layer holds")
        said.set(xlabel="layer (0: embeddings)", yticks=[-row for row in range(len(ROLES))], yticklabels=list(ROLES), title="what articles say it holds")
        for axes in (probes, others, said):
            axes.set(xticks=layers, xlim=(-0.2, layers[-1] + 0.5))
        for axes in (probes, others):
            axes.legend(fontsize="small")
        return probes


def layer_report(model: Model, tok: Tokenizer, treebank: Treebank, tasks: Sequence[str | Labels] = ("pos", "relation", "depth"), word: str = "bank",
                 senses: Mapping[str, Sequence[str]] | None = None, sentences: int | None = 500, folds: int = 3, seed: int = 0,
                 cache: str | Path | None = None) -> LayerReport:
    """What each layer of a model holds, beside what four articles say that it does: where they disagree, the curves decide for this model.

        print(layer_report(model, tok, "en_ewt-ud-dev.conllu"))

    Of each task `probe` and `centre_of_gravity`, of the word `separation_ratio`, of sentences with trees `head_accuracy`.

    Args:   tasks, sentences, folds, cache: as for `probe`. word, senses: as for `separation_ratio`; None: the bundled sentences that have the word (bank, bark, bat, ...).
    Raises: as these functions.
    """
    chosen = read_treebank(treebank, sentences, seed)
    if senses is None:
        every = read_rows(samples.path("senses.tsv"))
        rows = [row for row in every if row["word"] == word]
        if not rows:
            raise ValueError(f"word={word!r}, of which no sentences are bundled; there are some of {', '.join(sorted({row['word'] for row in every}))}: choose one, or give senses")
        senses = {sense: [row["text"] for row in rows if row["sense"] == sense] for sense in dict.fromkeys(row["sense"] for row in rows)}
    separation = separation_ratio(model, tok, senses, word, seed)
    given: dict[str, Any] = {"sentences": None, "folds": folds, "seed": seed, "cache": cache}
    probes = tuple(probe(model, tok, chosen, task, **given) for task in tasks)
    centres = tuple(centre_of_gravity(model, tok, chosen, task, **given) for task in tasks)
    trees = any(any(one.heads) for one in chosen) and not isinstance(model.config, RecurrentConfig)
    return LayerReport(probes, centres, separation, head_accuracy(model, tok, chosen, None, seed) if trees else None)
