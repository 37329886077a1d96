"""Do the vectors of one word lie apart where it means different things? Layer by layer, from a few sentences for each sense."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Encoding

from ..nn.model import Model
from ..tasks.intervals import ends
from ..text import Tokenizer
from ..transfer.features import Reading, read_body, rows_of
from ..transfer.groups import Table
from .tables import Interval, draw_line, draw_squares, new_axes

REPLICATES = 1000
WORD = re.compile(r"\w+")


def find_word(text: str, word: str) -> tuple[int, int]:
    """Where the word stands in a text, in characters; whole words only, in any case.

    Raises: ValueError for a word that the text does not have, or has twice.
    """
    found = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]
    if len(found) != 1:
        raise ValueError(f"the word {word!r} in {text!r}, which has it {len(found)} times; it is looked for as a whole word and has to stand there once: "
                         + ("change the sentence" if found else "give the form that the sentence has"))
    return found[0]


def states_of(model: Model, tok: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[Encoding, Float[np.ndarray, "L T D"]]]:
    """Each text's encoding with its hidden states: the embeddings, then one layer after each block."""
    for encoding in tok.encodings(texts, max_length=model.longest):
        (row,) = rows_of(tok.collate([encoding.ids], [encoding.type_ids]))
        (states,) = read_body(model, [row], Reading(tuple(range(model.config.n_layers + 1)), "each"))
        yield encoding, states.float().cpu().unflatten(1, (model.config.n_layers + 1, -1)).transpose(0, 1).numpy()


def pieces_at(encoding: Encoding, start: int, end: int) -> list[int]:
    """The positions of the tokens that stand, wholly or in part, between two characters."""
    return [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > max(start, a)]


def word_vector(encoding: Encoding, states: Float[np.ndarray, "L T D"], text: str, word: str) -> Float[np.ndarray, "L D"]:
    """The word's vector in each layer, the mean over its pieces. Raises: ValueError for a word that was cut off with the end of a long text."""
    if not (pieces := pieces_at(encoding, *find_word(text, word))):
        raise ValueError(f"the word {word!r} stands behind what this model reads of {text!r:.60}; it reads {len(encoding)} tokens: shorten the text")
    return states[:, pieces].mean(1)


