"""Beam search: the texts that are most likely as a whole are looked for among the n likeliest beginnings of each length.

    score of a finished text y of t tokens = log p(y) / t^length_penalty

A text is finished by a stop id or by the last token it may have. The search of a row ends when no running beginning can win any more:

    early_stopping   False     when n texts are finished and the best beginning, ended now, would score below the worst of them
                     True      as soon as n texts are finished
                     "never"   as False, but with length_penalty > 0 a beginning is judged as if it grew to the full length with its log p of now

Source: Wu et al. 2016, section 7 (with t^a for their ((5 + t) / 6)^a and no coverage); the three ways to stop are those of the transformers library.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .nn.writing import Writing

OUT = -1e9              # the score of what is not, or no longer, in the race


@dataclass
class Finished:
    """The n best finished texts of each row, the best one first; `done`: which of them are texts yet."""

    ids: Int[Tensor, "B n T"]
    scores: Float[Tensor, "B n"]
    done: Bool[Tensor, "B n"]
    length: Int[Tensor, "B n"]

    def merge(self, ids: Tensor, scores: Float[Tensor, "B w"], done: Bool[Tensor, "B w"], length: int) -> None:
        """Let these texts, of one length, in where they score higher."""
        tail = ids[..., -1:].expand(-1, -1, self.ids.shape[-1] - ids.shape[-1])  # a text that is shorter than others ends in its stop id
        pairs = [(self.ids, torch.cat([ids, tail], -1)), (self.scores, scores), (self.done, done), (self.length, torch.full_like(done, length, dtype=torch.long))]
        every_ids, every_score, every_done, every_length = (torch.cat(pair, 1) for pair in pairs)
        self.scores, best = every_score.topk(self.scores.shape[1])
        self.ids, self.done, self.length = picked(every_ids, best), every_done.gather(1, best), every_length.gather(1, best)


def picked(ids: Int[Tensor, "B w T"], which: Int[Tensor, "B n"]) -> Int[Tensor, "B n T"]:
    return ids.gather(1, which[..., None].expand(-1, -1, ids.shape[-1]))


def beam_search(writing: Writing, n: int, max_new_tokens: int, log_probs: Callable[[Writing], Float[Tensor, "N V"]], stop: Sequence[int] = (),
                length_penalty: float = 1.0, early_stopping: bool | str = False) -> Int[Tensor, "B T"]:
    """The best text of each row, found with n beams; what is shorter than the longest one is filled with its stop id.

    Args: n: beams; log_probs: of the next token of each text that is being written; length_penalty > 0 favours long texts, < 0 short ones.
    """
    B, prompt = writing.ids.shape
    device, stops = writing.ids.device, torch.tensor(list(stop), dtype=torch.long, device=writing.ids.device)
    writing.select(torch.arange(B, device=device).repeat_interleave(n))
    running = torch.full((B, n), OUT, device=device)                             # log p of each beginning
    running[:, 0] = 0                                                            # the n are one text yet
    finished = Finished(writing.ids.new_zeros(B, n, prompt + max_new_tokens), torch.full_like(running, OUT), torch.zeros_like(running, dtype=torch.bool),
                        writing.ids.new_zeros(B, n))
    open_ = torch.ones(B, 1, dtype=torch.bool, device=device)                    # rows where something can be won yet
    width = max(2, 1 + len(stops)) * n                                           # so that n remain if every one of the best n ends
    for t in range(1, max_new_tokens + 1):
        total = running[..., None] + log_probs(writing).unflatten(0, (B, n))     # (B, n, V)
        V = total.shape[-1]
        top, index = total.flatten(1).topk(min(width, n * V))                    # (B, w)
        beam, token = index // V, index % V
        ended = torch.isin(token, stops) if t < max_new_tokens else torch.ones_like(token, dtype=torch.bool)
        counts = ended & (torch.arange(len(ended[0]), device=device) < n)
        wins = counts & open_ & ~(finished.done.all(1, keepdim=True) & (early_stopping is True))
        texts = torch.cat([picked(writing.ids.unflatten(0, (B, n)), beam), token[..., None]], -1)
        finished.merge(texts, (top / t**length_penalty).masked_fill(~wins, OUT), wins, t)
        running, chosen = top.masked_fill(ended, OUT).topk(n)
        writing.select((beam.gather(1, chosen) + n * torch.arange(B, device=device)[:, None]).flatten())
        writing.add(token.gather(1, chosen).view(-1, 1))
        length = max_new_tokens if early_stopping == "never" and length_penalty > 0 else t
        worst = finished.scores.min(1, keepdim=True).values.masked_fill(~finished.done.all(1, keepdim=True), OUT)
        open_ = open_ & (running[:, :1] / length**length_penalty > worst)
        if not bool(open_.any()) or (early_stopping is True and bool(finished.done.all())) or bool(ended.all()):
            break
    return finished.ids[:, 0, : prompt + int(finished.length[:, 0].max())]
