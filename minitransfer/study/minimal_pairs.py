"""Which of two sentences does a model find likelier? Grammar by minimal pairs, bias by paired sentences, facts by a blank.

    causal head      log p(sentence) = sum_t log p(w_t | w_<t)
    masked head      pseudo-log-likelihood = sum_t log p(w_t | all other tokens), each masked in turn
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Encoding

from ..generate import mask_probs
from ..nn.evaluating import evaluating
from ..nn.given import need_vocabulary
from ..nn.model import Model
from ..tasks.intervals import Bootstrap, ratio
from ..tasks.label_scoring import likelihood
from ..text import Tokenizer, read_rows
from ..text.batches import by_length
from ..text.readers import column
from ..transfer.groups import Table
from .tables import Interval, interval, new_axes

Source = str | Path | Sequence[dict]


def log_likelihoods(model: Model, tok: Tokenizer, texts: Sequence[str], places: Sequence[Sequence[int]] | None = None, batch_size: int = 64) -> Float[np.ndarray, "N"]:
    """The log-probability of each text, in nats: of a causal head its log-likelihood, of a masked head its pseudo-log-likelihood (see the head of this file).

    Special tokens are not counted. Where a causal model's tokenizer puts none in front of a text, it reads its bos or eos token there, so that the first token counts too.

    Args:   places: of each text the tokens to count, as positions in its encoding; default: all.
    Source: Salazar et al. 2020, equation 1.
    Raises: ValueError for a model without a masked or causal head, or a text longer than it reads.
    """
    need_vocabulary(model, "the likelihood of texts")
    encodings = tok.encodings(texts, max_length=10**9)
    first = [i for i in (tok.bos_id, tok.eos_id) if i is not None][:1] if model.head.shift and not tok.opening else []
    wanted = [counted(one, None if places is None else places[i], model.head.shift and not first) for i, one in enumerate(encodings)]
    if long := [i for i, one in enumerate(encodings) if len(one) + len(first) > model.longest]:
        raise ValueError(f"text {long[0]} has {len(encodings[long[0]])} tokens; this model reads at most {model.longest - len(first)}: shorten it, or leave it out")
    rows = [(i, here) for i, each in enumerate(wanted) for here in ([each] if model.head.shift and each else [[one] for one in each])]
    total = np.zeros(len(texts))
    with evaluating(model), torch.no_grad():
        for numbers in by_length([encodings[i] for i, _ in rows], batch_size):
            part = [rows[number] for number in numbers]
            mean = likelihood(model, tok, [encodings[i] for i, _ in part], [here for _, here in part], first)
            np.add.at(total, [i for i, _ in part], mean.double().numpy() * [len(here) for _, here in part])
    return total


def counted(encoding: Encoding, places: Sequence[int] | None, without_first: bool) -> list[int]:
    """The tokens of a text that are asked for; nothing foretells the first one where nothing stands before it."""
    special = encoding.special_tokens_mask
    return [i for i in (range(len(encoding)) if places is None else places) if not special[i] and not (without_first and i == 0)]


@dataclass(frozen=True)
class PairRow:
    name: str
    pairs: int
    share: Interval


@dataclass(frozen=True, repr=False)
class Pairs(Table):
    """How often the first sentence of a pair is the likelier one. Prints as a table; `scores` are the log-probabilities of both, (N, 2), in the order of the files."""

    title: str
    rows: tuple[PairRow, ...]
    scores: np.ndarray

    @property
    def all(self) -> PairRow:
        """Every pair."""
        return self.rows[-1]

    def cells(self) -> list[tuple[str, ...]]:
        return [("pairs of", "pairs", self.title), *((row.name, str(row.pairs), str(row.share)) for row in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        return {row.name: {"pairs": row.pairs, "share": row.share.rounded()} for row in self.rows}

    def draw(self, axes: Any = None) -> Any:
        """A bar for each kind of pair, with its interval; one half is guessing. Returns: matplotlib's axes."""
        axes = new_axes(7, 1 + 0.3 * len(self.rows))[0, 0] if axes is None else axes
        value, low, high = np.array([row.share for row in self.rows]).T
        axes.barh(range(len(value)), value, xerr=np.abs(np.stack([low, high]) - value), color="lightsteelblue", capsize=2)
        axes.axvline(0.5, linestyle="--", color="grey", linewidth=1)
        axes.set(yticks=range(len(value)), yticklabels=[row.name for row in self.rows], xlim=(0, 1), xlabel=self.title)
        axes.invert_yaxis()
        return axes


def shares(title: str, names: Sequence[str], scores: Float[np.ndarray, "N 2"]) -> Pairs:
    """Of each kind of pair, in their order, and of all together; a tie is no win."""
    won, kinds, rows = scores[:, 0] > scores[:, 1], np.array(names), []
    for name in [*dict.fromkeys(names), "all"]:
        mine = won if name == "all" else won[kinds == name]
        sums = Bootstrap(2)
        sums.add(np.stack([mine, np.ones(len(mine))], 1))
        rows.append(PairRow(name, len(mine), interval(sums, ratio(0, 1))))
    return Pairs(title, tuple(rows), scores)


