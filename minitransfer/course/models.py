"""What answers are put into: small models whose every parameter was moved, and batches with padding."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..nn.model import Model

MOVED = 0.05        # at their own start most norms and biases are constants, and a swap goes unseen


def moved(source: str, head: str = "auto", **more) -> Model:
    """A bundled model, each of its parameters moved by N(0, MOVED), in evaluation mode."""
    model, generator = Model.from_pretrained(source, head=head, **more).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * MOVED)
    return model


def padded(model: Model, lengths: tuple[int, ...] = (13, 7, 1)) -> dict[str, Tensor]:
    """Random ids, padded on the right."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(10, model.config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]}


def states_and_gradients(model: Model) -> Callable[[], Mapping[str, Tensor]]:
    """A forward and a backward pass: every state at the tokens, and every gradient."""
    batch = padded(model)
    keep = batch["attention_mask"]

    def run() -> dict[str, Tensor]:
        model.attention = "reference"
        model.zero_grad()
        out = model(**batch, output_hidden_states=True)
        assert out.hidden_states is not None
        ((out.hidden_states[-1] * keep[..., None]).square().sum() / keep.sum()).backward()
        found = {f"state {i}": (state * keep[..., None]).detach() for i, state in enumerate(out.hidden_states)}
        return found | {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return run
