"""One side of `verify`, in this process, so that its memory is its own: `python -m minitransfer.checks.side FOLDER ours|reference THREADS ROWS LENGTH`.

It loads the folder and answers with a line of JSON; each line it is then given is answered with the seconds of one forward pass, the line "end" with its memory.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..families import read_config
from ..nn.model import Model
from ..training.memory import peak_memory, reset_peak
from ..weights.files import read_json
from .reference import class_and_head, load_reference

CPU = torch.device("cpu")


def loaded(folder: Path, side: str, head: str) -> tuple[Callable[..., Any], str]:
    """The model as a user gets it, with the attention each library chooses."""
    if side == "ours":
        model = Model.from_pretrained(folder, head=head)
        return model, model.attention
    theirs = load_reference(folder, attention=None).model
    return theirs, str(theirs.config._attn_implementation)


def main() -> None:
    folder, side, (threads, rows, length) = Path(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:])
    torch.set_num_threads(threads)
    _, config = read_config(read_json(folder / "config.json"))
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    _, head = class_and_head(folder)                    # imports what either side needs, before anything is measured
    reset_peak(CPU)
    imported, start = peak_memory(CPU), time.perf_counter()
    model, attention = loaded(folder, side, head)
    print(json.dumps({"load_seconds": time.perf_counter() - start, "attention": attention}), flush=True)
    if side == "reference" and head == "choice":
        ids = ids[None]
    more = {"decoder_input_ids": ids} if head in ("none", "seq2seq") and read_json(folder / "config.json").get("is_encoder_decoder") else {}
    with torch.no_grad():
        for line in sys.stdin:
            if line.strip() == "end":
                break
            start = time.perf_counter()
            model(input_ids=ids, **more)
            print(json.dumps(time.perf_counter() - start), flush=True)
    print(json.dumps({"peak_bytes": peak_memory(CPU), "before_loading_bytes": imported}), flush=True)


if __name__ == "__main__":
    main()
