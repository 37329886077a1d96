"""Batches that teach a decoder to answer: the loss is on the response alone, and on the token that ends it."""
from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn.heads import IGNORE
from .batches import EncodedBatches
from .pairs import stacked
from .readers import column, read_rows
from .tokenizer import Tokenizer

INPUTS, RESPONSES = ("input", "context"), ("output", "response")      # Alpaca's words for them, and Dolly's


def read_instructions(source: Any) -> list[dict[str, Any]]:
    """Rows of `prompt` and `response` (and `chosen` and `rejected`, of preferences) from files in the fields of Alpaca or Dolly; other columns stay.

        instruction, input, output            Alpaca; input may be empty or absent
        instruction, context, response        Dolly
        instruction, input, chosen, rejected  preferences

    The prompt is the instruction and, where there is one, the input on the next line.

    Args:    source: anything `read_rows` reads.
    Raises:  KeyError for a row without an instruction or any response; and what `read_rows` raises.
    """
    rows = read_rows(source)
    found = []
    for i, (row, instruction) in enumerate(zip(rows, column(rows, "instruction"), strict=True)):
        prompt = [part for part in (instruction, *(row.get(name) for name in INPUTS)) if part and part.strip()]
        answer = next((row[name] for name in RESPONSES if name in row), None)
        if answer is None and not {"chosen", "rejected"} <= row.keys():
            raise KeyError(f"row {i} has {', '.join(map(repr, row))} and no response; one is needed, as 'output', 'response', or 'chosen' and 'rejected': "
                           "name the column so")
        found.append({**row, "prompt": "\n".join(prompt)} | ({} if answer is None else {"response": answer}))
    return found


class InstructionBatches(EncodedBatches):
    """`EncodedBatches` of prompts followed by responses and the end token; train them with the causal objective.

    Before the prompt stand the special tokens that `tok(...)` puts there.
    Prompt and response are tokenised apart, so that where one ends and the other begins is known; a response may want to begin with a space.
    The end token is a target also where it has the same id as padding: what is padding is told by position, not by id.

    Args:    rows: dicts with a `prompt` and a `response`. template: what stands around the prompt.
             max_length: in tokens; a longer response loses its end, and is then not followed by the end token.
    Yields:  what `tok(...)` gives, and labels (B, T): the ids where the loss is, -100 elsewhere.
    Raises:  ValueError for a tokenizer without an end token, an empty response, or a prompt that leaves no room for one.
    Warns:   how many responses were cut.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], tok: Tokenizer, prompt: str = "prompt", response: str = "response", template: str = "{prompt}\n",
                 batch_size: int | None = None, max_tokens: int | None = None, max_length: int | None = None, seed: int = 0):
        if tok.eos_id is None:
            raise ValueError("a tokenizer without an end token; a model that is to stop has to learn one: use the tokenizer of a decoder")
        limit = max_length or tok.max_len or 10**9
        asked, answers = tok.encode_batch([template.format(prompt=p) for p in column(rows, prompt)]), tok.encode_batch(column(rows, response))
        asked = [tok.opening + before for before in asked]
        for i, (before, after) in enumerate(zip(asked, answers, strict=True)):
            if not after:
                raise ValueError(f"row {i} has an empty {response!r}; there must be something to learn: fill it in, or drop the row")
            if len(before) >= limit:
                raise ValueError(f"row {i} has a prompt of {len(before)} tokens, and a row holds {limit}; the response needs room: "
                                 "shorten the prompt, or give a larger max_length")
        whole = [np.array([*before, *after, tok.eos_id]) for before, after in zip(asked, answers, strict=True)]
        if cut := sum(len(one) > limit for one in whole):
            warnings.warn(f"{cut} of {len(whole)} responses lost their ends to fit into {limit} tokens", UserWarning, stacklevel=2)
        ids = [one[:limit] for one in whole]
        super().__init__(ids, [np.zeros(len(one), np.int8) for one in ids], torch.tensor([len(before) for before in asked]), tok, batch_size, max_tokens, seed,
                         response)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        batch = super().rows(indices)
        place = torch.arange(batch["input_ids"].shape[1])                        # (T,)
        asked = (place >= batch["labels"][:, None]) & batch["attention_mask"]
        return batch | {"labels": batch["input_ids"].masked_fill(~asked, IGNORE)}

    def show(self, batch: dict[str, Tensor]) -> list[str]:
        """The texts of a batch, without padding, and in each what the loss is on between >>> and <<<."""
        shown = []
        for ids, labels, keep in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            before, after = (ids[keep & part].tolist() for part in (labels == IGNORE, labels != IGNORE))
            shown.append(f"{self.tok.decode(before, skip_specials=False)}>>>{self.tok.decode(after, skip_specials=False)}<<<")
        return shown


class PreferenceBatches(InstructionBatches):
    """Prompts with two responses each, the better one first: rows 0 ... B - 1 of a batch are chosen, rows B ... 2 B - 1 rejected, of the same prompts.

    Args: rows: dicts with a `prompt`, a `chosen` and a `rejected` response; batch_size: pairs. The others are those of `InstructionBatches`.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], tok: Tokenizer, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected",
                 template: str = "{prompt}\n", batch_size: int = 8, max_length: int | None = None, seed: int = 0):
        super().__init__(rows, tok, prompt, chosen, template, batch_size, None, max_length, seed)
        self.rejected = InstructionBatches(rows, tok, prompt, rejected, template, batch_size, None, max_length, seed)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        better, worse = super().rows(indices), self.rejected.rows(indices)
        return stacked(better, worse, {"input_ids": self.tok.filler, "labels": IGNORE})
