"""DoRA in LoRA: equal to PEFT both ways, step 0 is the base, the direction's length gets no gradient, merging is exact."""
import peft
import pytest
import torch
from safetensors.torch import load_file

from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.transfer import adapters_off, add_lora, load_adapter, merge_lora, remove_adapters, save_adapter, unmerge_lora
from minitransfer.transfer.lora import lora_layers, lora_names

from .test_lora import GPT2, batch, small

SEQUENCE, GPT2_LM = "BertForSequenceClassification", "GPT2LMHeadModel"
CASES = [(SEQUENCE, {"task_type": "SEQ_CLS", "target_modules": ["query", "intermediate.dense"]}),
         (SEQUENCE, {"task_type": "SEQ_CLS", "target_modules": ["value"], "use_rslora": True}),
         (GPT2_LM, {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True})]


def fill(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)


@pytest.mark.parametrize("name,theirs", CASES, ids=["bert", "bert-rslora", "gpt2"])
def test_a_file_of_peft_gives_the_same_numbers_and_is_written_back_unchanged(twin, tmp_path, name, theirs):
    one = twin(name)
    wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=5, lora_alpha=7, use_dora=True, **theirs)).eval()
    fill(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = one.ours()
    load_adapter(ours, tmp_path / "theirs")
    one.same(one.ours_out(ours), one.theirs_out(wrapped))
    save_adapter(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert any("magnitude" in key for key in before)


@pytest.mark.parametrize("name,targets", [(SEQUENCE, "q,v"), (GPT2_LM, "q+k+v"), (GPT2_LM, "q,v,down")])
def test_peft_reads_our_file_to_the_same_numbers_and_so_do_we(twin, tmp_path, recwarn, name, targets):
    one = twin(name)
    ours = one.ours()
    add_lora(ours, r=3, alpha=8, targets=targets, dora=True)
    fill(ours)
    save_adapter(ours.eval(), tmp_path)
    reference = peft.PeftModel.from_pretrained(one.reference(), tmp_path).eval()
    assert not [str(w.message) for w in recwarn if "missing" in str(w.message) or "Unexpected" in str(w.message)]
    one.same(one.ours_out(ours), one.theirs_out(reference))
    again = one.ours()
    load_adapter(again, tmp_path)
    assert torch.equal(one.ours_out(again), one.ours_out(ours)) and lora_names(again) == lora_names(ours)


def test_gradients_are_those_of_peft(twin, tmp_path):
    """The length of W + s B A is a constant to the gradient (section 4.3 of the paper)."""
    one = twin(SEQUENCE)
    wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=5, lora_alpha=7, use_dora=True, task_type="SEQ_CLS", target_modules=["query"])).eval()
    fill(wrapped)
    wrapped.save_pretrained(tmp_path)
    ours, labels = one.ours().eval(), torch.tensor([0, 1, 2, 0, 1])
    load_adapter(ours, tmp_path)
    ours(one.ids, attention_mask=one.keep, labels=labels).loss.backward()
    wrapped(one.ids, attention_mask=one.keep.long(), labels=labels).loss.backward()
    theirs = dict(wrapped.named_parameters())
    at = "base_model.model.bert.encoder.layer.1.attention.self.query"
    layer = lora_layers(ours)["blocks.1.attn.q_proj"]
    for mine, their in ((layer.lora_A, "lora_A.default.weight"), (layer.lora_B, "lora_B.default.weight"),
                        (layer.lora_magnitude, "lora_magnitude_vector.default.weight")):
        want = theirs[f"{at}.{their}"].grad
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(mine.grad, want, atol=1e-5 * max(1.0, want.abs().max().item()), rtol=0)


@pytest.mark.parametrize("targets", ["q,v", "all", "q+k+v"])
def test_step_zero_is_the_base_bit_for_bit(targets):
    model, one = small(), batch()
    before = model(**one).logits
    add_lora(model, r=3, targets=targets, dora=True, dropout=0.5)
    assert torch.equal(model(**one).logits, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_low_rank_parts_magnitudes_and_the_head_train(checkpointing):
    model, one = small(dropout=0.0), batch()
    report = add_lora(model, r=3, dora=True)
    assert report.trainable == 3 * 2 * (2 * 3 * 28 + 28) + 3 * 29
    was = {name: p.clone() for name, p in model.named_parameters()}
    model.checkpointing = checkpointing
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model.train()
        model(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, was[name])}
    assert changed == {*lora_names(model), "head.classifier.weight", "head.classifier.bias"}
    assert sum(name.endswith("lora_magnitude") for name in changed) == 6


def test_merging_gives_the_same_numbers_and_unmerging_the_same_bits():
    model, one = small(), batch()
    base = model(**one).logits
    add_lora(model, r=3, dora=True, targets="q,v,down")
    fill(model)
    want, was = model(**one).logits, {name: p.clone() for name, p in model.named_parameters()}
    report = merge_lora(model, one)
    assert report.max_logit_change < 1e-4 and report.max_weight_change > 1e-2
    torch.testing.assert_close(model(**one).logits, want, atol=2e-5, rtol=0)
    unmerge_lora(model)
    assert was.keys() == dict(model.named_parameters()).keys() and all(torch.equal(p, was[name]) for name, p in model.named_parameters())
    model.load_state_dict({**model.state_dict()})
    with adapters_off(model):
        off = model(**one).logits
    remove_adapters(model)
    assert torch.equal(model(**one).logits, off)
    assert not torch.equal(base, want)


def test_counts():
    """LoRA's published counts, and one length per row more: BERT-base r 8 on q, v; GPT-2 r 16 on c_attn."""
    with torch.device("meta"):
        bert = Model(ModelConfig(vocab_size=30522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512, n_token_types=2), seed=None)
        gpt2 = Model(ModelConfig(vocab_size=50257, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=1024, pooler=False, **GPT2), seed=None)
        assert add_lora(bert, r=8, targets="q,v", dora=True).trainable == 294_912 + 12 * 2 * 768
        assert add_lora(gpt2, r=16, targets="c_attn", dora=True).trainable == 589_824 + 12 * 3 * 768


def test_lora_with_and_without_magnitudes_is_not_one_file(tmp_path):
    model = small()
    add_lora(model, targets="q")
    add_lora(model, targets="v", dora=True)
    with pytest.raises(ValueError, match="differ in dropout or rslora, or some are DoRA"):
        save_adapter(model, tmp_path)
