"""LoRA on a base of 8 or 4 bits: the base is what its codes say, stays frozen, is referred to and not saved; and the memory of a step by hand."""
import copy

import pytest
import torch

from minitransfer import Model, freeze, generate, load_adapter, merge_lora, remove_adapters, save_adapter, trainable_report, unfreeze
from minitransfer.config import ModelConfig
from minitransfer.tasks import finetune
from minitransfer.transfer import add_lora, dequantize, lora, quantize, strategy
from minitransfer.transfer.fingerprint import fingerprint
from minitransfer.transfer.quantize import quantized_weights

from .small import QUICK, TRAIN, bert, tokenizer
from .test_lora import GPT2, batch, fill, small

BASES = pytest.mark.parametrize("base", ["int8", "nf4"])


def twins(base: str, **how) -> tuple[Model, Model]:
    """A quantised model, and one whose dense matrices hold the same numbers."""
    model = small(**how)
    quantize(model, base)
    dense = copy.deepcopy(model)
    dequantize(dense)
    return model, dense


@BASES
def test_a_lora_step_is_that_on_the_dequantised_base(base):
    found = []
    for model in twins(base, dropout=0.0):
        torch.manual_seed(3)
        add_lora(model, r=3, targets="all")
        fill(model)
        model.checkpointing = True
        out = model.train()(**batch(), labels=torch.tensor([0, 1, 2, 0, 1]))
        out.loss.backward()
        found.append({"logits": out.logits.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 1 + 36 + 2
    for name, want in found[1].items():
        assert (found[0][name] - want).abs().max() <= 1e-6 * max(1, want.abs().max()), name


@BASES
def test_what_is_quantised(base):
    model = small("masked")
    embeddings = model.embed.tokens.weight.clone()
    parameters = trainable_report(model).total.parameters
    report = quantize(model, base)
    assert set(quantized_weights(model)) == {f"blocks.{i}.{at}.weight" for i in range(3) for at in (
        "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj")}
    assert torch.equal(model.embed.tokens.weight, embeddings) and trainable_report(model).total.parameters == parameters
    weights = 3 * (4 * 28 * 28 + 2 * 28 * 53)
    assert (report.matrices, report.weights, report.before) == (18, weights, 4 * weights)
    blocks = 4 * 13 + 2 * 24                                                     # of 64 numbers: 12.25 and 23.2 a matrix
    assert report.held == 3 * ((weights // 3 + 4 * (4 * 28 + 28 + 53)) if base == "int8" else (32 * blocks + blocks + 6 * 8))
    assert f"{report.bytes_per_weight:.4f} a weight" in str(report)


def test_a_base_of_tens_of_millions_takes_at_most_0_52_bytes_a_weight():
    model = Model(ModelConfig(vocab_size=11, d_model=256, n_layers=2, n_heads=4, d_ff=1024, max_len=7))
    assert quantize(model, "nf4").bytes_per_weight <= 0.52 and sum(p.held_bytes for p in quantized_weights(model).values()) <= 0.52 * 2 * 12 * 256 * 256


@BASES
def test_a_quantised_base_does_not_train(base):
    model = small()
    quantize(model, base)
    before = [p.requires_grad for p in model.parameters()]
    for call in (unfreeze, strategy("full").apply, lambda m: strategy("last:1").apply(m), lambda m: freeze(unfreeze(m), "embed")):
        with pytest.raises(ValueError, match=r"blocks.\d.attn.q_proj.weight, .* are held as codes .* were asked to train; .*: add LoRA or another adapter"):
            call(model)
    assert [p.requires_grad for p in model.parameters()] == before              # a refused call changes nothing
    assert strategy("head").apply(model).trainable == 3 * 29 + 28 * 28 + 28 - (28 * 28 + 28)      # the pooler came with the checkpoint


def test_merging_needs_a_dense_base():
    model, dense = twins("nf4")
    for one in (model, dense):
        torch.manual_seed(5)
        add_lora(one, r=3, targets="all")
        fill(one)
    want = model(**batch()).logits
    with pytest.raises(ValueError, match=r"merging LoRA into a weight that is held as codes; .*: call dequantize\(model\) first"):
        merge_lora(model)
    dequantize(model)
    merge_lora(model)
    torch.manual_seed(0)
    one = batch()
    torch.testing.assert_close(model(**one).logits, dense(**one).logits, atol=1e-4, rtol=0)
    assert want.shape == (5, 3) and not quantized_weights(model)


@BASES
def test_an_adapter_file_goes_with_the_base_in_any_bits(base, tmp_path):
    model = small()
    dense, known = copy.deepcopy(model), fingerprint(model)
    quantize(model, base)
    add_lora(model, r=3, targets="q,down")
    fill(model)
    want = model(**(one := batch())).logits
    save_adapter(model, tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 12_000 and fingerprint(model) == known
    load_adapter(dense, tmp_path)                                                # as it was before
    again = copy.deepcopy(dense)
    remove_adapters(again)
    quantize(again, base)
    load_adapter(again, tmp_path)
    assert torch.equal(again(**one).logits, want) and not torch.equal(dense(**one).logits, want)
    other = small(vocab_size=103)
    quantize(other, base)
    with pytest.raises(ValueError, match="fingerprint"):
        load_adapter(other, tmp_path)


@BASES
def test_a_whole_model_is_saved_dequantised(base, tmp_path):
    model, dense = twins(base, n_token_types=2)
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    assert not quantized_weights(loaded)
    assert all(torch.equal(p, dense.get_parameter(name)) for name, p in loaded.named_parameters())


def test_generation_goes_through_a_quantised_base():
    model, dense = twins("nf4", head="causal", pooler=False, **GPT2)
    ids = torch.randint(0, 101, (2, 5))
    assert torch.equal(generate(model, ids, max_new_tokens=9, precision="fp32"), generate(dense, ids, max_new_tokens=9, precision="fp32"))


def test_finetune_on_a_base_of_4_bits(tmp_path):
    tok = tokenizer()
    model = bert(tok)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = finetune(model, tok, train=TRAIN, strategy=lora(r=3, base="nf4"), out=tmp_path, epochs=1, lr=1e-2, batch_size=20, **QUICK)
    tuned = dict(result.model.named_parameters())
    assert set(quantized_weights(result.model)) == {name for name in before if name.startswith("blocks") and "norm" not in name and name.endswith("weight")}
    changed = {name for name, p in tuned.items() if name in before and name not in quantized_weights(result.model) and not torch.equal(p, before[name])}
    assert changed and all(name.startswith(("head.", "pooler.")) for name in changed)
    assert any(bool((p != 0).any()) for name, p in tuned.items() if name.endswith("lora_B"))
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file() and not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("call,message", [
    (lambda m: quantize(m, "int4"), "base='int4'; it is one of 'int8', 'nf4'"),
    (lambda m: (quantize(m), quantize(m)), r"quantize to nf4 on a model that is quantised already; .*: call dequantize\(model\) first"),
    (lambda m: (add_lora(m), quantize(m)), "blocks.0.attn.q_proj already carries LoRA"),
    (lambda m: lora(base="nf5"), "base='nf5'; it is one of .*: choose one"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(small())
