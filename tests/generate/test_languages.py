"""What a text begins with where the config does not say it all: the token of a language, alone or behind the start id."""
import pytest
import torch

import minitransfer as mt
from minitransfer.checks.parity import batch
from tests.families.cases import CASES

NEW = 7


@pytest.fixture(scope="module", params=["mbart-MBartForConditionalGeneration", "m2m-100-M2M100ForConditionalGeneration"])
def models(request, tmp_path_factory):
    name, class_name = request.param.rsplit("-", 1)
    folder = tmp_path_factory.mktemp(name)
    reference = next(case for case in CASES if case.name == name).reference(class_name, scale=0.3)
    reference.save_pretrained(folder)
    return reference, mt.Model.from_pretrained(folder)


@pytest.mark.parametrize("language, num_beams", [(97, 1), (101, 4)])
def test_each_language_as_in_the_reference(models, language, num_beams):
    """Its id in the place of the start id (mBART of 25 languages), and behind it: there a first token that is forced, and counted among the new ones."""
    reference, ours = models
    ids, keep = batch(103, [7, 3], left=False)                                   # (the reference counts padding on the left as positions)
    more = {"attention_mask": keep.long(), "num_beams": num_beams, "do_sample": False, "eos_token_id": None, "pad_token_id": 1, "max_new_tokens": NEW, "min_new_tokens": NEW}
    placed = reference.generate(ids, decoder_start_token_id=language, **more)
    forced = reference.generate(ids, decoder_start_token_id=2, forced_bos_token_id=language, **more)
    assert placed[0, 1:].tolist() != forced[0, 2:].tolist()
    for begin, want, new in (([[language]], placed, NEW), ([[2, language]] * 2, forced, NEW - 1)):
        for use_cache in (True, False):
            got = mt.generate(ours, ids, keep, max_new_tokens=new, num_beams=num_beams, decoder_input_ids=torch.tensor(begin), use_cache=use_cache, precision="fp32")
            assert got.tolist() == want.tolist()


def test_errors(models):
    _, ours = models
    ids = torch.full((2, 3), 5)
    with pytest.raises(ValueError, match=r"decoder_input_ids of shape \(3, 1\) for 2 texts; there is one row for all or one for each, of one token or more: pass"):
        mt.generate(ours, ids, decoder_input_ids=torch.full((3, 1), 5))
    with pytest.raises(ValueError, match=r"decoder_input_ids of shape \(1, 0\)"):
        mt.generate(ours, ids, decoder_input_ids=torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="60 tokens and 2 new ones; this model reads at most 61: ask for at most 1"):
        mt.generate(ours, ids, max_new_tokens=2, decoder_input_ids=torch.full((1, 61), 5))
    if ours.config.start_id is None:
        with pytest.raises(ValueError, match="no decoder_input_ids for a model whose start_id is None; its texts begin with the token of their language: give"):
            mt.generate(ours, ids)


def test_a_decoder_goes_on_from_its_ids():
    model = mt.Model(mt.ModelConfig(vocab_size=11, d_model=6, n_layers=1, n_heads=2, d_ff=7, max_len=13, causal=True), "causal")
    with pytest.raises(ValueError, match="decoder_input_ids for a model that has one stack of blocks; it goes on from the ids it is given: leave"):
        mt.generate(model, torch.full((2, 3), 5), decoder_input_ids=torch.full((1, 1), 5))
