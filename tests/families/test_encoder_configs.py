"""Encoders: what a config.json may not say, and where dropout stands in training."""
from __future__ import annotations

import pytest
import torch

import minitransfer as mt
from minitransfer.families import read_config
from minitransfer.ops import dropout as ours

from .cases import ALL, CASES

BY_NAME = {case.name: case for case in CASES}
ENCODERS = ("distilbert", "electra", "albert", "mpnet")
ELSEWHERE = {"distilbert": {"dropout": 0.0}, "albert": {"hidden_dropout_prob": 0.0}}     # ours drops the output of both sub-layers, theirs of one
PLACES = [(case, name) for case, name in ALL if case.name in ENCODERS and case.classes[name] != "none"]


@pytest.mark.parametrize("family, change, named", [
    ("distilbert", {"activation": "mish"}, "activation='mish'"), ("distilbert", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ("electra", {"summary_type": "mean"}, "summary_type='mean'"), ("electra", {"summary_use_proj": False}, "summary_use_proj=False"),
    ("electra", {"summary_activation": "tanh"}, "summary_activation='tanh'"), ("electra", {"summary_first_dropout": 0.1}, "summary_first_dropout=0.1"),
    ("electra", {"summary_proj_to_labels": True}, "summary_proj_to_labels=True"), ("electra", {"is_decoder": True}, "is_decoder=True"),
    ("electra", {"add_cross_attention": True}, "add_cross_attention=True"), ("electra", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ("albert", {"num_hidden_groups": 2}, "num_hidden_groups=2"), ("albert", {"inner_group_num": 3}, "inner_group_num=3"),
    ("albert", {"hidden_act": "mish"}, "hidden_act='mish'"), ("albert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets=16"), ("mpnet", {"hidden_act": "mish"}, "hidden_act='mish'")])
def test_a_field_that_changes_the_maths_is_an_error_that_names_it(family, change, named):
    config = BY_NAME[family].config("Model").to_dict()
    read_config(config)
    with pytest.raises(ValueError, match=f"{named} in config.json; .*: use another checkpoint"):
        read_config(config | change)


def lessened(x, p=0.5, training=True, inplace=False):
    """Stands for dropout: as strong as its rate, without chance."""
    return x * (1 - p / 2) if training else x


@pytest.mark.parametrize("case, name", PLACES, ids=[f"{case.name}-{name}" for case, name in PLACES])
def test_dropout_stands_where_it_does_in_the_reference(case, name, tmp_path, monkeypatch):
    """In training, every rate a different number, but those that the pages say to differ."""
    fields = [field for field in case.config(name).to_dict() if "dropout" in field]
    rates = {field: 0.03 + 0.04 * i for i, field in enumerate(fields)} | ELSEWHERE.get(case.name, {})
    reference = case.reference(name, scale=0.3, **rates)
    reference.save_pretrained(tmp_path)
    model = mt.Model.from_pretrained(tmp_path)
    model.attention = "reference"
    monkeypatch.setattr(torch.nn.functional, "dropout", lessened)
    monkeypatch.setattr(ours, "dropout", lambda x, rate: lessened(x, rate))
    for place in ("nn.attention", "ops.norm"):                                     # where it was imported by name
        monkeypatch.setattr(f"minitransfer.{place}.dropout", lambda x, rate: lessened(x, rate))
    ids = torch.randint(3, case.vocab, (1, 13), generator=torch.Generator().manual_seed(0))
    out, said = model.train()(ids), reference.train()(ids[None] if model.head_name == "choice" else ids)
    pairs = [(out.logits[..., 0], said.start_logits)] if model.head_name == "span" else [
        (out.logits, said.prediction_logits), (out.next_logits, said.sop_logits)] if model.head_name == "masked+next" else [(out.logits, said.logits)]
    for mine, theirs in pairs:
        assert (mine - theirs).abs().max() <= 1e-5 * max(1, float(theirs.detach().abs().max()))
    assert (out.last_hidden_state - model.eval()(ids).last_hidden_state).abs().max() > 1e-2