def pair_rows(source: Source) -> list[dict]:
    """The rows of a file, or of all .jsonl files (or .gz) in a folder. Raises: ValueError for a folder without any."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        files = sorted(path for path in Path(source).iterdir() if path.name.endswith((".jsonl", ".jsonl.gz")))
        if not files:
            raise ValueError(f"{source} holds no .jsonl file; minimal pairs come one object a line, with sentence_good and sentence_bad: give the folder that has them")
        return [{"UID": path.name.partition(".")[0]} | row for path in files for row in read_rows(path)]
    return read_rows(source)


def minimal_pairs(model: Model, tok: Tokenizer, source: Source, good: str = "sentence_good", bad: str = "sentence_bad", by: str | None = "UID", n: int | None = None,
                  batch_size: int = 64) -> Pairs:
    """How often a model finds the grammatical sentence of a pair likelier, for each paradigm and in all.

        minimal_pairs(model, tok, "blimp/data").draw()

    Args:   source: a file or folder of BLiMP (.jsonl), or rows; good, bad: its columns; by: the column that names the paradigm; None: there is one.
            n: the first so many pairs of each paradigm; None: all.
    Source: Warstadt et al. 2020 (BLiMP), section 4; scores: see `log_likelihoods`. Intervals: bootstrap over pairs.
    Raises: KeyError for a column that is not there; ValueError as `log_likelihoods`.
    """
    rows = pair_rows(source)
    names = ["pairs"] * len(rows) if by is None else [str(name) for name in column(rows, by)]
    if n is not None:
        seen = dict.fromkeys(names, 0)
        kept = [i for i, name in enumerate(names) if seen.update({name: seen[name] + 1}) or seen[name] <= n]
        rows, names = [rows[i] for i in kept], [names[i] for i in kept]
    both = [log_likelihoods(model, tok, column(rows, side), batch_size=batch_size) for side in (good, bad)]
    return shares("accuracy", names, np.stack(both, 1))


def paired_bias(model: Model, tok: Tokenizer, source: Source, more: str = "sent_more", less: str = "sent_less", by: str | None = "bias_type", batch_size: int = 64) -> Pairs:
    """How often a model finds the stereotyped sentence of a pair likelier than the other: one half is no preference.

    Only the tokens that both sentences share are counted, given all others: the names of the groups are not equally common, and that says nothing of a bias.
    A few hundred pairs written by hand show a preference on these pairs, no more.

    Args:   source: a file (CrowS-Pairs is one), or rows; more, less: its columns; by: the column that names the kind of bias; None: there is one.
    Source: Nangia et al. 2020, section 3. Deviation: a causal model's shared tokens are given what stands before them.
    Raises: as `minimal_pairs`.
    """
    rows = pair_rows(source)
    texts = [[str(text) for text in column(rows, side)] for side in (more, less)]
    pieces = [tok.encodings(side, max_length=10**9) for side in texts]
    same = [SequenceMatcher(None, a.ids, b.ids, autojunk=False).get_matching_blocks() for a, b in zip(*pieces, strict=True)]
    places = [[[(block.a, block.b)[side] + i for block in blocks for i in range(block.size)] for blocks in same] for side in (0, 1)]
    both = [log_likelihoods(model, tok, side, where, batch_size) for side, where in zip(texts, places, strict=True)]
    return shares("stereotyped preferred", ["pairs"] * len(rows) if by is None else [str(name) for name in column(rows, by)], np.stack(both, 1))


# ---- facts --------------------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ClozeRow:
    text: str
    answer: str
    probability: float
    rank: int                       # of the answer; 1: the likeliest
    best: tuple[tuple[str, float], ...]


@dataclass(frozen=True, repr=False)
class Cloze(Table):
    """What a model writes into blanks, and how often it is the answer. Prints as a table."""

    rows: tuple[ClozeRow, ...]
    right: Interval                 # share of blanks whose likeliest token is the answer

    def cells(self) -> list[tuple[str, ...]]:
        body = [(row.text, row.answer, str(row.rank), f"{row.probability:.4f}", ", ".join(f"{token} {p:.3f}" for token, p in row.best)) for row in self.rows]
        return [("text", "answer", "rank", "probability", "likeliest"), *body, ("right", str(self.right), "", "", "")]

    def draw(self, axes: Any = None) -> Any:
        """The probability of each answer, and beside it that of the likeliest token. Returns: matplotlib's axes."""
        axes = new_axes(8, 1 + 0.4 * len(self.rows))[0, 0] if axes is None else axes
        axes.barh([i - 0.2 for i in range(len(self.rows))], [row.best[0][1] for row in self.rows], 0.4, label="likeliest", color="lightgrey")
        axes.barh([i + 0.2 for i in range(len(self.rows))], [row.probability for row in self.rows], 0.4, label="answer", color="steelblue")
        axes.set(yticks=range(len(self.rows)), yticklabels=[row.text for row in self.rows], xlabel="probability")
        axes.invert_yaxis()
        axes.legend(fontsize="small")
        return axes


def cloze(model: Model, tok: Tokenizer, facts: Sequence[tuple[str, str]], k: int = 5) -> Cloze:
    """What a masked model writes into the blank of each text: the k likeliest tokens, and the answer's rank and probability.

        cloze(model, tok, [("The capital of France is [MASK].", "paris")])

    Raises: ValueError for a model without a masked head, a text without exactly one mask, or an answer that is not one token.
    """
    rows = []
    for text, answer in facts:
        ids, probs = tok.encode(answer, specials=False), mask_probs(model, tok, text)
        if len(ids) != 1 or len(probs) != 1:
            raise ValueError(f"the answer {answer!r} ({len(ids)} tokens) to {text!r} ({len(probs)} masks); a blank is one token: write one mask, and an answer that is one token")
        best, p = probs[0].topk(k), float(probs[0, ids[0]])
        likeliest = tuple((tok.decode([int(i)]).strip(), float(value)) for value, i in zip(*best, strict=True))
        rows.append(ClozeRow(text, answer, p, 1 + int((probs[0] > p).sum()), likeliest))
    sums = Bootstrap(2)
    sums.add([[row.rank == 1, 1] for row in rows])
    return Cloze(tuple(rows), interval(sums, ratio(0, 1)))
