"""(IA)^3: against the library that defines its files, both ways; nothing changes at step 0, only the vectors train, merging is exact."""
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitransfer.transfer import adapters_off, add_ia3, add_lora, load_adapter, merge_ia3, remove_adapters, save_adapter, unmerge_ia3
from minitransfer.transfer.ia3 import ia3_layers, ia3_names

from .test_lora import batch, small

SEQUENCE, TOKEN, GPT2_LM = "BertForSequenceClassification", "BertForTokenClassification", "GPT2LMHeadModel"
CASES = [(SEQUENCE, {"task_type": "SEQ_CLS"}), (TOKEN, {"task_type": "TOKEN_CLS", "target_modules": ["value"], "feedforward_modules": []}),
         (GPT2_LM, {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}),
         ("GPT2ForSequenceClassification", {"task_type": "SEQ_CLS", "fan_in_fan_out": True})]


def fill(model: torch.nn.Module) -> None:
    """Other vectors than ones, and a trained head."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.3)


@pytest.mark.parametrize("name,theirs", CASES, ids=[name for name, _ in CASES])
def test_a_file_of_peft_gives_the_same_numbers_and_is_written_back_unchanged(twin, tmp_path, name, theirs):
    one = twin(name)
    wrapped = peft.get_peft_model(one.reference(), peft.IA3Config(**theirs)).eval()
    fill(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = one.ours()
    plain = one.ours_out(ours)
    load_adapter(ours, tmp_path / "theirs")
    one.same(one.ours_out(ours), one.theirs_out(wrapped))
    assert (one.ours_out(ours) - plain).abs().max() > 1e-2
    save_adapter(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [SEQUENCE, GPT2_LM])
def test_peft_reads_our_file_to_the_same_numbers_and_so_do_we(twin, tmp_path, recwarn, name):
    """On GPT-2 q, k and v are one matrix in the file; q is not scaled and stays so."""
    one = twin(name)
    ours = one.ours()
    add_ia3(ours, outputs="k,v,o", inputs="down")
    fill(ours)
    save_adapter(ours, tmp_path)
    reference = peft.PeftModel.from_pretrained(one.reference(), tmp_path).eval()
    assert not [str(w.message) for w in recwarn if "missing" in str(w.message) or "Unexpected" in str(w.message)]
    one.same(one.ours_out(ours.eval()), one.theirs_out(reference))
    again = one.ours()
    load_adapter(again, tmp_path)
    assert torch.equal(one.ours_out(again), one.ours_out(ours))
    assert ia3_names(again) == ia3_names(ours)


def test_the_formula():
    model, one = small("none", n_layers=1, pooler=False), torch.randn(2, 7, 28)
    add_ia3(model)
    fill(model)
    k, down = ia3_layers(model)["blocks.0.attn.k_proj"], ia3_layers(model)["blocks.0.mlp.down_proj"]
    torch.testing.assert_close(k(one), torch.einsum("o,btd,od->bto", k.ia3, one, k.weight) + k.ia3 * k.bias)
    hidden = torch.randn(2, 7, 53)
    torch.testing.assert_close(down(hidden), torch.einsum("f,btf,of->bto", down.ia3, hidden, down.weight) + down.bias)


def test_step_zero_is_the_base_bit_for_bit_and_only_the_vectors_and_the_head_train():
    model, one = small(), batch()
    before = model(**one).logits
    report = add_ia3(model)
    assert torch.equal(model(**one).logits, before)
    assert report.trainable == 3 * (28 + 28 + 53) + 3 * 29
    names, was = {*ia3_names(model), "head.classifier.weight", "head.classifier.bias"}, {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model.train()
        model(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, was[name])} == names
    remove_adapters(model)
    assert {name: torch.equal(p, was[name]) for name, p in model.named_parameters() if not name.startswith("head.")} \
        == {name: True for name in was if not name.startswith("head.") and not name.endswith(".ia3")}


def test_merging_gives_the_same_numbers_and_unmerging_the_same_bits():
    model, one = small(), batch()
    base = model(**one).logits
    add_ia3(model)
    fill(model)
    want, was = model(**one).logits, {name: p.clone() for name, p in model.named_parameters()}
    with adapters_off(model):
        assert not torch.equal(model(**one).logits, want)
    merge_ia3(model)
    merge_ia3(model)
    torch.testing.assert_close(model(**one).logits, want, atol=2e-5, rtol=0)
    assert (want - base).abs().max() > 1e-2 and not any(name.endswith("ia3") for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="adapters_off on a merged model"), adapters_off(model):
        pass
    unmerge_ia3(model)
    assert was.keys() == dict(model.named_parameters()).keys() and all(torch.equal(p, was[name]) for name, p in model.named_parameters())
    assert torch.equal(model(**one).logits, want)


def test_what_cannot_be_inserted_or_saved(tmp_path, twin):
    model = small()
    with pytest.raises(ValueError, match="name the same Linears; a Linear is scaled on one side"):
        add_ia3(model, outputs="k,down")
    with pytest.raises(ValueError, match="add_ia3 with neither outputs nor inputs"):
        add_ia3(model, outputs="", inputs=[])
    with pytest.raises(ValueError, match="matches no Linear"):
        add_ia3(model, outputs="kk")
    with pytest.raises(ValueError, match=r"merge_ia3 on a model without \(IA\)\^3"):
        merge_ia3(model)
    add_ia3(model)
    with pytest.raises(ValueError, match=r"blocks.0.attn.k_proj already carries \(IA\)\^3; a Linear has one change"):
        add_lora(model, targets="k")
    add_lora(model, targets="q")
    with pytest.raises(ValueError, match=r"save_adapter on a model with LoRA and \(IA\)\^3; a file holds one kind"):
        save_adapter(model, tmp_path)
    remove_adapters(model)
    add_ia3(model, outputs="k,v")
    merge_ia3(model)
    with pytest.raises(ValueError, match="save_adapter on a merged model"):
        save_adapter(model, tmp_path)
    fused = twin(GPT2_LM).ours()
    add_ia3(fused, outputs="", inputs="q")
    with pytest.raises(ValueError, match=r"are one matrix \(h.0.attn.c_attn\) in the file, with one vector for its input"):
        save_adapter(fused, tmp_path)


def test_a_file_that_does_not_fit_changes_nothing(twin, tmp_path):
    one = twin(SEQUENCE)
    ours = one.ours()
    add_ia3(ours)
    save_adapter(ours, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    wrong = {key: t[:, :-1].contiguous() if key.endswith("layer.1.output.dense.ia3_l") else t for key, t in tensors.items()}
    save_file(wrong, path)
    model = one.ours()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"shape: encoder.layer.1.output.dense has ia3_l \(1, 52\); on this base it needs \(28, 1\) or \(1, 53\)"):
        load_adapter(model, tmp_path)
    save_file({key: t for key, t in tensors.items() if "ia3_l" not in key}, path)
    with pytest.raises(ValueError, match="empty: it holds no ia3_l"):
        load_adapter(model, tmp_path)
    assert before.keys() == dict(model.named_parameters()).keys() and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "IA3"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"load_adapter\(name='x'\) for \(IA\)\^3; a model carries one of these"):
        load_adapter(model, tmp_path, name="x")
