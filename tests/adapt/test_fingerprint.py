"""An adapter knows its base: the same in every precision and under every head, another one is refused by name."""
import json

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minitransfer.nn.model import Model
from minitransfer.transfer import add_adapter, add_ia3, add_lora, add_prefix, add_soft_prompt, load_adapter, merge_lora, save_adapter
from minitransfer.transfer.fingerprint import fingerprint

from .test_lora import small

SEQUENCE, GPT2_LM = "BertForSequenceClassification", "GPT2LMHeadModel"


def test_it_is_the_bodys_alone():
    """Not of the head, the pooler, what is inserted, or a merge; of every tensor of the body."""
    model = small()
    known = fingerprint(model)
    assert set(known) == {"fp32", "fp16", "bf16"} and len(set(known.values())) == 3
    for change in (lambda m: m.set_head("token", ["a", "b"]), lambda m: m.set_head("none"), lambda m: add_adapter(m, 3), lambda m: add_ia3(m),
                   lambda m: add_prefix(m, 3), lambda m: add_soft_prompt(m, 3), lambda m: m.head.classifier.weight.data.zero_()):
        one = small_copy(model)
        change(one)
        assert fingerprint(one) == known
    one = small_copy(model)
    add_lora(one, targets="all")
    for name, p in one.named_parameters():
        p.data.add_("lora" in name)
    merge_lora(one)
    assert fingerprint(one) == known
    for name, _ in model.named_parameters():
        if not name.startswith(("head.", "pooler.")):
            one = small_copy(model)
            one.get_parameter(name).data += 0.1
            assert not set(fingerprint(one).values()) & set(known.values()), name


def test_shapes_count_where_all_values_are_the_same():
    """Bodies of ones: the same number of tensors, the same sampled values, one width other."""
    one, wider = small(), small(d_ff=61)
    for model in (one, wider):
        for p in model.parameters():
            p.data.fill_(1.0)
    assert not set(fingerprint(one).items()) & set(fingerprint(wider).items())


def small_copy(model: Model) -> Model:
    one = small()
    one.load_state_dict(model.state_dict())
    return one


def test_a_base_is_the_same_in_every_precision(twin):
    one = twin(SEQUENCE)
    whole = fingerprint(one.ours())
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        low = fingerprint(Model.from_pretrained(one.folder, dtype=dtype))
        assert low == {name: whole[name]}
        again = Model.from_pretrained(one.folder, dtype=dtype).float()           # as from a file that was saved in it
        assert fingerprint(again)[name] == whole[name] and fingerprint(again)["fp32"] != whole["fp32"]
    assert fingerprint(one.ours().double()) == whole
    assert fingerprint(Model.from_pretrained(one.folder, head="none")) == whole


@pytest.mark.parametrize("name,add", [(SEQUENCE, add_lora), (GPT2_LM, add_lora), (SEQUENCE, add_ia3), (SEQUENCE, add_adapter), (GPT2_LM, add_prefix), (SEQUENCE, add_soft_prompt)])
def test_another_base_is_refused_and_both_are_named(twin, tmp_path, name, add):
    one = twin(name)
    model = one.ours()
    add(model)
    save_adapter(model, tmp_path / "adapter")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        load_adapter(Model.from_pretrained(one.folder, dtype=dtype), tmp_path / "adapter")
    other = one.ours()
    other.blocks[1].norm_mlp.bias.data[0] += 1e-3       # as after a step of training
    other.load_report.source = "another/base"
    before = {name: p.clone() for name, p in other.named_parameters()}
    with pytest.raises(ValueError, match=rf"made for .*{name}\) does not fit this model \(another/base\):\s+base: it was trained on other weights \(fp32 fingerprint "
                                         r"\w{16}, here \w{16}\); any_base=True loads it all the same\nload it into the base it was made for"):
        load_adapter(other, tmp_path / "adapter")
    assert before.keys() == dict(other.named_parameters()).keys() and all(torch.equal(p, before[name]) for name, p in other.named_parameters())
    load_adapter(other, tmp_path / "adapter", any_base=True)
    assert before.keys() < dict(other.named_parameters()).keys()


def test_peft_reads_the_file_and_a_file_of_peft_needs_no_fingerprint(twin, tmp_path):
    one = twin(SEQUENCE)
    ours = one.ours()
    add_lora(ours, r=3)
    for name, p in ours.named_parameters():
        p.data.add_(torch.randn_like(p) * 0.1 * ("lora" in name))
    save_adapter(ours, tmp_path / "ours")
    with safe_open(tmp_path / "ours" / "adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["base"]) == fingerprint(ours)
    wrapped = peft.PeftModel.from_pretrained(one.reference(), tmp_path / "ours").eval()
    one.same(one.ours_out(ours), one.theirs_out(wrapped))
    wrapped.save_pretrained(tmp_path / "theirs")
    with safe_open(tmp_path / "theirs" / "adapter_model.safetensors", "pt") as file:
        assert "base" not in file.metadata()
    other = one.ours()
    other.blocks[1].norm_mlp.bias.data[0] += 1.0
    load_adapter(other, tmp_path / "theirs")
    path = tmp_path / "ours" / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "base": "{"})
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_adapter(one.ours(), tmp_path / "ours")
