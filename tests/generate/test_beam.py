"""Beam search against the reference library's, for a decoder and an encoder-decoder: every way to stop, every sign of the length penalty."""
import pytest
import torch

import minitransfer as mt
from minitransfer.beam import beam_search
from minitransfer.checks.parity import batch
from minitransfer.nn.writing import Writing
from tests.families.cases import CASES

STOP = list(range(1, 101, 4))      # a quarter of all tokens, so that some texts end and some do not
NEW = 11


@pytest.fixture(scope="module", params=["t5-T5ForConditionalGeneration", "bart-BartForConditionalGeneration", "gpt2-GPT2LMHeadModel"])
def models(request, tmp_path_factory):
    name, class_name = request.param.split("-")
    folder = tmp_path_factory.mktemp(name)
    reference = next(case for case in CASES if case.name == name).reference(class_name, scale=0.3)
    reference.save_pretrained(folder)
    return reference, mt.Model.from_pretrained(folder)


def ended(row, prompt, stop=STOP):
    """The new tokens of a row, up to its first stop id."""
    new = row[prompt:].tolist()
    return new[: next((i + 1 for i, token in enumerate(new) if token in stop), len(new))]


@pytest.mark.parametrize("early_stopping, length_penalty", [(False, 1.0), (False, -1.0), (True, 0.5), ("never", 2.0), ("never", 0.0)])
def test_ids_are_identical(models, early_stopping, length_penalty):
    reference, ours = models
    seq2seq = ours.head_name == "seq2seq"
    ids, keep = batch(101, [7, 3, 5, 6, 2, 4], left=not seq2seq)               # (the reference counts padding on the left as positions of an encoder)
    more = {"num_beams": 4, "early_stopping": early_stopping, "length_penalty": length_penalty, "max_new_tokens": NEW}
    cached, plain = (mt.generate(ours, ids, keep, stop=STOP, precision="fp32", use_cache=use_cache, **more) for use_cache in (True, False))
    want = reference.generate(ids, attention_mask=keep.long(), do_sample=False, eos_token_id=STOP, pad_token_id=0, **more)
    prompt = 1 if seq2seq else 7
    texts = [ended(row, prompt) for row in want]
    assert [ended(row, prompt) for row in cached] == texts
    assert torch.equal(cached, plain)
    assert length_penalty > 0.5 or min(map(len, texts)) < NEW          # stop ids were reached where short texts win


class Written(Writing):
    """What beam_search needs of a Writing, without a model."""

    def __init__(self, rows):
        self.ids = torch.zeros(rows, 1, dtype=torch.long)

    def select(self, rows):
        self.ids = self.ids[rows]

    def add(self, tokens):
        self.ids = torch.cat([self.ids, tokens], 1)


def test_by_hand():
    """Token 1 looks best at first and leads nowhere: 0.6 x 0.2 < 0.4 x 0.9. Greedy takes it, two beams do not."""
    second = {0: [0.0, 0.6, 0.4], 1: [0.4, 0.4, 0.2], 2: [0.9, 0.05, 0.05]}

    def log_probs(writing):
        return torch.tensor([second[int(row[-1])] for row in writing.ids]).log()
    assert beam_search(Written(1), 1, 2, log_probs).tolist() in ([[0, 1, 0]], [[0, 1, 1]])
    assert beam_search(Written(1), 2, 2, log_probs).tolist() == [[0, 2, 0]]


def test_errors(models):
    _, ours = models
    ids = torch.full((1, 3), 5)
    assert torch.equal(mt.generate(ours, ids, max_new_tokens=5, num_beams=1), mt.generate(ours, ids, max_new_tokens=5))
    with pytest.raises(ValueError, match=r"num_beams=3 with temperature=0.7; beams are 1 or more and look for the likeliest text, nothing is sampled: leave"):
        mt.generate(ours, ids, num_beams=3, temperature=0.7)
    with pytest.raises(ValueError, match=r"num_beams=0 with"):
        mt.generate(ours, ids, num_beams=0)
    with pytest.raises(ValueError, match=r"early_stopping='soon'; it is one of True, False, 'never': choose one"):
        mt.generate(ours, ids, num_beams=2, early_stopping="soon")