def distances(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    """Euclidean."""
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def between_by_within(distance: Float[np.ndarray, "N N"], sense: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The mean distance of pairs with different senses, divided by that of pairs with one sense, for each of R draws: row i was drawn times[r, i] times.

    A sentence beside itself is no pair. A draw without a distance within a sense gives NaN.
    """
    same, pairs = sense[:, None] == sense[None], np.triu(np.ones_like(distance, bool), 1)
    weights = times[:, :, None] * times[:, None, :]                             # (R, N, N)
    between, within = (np.divide((weights * distance * kind).sum((1, 2)), n := (weights * kind).sum((1, 2)), out=np.full(len(times), np.nan), where=n > 0)
                       for kind in (pairs & ~same, pairs & same))
    return between / np.where(within > 0, within + 1e-8, np.nan)


@dataclass(frozen=True, repr=False)
class Separation(Table):
    """Of one word: how far its senses lie apart in each layer. Prints as a table; `draw` shows the ratios, `draw_pca` the vectors themselves."""

    word: str
    sense: tuple[str, ...]                  # of each sentence
    vectors: np.ndarray                     # (L + 1, N, D): of the word, layer by layer
    ratio: tuple[Interval, ...]             # mean distance between senses / mean distance within, of each layer
    corrected: tuple[Interval, ...]         # the same with every dimension divided by its standard deviation over all tokens
    anisotropy: np.ndarray                  # (L + 1,): mean cosine of two tokens of different sentences

    def cells(self) -> list[tuple[str, ...]]:
        body = [(str(i) if i else "embed", str(ratio), str(corrected), f"{cosine:.3f}")
                for i, (ratio, corrected, cosine) in enumerate(zip(self.ratio, self.corrected, self.anisotropy, strict=True))]
        return [("layer", "between / within", "standardised", "anisotropy"), *body]

    def draw(self, axes: Any = None) -> Any:
        """Both ratios by layer, with their intervals; at 1 the senses are mixed. Returns: matplotlib's axes."""
        axes = new_axes(7, 4)[0, 0] if axes is None else axes
        layers = np.arange(len(self.ratio))
        draw_line(axes, layers, list(self.ratio), "between / within")
        draw_line(axes, layers, list(self.corrected), "the same, standardised")
        axes.axhline(1.0, linestyle="--", color="grey", linewidth=1)
        axes.set(xlabel="layer (0: embeddings)", ylabel="ratio of distances", title=f"{self.word!r}: {', '.join(dict.fromkeys(self.sense))}", xticks=layers,
                 ylim=(0, 2 * max(one.value for one in (*self.ratio, *self.corrected))))        # the interval of a few sentences may reach very far
        axes.legend(fontsize="small")
        return axes

    def pca(self, layer: int) -> Float[np.ndarray, "N 2"]:
        """The word's vectors of a layer in the plane in which they vary most; the signs of the two axes are free.

        Raises: ValueError for a layer that the model does not have.
        """
        if not -len(self.vectors) <= layer < len(self.vectors):
            raise ValueError(f"layer {layer} of a model with {len(self.vectors) - 1} blocks; 0 are the embeddings and i is the state after block i: "
                             f"give 0 to {len(self.vectors) - 1}")
        centred = self.vectors[layer] - self.vectors[layer].mean(0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        return (u * s)[:, :2]

    def draw_pca(self, layers: Sequence[int] | None = None) -> np.ndarray:
        """A picture for each layer (default: all), a colour for each sense. Returns: (rows, columns) of matplotlib's axes."""
        layers = range(len(self.vectors)) if layers is None else layers
        planes = [self.pca(layer) for layer in layers]
        rows = -(-len(planes) // 3)
        grid = new_axes(9.6, 2.8 * rows, rows, 3)
        for axes in grid.flat[len(planes):]:
            axes.set_axis_off()
        for axes, layer, plane in zip(grid.flat, layers, planes, strict=False):
            for sense in dict.fromkeys(self.sense):
                mine = np.array(self.sense) == sense
                axes.scatter(plane[mine, 0], plane[mine, 1], label=sense)
            axes.set(title=f"layer {layer}: {self.ratio[layer].value:.2f}", xticks=[], yticks=[])
        grid[0, 0].legend(fontsize="small")
        return grid


def separation_ratio(model: Model, tok: Tokenizer, senses: Mapping[str, Sequence[str]], word: str, seed: int = 0) -> Separation:
    """How far the senses of a word lie apart in each layer: mean_{between} |x_i - x_j| / (mean_{within} |x_i - x_j| + 1e-8), over pairs of sentences.

    x is the word's hidden state, the mean over its pieces; the word is found by its characters. Beside it the same after dividing every dimension by its standard
    deviation over the tokens of all sentences: a few dimensions of a contextual model are so large that they alone decide on distances.

        separation_ratio(model, tok, {"money": ["She put it in the bank.", ...], "river": ["They sat on the bank.", ...]}, "bank").draw()

    Args:   senses: sense -> sentences that have the word once, in this sense. Of two sentences each there is one way to draw a pair: the interval is a point.
    Source: standardisation: Timkey & van Schijndel 2021, section 4; anisotropy: Ethayarajh 2019, section 3.3. Intervals: bootstrap over the sentences of each sense.
    Raises: ValueError for fewer than two senses, or sentences of one; for a word that a sentence does not have, or has twice;
             for vectors that are not finite, or the same in all sentences of a sense.
    """
    if len(senses) < 2 or min(map(len, senses.values())) < 2:
        raise ValueError(f"senses with {', '.join(f'{len(texts)} sentences of {name!r}' for name, texts in senses.items()) or 'nothing'}; pairs within and between senses are "
                         "compared: give two senses or more, with two sentences or more each")
    sense = tuple(name for name, texts in senses.items() for _ in texts)
    found, tokens = [], []
    texts = [text for group in senses.values() for text in group]
    for text, (encoding, states) in zip(texts, states_of(model, tok, texts), strict=True):
        found.append(word_vector(encoding, states, text, word))
        tokens.append(states[:, np.array(encoding.special_tokens_mask) == 0])
    vectors, every = np.stack(found, 1).astype(float), np.concatenate(tokens, 1).astype(float)       # (L + 1, N, D), (L + 1, M, D)
    if not np.isfinite(vectors).all():
        raise ValueError(f"vectors of {word!r} that are not finite; distances between them mean nothing: look at the weights of the model (minitransfer doctor)")
    if any((group == group[:, :1]).all() for group in np.split(vectors, np.cumsum([len(group) for group in senses.values()])[:-1], 1)):
        raise ValueError(f"a sense whose sentences all give the same vectors of {word!r}; distances within a sense are compared: give sentences that differ")
    times = np.concatenate([np.random.default_rng(seed).multinomial(len(group), [1 / len(group)] * len(group), REPLICATES) for group in senses.values()], 1)
    spread = every.std(1, keepdims=True)
    scale = np.where(spread > 1e-6 * spread.mean(2, keepdims=True), spread, np.inf)                  # a dimension that never changes says nothing
    plain, standard = ([measured(layer, np.array(sense), times) for layer in x] for x in (vectors, vectors / scale))
    return Separation(word, sense, vectors, tuple(plain), tuple(standard), np.array([mean_cosine(layer, [t.shape[1] for t in tokens]) for layer in every]))


def measured(x: Float[np.ndarray, "N D"], sense: np.ndarray, times: np.ndarray) -> Interval:
    distance = distances(x)
    draws = between_by_within(distance, sense, times)
    return Interval(float(between_by_within(distance, sense, np.ones((1, len(x))))[0]), *ends(draws[~np.isnan(draws)]))


def mean_cosine(x: Float[np.ndarray, "M D"], lengths: Sequence[int]) -> float:
    """Of two tokens of different sentences."""
    unit, text = x / np.linalg.norm(x, axis=1, keepdims=True), np.repeat(np.arange(len(lengths)), lengths)
    return float((unit @ unit.T)[text[:, None] != text[None]].mean())


# ---- neighbours ---------------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, repr=False)
class Neighbours(Table):
    """The words nearest to one word in its sentence, in each layer. Prints as a table; `rows` hold (word, number of its text, cosine)."""

    word: str
    text: str
    rows: tuple[tuple[tuple[str, int, float], ...], ...]

    def cells(self) -> list[tuple[str, ...]]:
        head = ("layer", *(f"{i + 1}" for i in range(len(self.rows[0]))))
        return [head, *((str(i) if i else "embed", *(f"{word} ({text}) {cosine:.2f}" for word, text, cosine in row)) for i, row in enumerate(self.rows))]

    def draw(self, axes: Any = None) -> Any:
        """The words, on a ground that is darker where they are nearer. Returns: matplotlib's axes."""
        near = np.array([[cosine for _, _, cosine in row] for row in self.rows])
        axes = new_axes(1.5 + 1.4 * near.shape[1], 1.0 + 0.4 * len(near))[0, 0] if axes is None else axes
        draw_squares(axes, near, [[f"{word} ({text})" for word, text, _ in row] for row in self.rows])
        axes.set(xticks=range(near.shape[1]), xticklabels=range(1, near.shape[1] + 1), yticks=range(len(near)), xlabel="rank", ylabel="layer (0: embeddings)",
                 title=f"nearest to {self.word!r} in {self.text!r:.50}")
        return axes


@torch.no_grad()
def neighbours(model: Model, tok: Tokenizer, text: str, word: str, texts: Sequence[str], k: int = 5) -> Neighbours:
    """The k words of `texts` whose vectors point most in the direction of `word` in `text`, in each layer: cosines of x - mean, where the mean is over all words.

    Taking out the mean is what makes cosines of a contextual model differ: without it all are near 1 in upper layers (Mu & Viswanath 2018, section 2).

    Raises: ValueError for a word that the text does not have, or has twice, and for fewer than k words.
    """
    here, where, vectors = word_vector(*next(states_of(model, tok, [text])), text, word), [], []
    for number, (one, (encoding, states)) in enumerate(zip(texts, states_of(model, tok, texts), strict=True)):
        for match in WORD.finditer(one):
            if pieces := pieces_at(encoding, *match.span()):
                where.append((match[0], number))
                vectors.append(states[:, pieces].mean(1))
    if len(where) < k:
        raise ValueError(f"{len(where)} words to look for the {k} nearest among; there have to be as many: give more texts, or a smaller k")
    every = np.stack(vectors, 1)                                                 # (L + 1, M, D)
    mean = every.mean(1, keepdims=True)
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12) for x in (every - mean, here[:, None] - mean))
    cosine = (a * b).sum(-1)                                                     # (L + 1, M)
    return Neighbours(word, text, tuple(tuple((*where[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:k]) for row in cosine))
