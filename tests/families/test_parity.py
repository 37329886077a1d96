"""Parity of every family with the reference library: states, attention, logits, loss and the gradient of every parameter."""
import re
from functools import cache

import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.checks.parity import batch, compare_gradients, compare_outputs
from minitransfer.families import FAMILIES

from .cases import ALL, CASES, IDS, slow_after_the_first

LEARN = [(case, name) for case, name in ALL if case.classes[name] != "none"]
WRITERS = [pytest.param(case, name, marks=[pytest.mark.slow] if case.heads else [], id=f"{case.name}-{name}") for case, name in ALL
           if case.classes[name] in ("causal", "seq2seq")]


def check(found, bar):
    wrong = [f"{one.what}: {one.error:.2e}" for one in found if not one.error <= bar]
    assert found and not wrong, f"above {bar:.0e}: {wrong}"


def loaded(case, name, folder):
    reference = case.reference(name)
    reference.save_pretrained(folder)
    model = mt.Model.from_pretrained(folder)
    assert model.head_name == case.classes[name]
    return reference, model


@pytest.mark.parametrize("case, name", ALL, ids=IDS)
def test_states_attention_and_logits(case, name, tmp_path):
    reference, model = loaded(case, name, tmp_path)
    for longest in case.lengths:
        for left in (False, True):
            ids, keep = batch(case.vocab, [longest, 5, 11], left)
            types = torch.randint(0, 2, ids.shape) if case.token_types else None
            check(compare_outputs(reference, model, ids, keep, types), case.bar)


@pytest.mark.parametrize("case, name", slow_after_the_first(LEARN), ids=[f"{case.name}-{name}" for case, name in LEARN])
def test_loss_and_every_gradient(case, name, tmp_path):
    reference, model = loaded(case, name, tmp_path)
    ids, _ = batch(case.vocab, [17, 17, 17], left=False)
    types = torch.randint(0, 2, ids.shape) if case.token_types else None
    check(compare_gradients(reference, model, ids, types), case.bar)


@pytest.mark.parametrize("case, name", slow_after_the_first(ALL), ids=IDS)
def test_round_trip(case, name, tmp_path):
    """What we save has the names and the values of what the reference saves, and it reads ours back. The size is equal to the unit."""
    reference, model = loaded(case, name, tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    theirs, ours = (dict(mt.weights.tensors.read_tensors(tmp_path / side)) for side in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = getattr(transformers, name).from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert all(torch.equal(a, b) for a, b in zip(reference.state_dict().values(), again.state_dict().values(), strict=True))
    kept = {tensor.data_ptr(): tensor.numel() for tensor in reference.state_dict().values()}        # parameters, and constants that are saved; tied ones once
    assert sum(p.numel() for p in model.parameters()) == sum(kept.values())


@pytest.mark.parametrize("case, name", WRITERS)
def test_greedy_text_is_identical(case, name, tmp_path):
    """With a cache and without, rows padded on either side and past the window: the ids of each row alone."""
    reference, model = loaded(case, name, tmp_path)
    new, want = 19, []
    begin = {"decoder_input_ids": torch.tensor([[reference.config.decoder_start_token_id]])} if model.config.start_id is None else {}
    for left in (False, True):
        ids, keep = batch(case.vocab, [13, 4, 9], left)
        rows = [row[kept] for row, kept in zip(ids, keep, strict=True)]             # the same texts on either side
        want = want or [reference.generate(row[None], do_sample=False, max_new_tokens=new, min_new_tokens=new, eos_token_id=None)[0] for row in rows]
        for use_cache in (True, False):
            got = mt.generate(model, ids, attention_mask=keep, max_new_tokens=new, use_cache=use_cache, precision="fp32", **begin)
            for row, alone, text in zip(rows, got, want, strict=True):
                assert alone[0 if model.head_name == "seq2seq" else 13 - len(row) :].tolist() == text.tolist()


@cache
def names_of_the_reference():
    return dir(transformers)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_class_of_the_reference_has_a_head_or_a_reason(case):
    stem = FAMILIES[case.model_type].page.MODEL_TYPES[case.model_type]
    theirs = {name for name in names_of_the_reference() if re.fullmatch(rf"{stem}(Model|EncoderModel|LMHeadModel|DoubleHeadsModel|For\w+)", name)}
    ours = set(FAMILIES[case.model_type].heads) | {stem + ending for ending in case.without}
    assert case.heads or theirs == ours, theirs ^ ours
