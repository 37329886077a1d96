"""The LSTM: a state that is carried from token to token, and gates that say what of it is kept.

    i, f, o = sigmoid(W_i x_t + U_i h_{t-1} + b_i), ... f ..., ... o ...        g = tanh(W_g x_t + U_g h_{t-1} + b_g)
    c_t = f c_{t-1} + i g        h_t = o tanh(c_t)        with a projection: h_t = P (o tanh(c_t))

What is dropped, so that a recurrent network does not learn its texts by heart, is dropped alike at all positions of a text:

    locked      one mask for a text, on what goes into a layer:  y_t = x_t m / (1 - p)
    weights     one mask for a pass, on U: the state loses the same connections at every step
    words       one mask for a pass, on rows of the token table: a word is there everywhere or nowhere

Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; Gal & Ghahramani 2016 (masks that stay); Merity et al. 2018, sections 3 and 4.
"""
from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..config import RecurrentConfig
from ..ops.dropout import dropout

State = tuple[Float[Tensor, "N P"], Float[Tensor, "N C"]]        # h and c


def lstm_step(x: Float[Tensor, "N I"], state: State, W: Float[Tensor, "4*C I"], U: Float[Tensor, "4*C P"], b: Float[Tensor, "4*C"], P: Float[Tensor, "P C"] | None = None) -> State:
    """One step of the formulas above, to be read: PyTorch's LSTM, which runs, is tested against it. Gates stand in the order i, f, g, o."""
    h, c = state
    i, f, g, o = (x @ W.T + h @ U.T + b).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if P is None else h @ P.T), c


def locked_dropout(x: Float[Tensor, "N T D"], rate: float) -> Float[Tensor, "N T D"]:
    """Drop the same numbers at every position of a text."""
    return x * dropout(x.new_ones(len(x), 1, x.shape[2]), rate) if rate else x


class WordEmbeddings(nn.Module):
    """Token vectors; in training some words are left out wherever they stand."""

    def __init__(self, c: RecurrentConfig):
        super().__init__()
        self.tokens, self.rate, self.prompt = nn.Embedding(c.vocab_size, c.embed_width), c.rate("embed_dropout"), None

    def forward(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T E"]:
        """Raises: ValueError for an id outside the table."""
        V = self.tokens.num_embeddings
        try:
            x = self.tokens(ids)
        except IndexError:
            raise ValueError(f"token ids from {int(ids.min())} to {int(ids.max())}; this model has {V} of them, numbered from 0: "
                             "use the tokenizer the model was trained with, or resize_vocabulary") from None
        return x * dropout(x.new_ones(V), self.rate)[ids][..., None] if self.training and self.rate else x


def turned(x: Float[Tensor, "N T D"], lengths: Int[Tensor, "N"]) -> Float[Tensor, "N T D"]:
    """Each text from its end to its beginning, its padding still behind it. Done twice, nothing."""
    place = torch.arange(x.shape[1], device=x.device)[None]
    place = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return x.gather(1, place[..., None].expand_as(x))


class RecurrentBlock(nn.Module):
    """One layer: an LSTM, or one for each direction, side by side."""

    def __init__(self, c: RecurrentConfig, i: int):
        super().__init__()
        d_in, d_out = c.widths(i)
        cells, projection = (c.d_hidden, d_out) if c.projected else (d_out, 0)
        self.lstms = nn.ModuleList(nn.LSTM(d_in, cells, batch_first=True, proj_size=projection) for _ in range(c.directions))
        self.weight_dropout, self.residual = c.weight_dropout, c.residual and i > 0

    def forward(self, x: Float[Tensor, "N T D"], lengths: Int[Tensor, "N"], state: State | None = None) -> tuple[Float[Tensor, "N T F"], State]:
        """state: what the layer remembers, of one direction. Returns: the states of all positions (beyond a text's length 0), and the last ones of each text."""
        parts = x.chunk(len(self.lstms), -1)
        y, state = self.run(self.lstms[0], parts[0], lengths, state)
        if len(self.lstms) == 2:
            back, _ = self.run(self.lstms[1], turned(parts[1], lengths), lengths, None)
            y = torch.cat([y, turned(back, lengths)], -1)
        return (x + y if self.residual else y), state

    def run(self, lstm: nn.Module, x: Tensor, lengths: Tensor, state: State | None) -> tuple[Tensor, State]:
        U = lstm.get_parameter("weight_hh_l0")
        weights = {"weight_hh_l0": dropout(U, self.weight_dropout)} if self.training and self.weight_dropout else {}
        ragged = bool((lengths < x.shape[1]).any())
        given = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False) if ragged else x
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")      # the other path that it takes is right
            y, (h, c) = functional_call(lstm, weights, (given, None if state is None else (state[0][None], state[1][None])))
        return (pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0] if ragged else y), (h[0], c[0])
