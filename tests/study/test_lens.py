"""The logit lens is the reference's own head on the reference's own hidden states."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.study import logit_lens


@pytest.mark.parametrize("name", ["mini-bert", "mini-gpt"])
@torch.no_grad()
def test_every_layer_through_the_head_of_transformers(name, ours, theirs):
    text = "The old man went down to the river and"
    (model, tok), (reference, their_tok) = ours(name), theirs(name)
    found = logit_lens(model, tok, text)
    out = reference(**their_tok(text, return_tensors="pt"), output_hidden_states=True)
    last = len(out.hidden_states) - 1
    logits = [reference.cls(h) if name == "mini-bert" else reference.lm_head(h if i == last else reference.transformer.ln_f(h)) for i, h in enumerate(out.hidden_states)]
    log_p = torch.cat(logits).log_softmax(-1)                                    # (L + 1, T, V)
    torch.testing.assert_close(logits[-1], out.logits)
    np.testing.assert_allclose(found.probability, log_p.max(-1).values.exp(), atol=1e-5)
    np.testing.assert_allclose(found.divergence, (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1), atol=1e-4)
    assert found.best == tuple(tuple(their_tok.decode([i]).strip() for i in row) for row in log_p.argmax(-1).tolist())
    assert found.tokens == tuple(their_tok.convert_ids_to_tokens(their_tok(text)["input_ids"]))


def test_table_and_figure(ours):
    found = logit_lens(*ours("mini-gpt"), "The old $man went")
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "4", "3", "2", "1", "embed"] and lines[1].split()[1] == "0.00"
    axes = found.draw()
    assert len(axes.texts) == found.probability.size and axes.texts[-1].get_text() == found.best[-1][-1]
    np.testing.assert_array_equal(axes.images[0].get_array(), found.probability)
    axes.figure.canvas.draw()                                                    # a $ is no formula


def test_a_head_without_tokens(ours):
    with pytest.raises(ValueError, match='the logit lens of a model with head="none"'):
        logit_lens(mt.Model(ours("mini-bert")[0].config), ours("mini-bert")[1], "a text")
