"""LoRA: nothing changes at step 0, only A and B train, merging is exact, and the counts are the published ones."""
import pytest
import torch

from minitransfer import generate
from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.transfer.groups import freeze_to, trainable_report, unfreeze
from minitransfer.transfer.lora import (
    LoRALinear,
    LowRank,
    add_lora,
    lora_layers,
    lora_names,
    match_targets,
    merge_lora,
    unmerge_lora,
)
from minitransfer.transfer.peft_files import remove_adapters
from minitransfer.transfer.wrapped import adapters_off
from minitransfer.weights.report import LoadReport

SIZES = {"vocab_size": 101, "d_model": 28, "n_layers": 3, "n_heads": 4, "d_ff": 53, "max_len": 37}


GPT2 = {"causal": True, "norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "n_token_types": 0, "embed_norm": False,
        "final_norm": True}


def small(head: str = "sequence", **changes) -> Model:
    model = Model(ModelConfig(**(SIZES | {"pooler": True} | changes)), head=head, labels=["a", "b", "c"] if head == "sequence" else None).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.load_report = LoadReport("a test", loaded=[name for name, _ in model.named_parameters()])     # as if all of it came from a file
    return model


def batch() -> dict[str, torch.Tensor]:
    keep = torch.ones(5, 11, dtype=torch.bool)
    keep[1, 4:] = False
    return {"input_ids": torch.randint(0, 101, (5, 11)), "attention_mask": keep}


def fill(model: Model) -> None:
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)


@pytest.mark.parametrize("targets", ["q,v", "all", "q+k+v,o", "blocks.1-2.mlp.down_proj,pooler"])
def test_step_zero_is_the_base_bit_for_bit(targets):
    model, one = small(), batch()
    before = model(**one).logits
    add_lora(model, r=3, dropout=0.5, targets=targets)
    assert torch.equal(model(**one).logits, before)
    assert all(layer.lora_A.abs().max() > 0 for layer in lora_layers(model).values())


def test_the_formula():
    base = torch.nn.Linear(7, 5).double()
    layer = LoRALinear(base)
    layer.adapters["default"] = LowRank(layer, "default", r=3, alpha=6)
    layer.chosen = "default"
    layer = layer.double().eval()
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 11, 7, dtype=torch.float64)
    by_hand = torch.einsum("bti,oi->bto", x, base.weight) + base.bias + 6 / 3 * torch.einsum("bti,ri,or->bto", x, layer.lora_A, layer.lora_B)
    torch.testing.assert_close(layer(x), by_hand)
    assert LowRank(layer, "other", r=4, alpha=6, rslora=True).scale == 3.0


def test_dropout_is_on_the_input_of_a_and_in_training_only():
    model, one = small(dropout=0.0), batch()
    add_lora(model, r=3, dropout=0.5, targets="q")
    fill(model)
    assert torch.equal(model(**one).logits, model(**one).logits)
    model.train()
    assert not torch.equal(model(**one).logits, model(**one).logits)
    for layer in lora_layers(model).values():
        layer.lora_B.data.zero_()
    assert torch.equal(model(**one).logits, model(**one).logits)           # the base's own path has no dropout


def test_published_counts():
    """BERT-base, r 8 on query and value: 294,912. GPT-2, r 16 on c_attn: 589,824, since q, k and v share an A there; 884,736 if each has its own."""
    with torch.device("meta"):
        bert = Model(ModelConfig(vocab_size=30522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512, n_token_types=2), seed=None)
        gpt2 = ModelConfig(vocab_size=50257, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=1024, pooler=False, **GPT2)
    assert add_lora(bert, r=8, targets="q,v").trainable == 294_912
    assert add_lora(Model(gpt2, seed=None), r=16, targets="q+k+v").trainable == 589_824
    assert add_lora(Model(gpt2, seed=None), r=16, targets="q,k,v").trainable == 884_736
    assert add_lora(Model(gpt2, seed=None), r=16, targets="c_attn,c_proj").trainable == 1_622_016       # in the MLP, too


def test_only_a_b_and_the_head_train_and_the_rest_keeps_its_bits():
    model = small()
    report = add_lora(model, r=3, targets="q,v")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {*lora_names(model), "head.classifier.weight", "head.classifier.bias"}
    assert report.trainable == 3 * 2 * 2 * 3 * 28 + 3 * 29
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model.train()
        model(**batch(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == names


def test_what_no_checkpoint_filled_trains_along():
    """A pretrained vocabulary head stays; a head or pooler that is new would otherwise stay random."""
    model = small("masked")
    add_lora(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(lora_names(model))
    model = small("masked")
    model.set_head("sequence", labels=["a", "b"])
    add_lora(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad} - set(lora_names(model))
    assert trained == {"pooler.weight", "pooler.bias", "head.classifier.weight", "head.classifier.bias"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_a_and_b_gets_a_gradient_also_under_checkpointing(checkpointing):
    model = small(dropout=0.0)
    add_lora(model, r=3, targets="all")
    fill(model)
    model.train()
    model.checkpointing = checkpointing
    torch.manual_seed(0)
    model(**batch(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if name.endswith(("lora_A", "lora_B"))}
    assert len(gradients) == 36 and all(g is not None and g.abs().max() > 0 for g in gradients.values())


def test_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = small(dropout=0.0)
        add_lora(model, r=3)
        fill(model)
        model.checkpointing = checkpointing
        model.train()(**batch(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(gradients(False), gradients(True), atol=0, rtol=0)


def test_merge_and_unmerge():
    model, one = small(), batch()
    names = {name for name, _ in model.named_parameters()}
    add_lora(model, r=3, targets="q+k+v,down", alpha=5)
    fill(model)
    base = {name: p.clone() for name, p in model.named_parameters()}
    want = model(**one).logits.detach()
    want64 = model.double()(**one).logits.detach()
    model.float()
    report = merge_lora(model, one)
    got = model(**one).logits.detach()
    assert (got - want64).abs().max() <= 1e-5 and float((got - want).abs().max()) == report.max_logit_change
    assert report.layers == 12 and report.label_flips == 0 and 0 < report.max_logit_change <= 1e-5
    assert report.max_weight_change == max(float((p - base[name]).detach().abs().max()) for name, p in model.named_parameters())
    assert {name for name, _ in model.named_parameters()} == names          # a merged model is a plain one, for savers and optimizers
    merged = {name: p.clone() for name, p in model.named_parameters()}
    again = merge_lora(model, one)                                          # once is enough
    assert again.layers == 0 and again.max_logit_change == 0
    assert all(torch.equal(p, merged[name]) for name, p in model.named_parameters())
    unmerge_lora(model)
    assert dict(model.named_parameters()).keys() == base.keys() and all(torch.equal(p, base[name]) for name, p in model.named_parameters())
    assert torch.equal(model(**one).logits, want)
    assert model.blocks[0].attn.q_proj.lora_A is model.blocks[0].attn.v_proj.lora_A
    assert "merged 12 layers" in str(report) and "0 best labels changed" in str(report)


def test_merging_in_half_precision_adds_in_fp32_and_casts_once():
    torch.manual_seed(1)
    layer = LoRALinear(torch.nn.Linear(67, 71).bfloat16())
    layer.adapters["default"] = LowRank(layer, "default", r=5, alpha=10)
    layer.chosen = "default"
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B, std=0.01)
    exact = layer.weight.double() + 2 * layer.lora_B.double() @ layer.lora_A.double()
    before = layer.weight.clone()
    layer.merge()
    assert layer.weight.dtype == torch.bfloat16
    wrong = (layer.weight != exact.bfloat16()).float().mean()
    assert wrong < 1e-3                                                     # fp32 rounds a few ties another way than fp64, bf16 sums many
    careless = before + (2 * layer.kept["lora_B"].bfloat16() @ layer.kept["lora_A"].bfloat16())
    assert (careless != exact.bfloat16()).float().mean() > 0.05
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_a_merged_model_trains_nothing_of_lora_and_saves_as_a_plain_one(tmp_path):
    model = small(n_token_types=2)
    one = batch()
    add_lora(model, r=3)
    fill(model)
    with pytest.raises(ValueError, match="have no name in bert files"):
        model.save_pretrained(tmp_path)
    want = model(**one).logits.detach()
    merge_lora(model)
    assert trainable_report(model).trainable == 3 * 29
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Model.from_pretrained(tmp_path)(**one).logits.detach(), want, atol=1e-5, rtol=0)


def test_what_a_merge_keeps_shares_no_memory_with_what_may_be_trained():
    model = small()
    known = {name: p.detach().clone() for name, p in model.named_parameters() if "blocks" in name and "norm" not in name}
    add_lora(model, targets="all")
    merge_lora(model)
    for p in model.parameters():
        p.data.add_(1.0)
    unmerge_lora(model)
    assert len(known) == 36 and all(torch.equal(model.get_parameter(name), value) for name, value in known.items())


def test_remove_adapters_restores_the_base_even_from_a_merged_model():
    model, one = small(), batch()
    before, modules = {name: p.clone() for name, p in model.named_parameters()}, str(model)
    want = model(**one).logits
    add_lora(model, targets="all")
    fill(model)
    merge_lora(model)
    remove_adapters(model)
    assert str(model) == modules and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(model(**one).logits, want)


def test_adapters_off():
    model, one = small(), batch()
    want = model(**one).logits
    add_lora(model)
    fill(model)
    changed = model(**one).logits
    assert not torch.equal(changed, want)
    with pytest.raises(RuntimeError, match="stop"), adapters_off(model):
        assert torch.equal(model(**one).logits, want)
        raise RuntimeError("stop")
    assert torch.equal(model(**one).logits, changed)                        # back on after an error, too
    merge_lora(model)
    with pytest.raises(ValueError, match="adapters_off on a merged model"), adapters_off(model):
        raise AssertionError("not reached")


def test_targets():
    model = small()
    q = [f"blocks.{i}.attn.q_proj" for i in range(3)]
    assert match_targets(model, "q") == [(n,) for n in q]
    assert match_targets(model, ["q_proj", "attn.q_proj"]) == [(n,) for n in q]
    assert match_targets(model, "blocks.0-1.attn.q_proj") == [(n,) for n in q[:2]]
    assert match_targets(model, "q+v")[2] == ("blocks.2.attn.q_proj", "blocks.2.attn.v_proj")
    assert len(match_targets(model, "all")) == 18 and len(match_targets(model, "blocks.1")) == 6
    assert match_targets(model, "pooler") == [("pooler",)]


def test_targets_may_be_called_as_in_the_files():
    """The names people know from PEFT; c_proj is the end of two names there, of the attention and of the MLP."""
    bert, gpt2 = small(n_token_types=2), small("causal", pooler=False, **GPT2)
    assert match_targets(bert, "query,value") == match_targets(bert, "q,v")
    assert match_targets(bert, "attention.output.dense") == match_targets(bert, "o")
    assert match_targets(gpt2, "c_attn") == match_targets(gpt2, "q+k+v") and len(match_targets(gpt2, "c_attn")[0]) == 3
    assert match_targets(gpt2, "c_proj") == match_targets(gpt2, "o,down") and match_targets(gpt2, "mlp.c_proj") == match_targets(gpt2, "down")
    with pytest.raises(ValueError, match="LoRA target 'query' matches no Linear"):
        match_targets(small(embed_norm=False), "query")                     # no family's files can hold this model: only our names count


@pytest.mark.parametrize("call,message", [
    (lambda m: add_lora(m, targets="c_attn"), "LoRA target 'c_attn' matches no Linear of this model; its Linears are attn.k_proj, .*mlp.up_proj"),
    (lambda m: add_lora(m, targets="q+pooler"), r"'q\+pooler' matches no Linear"),
    (lambda m: add_lora(m, targets="q+down"), r"blocks.0.attn.q_proj\+blocks.0.mlp.down_proj joins Linears of different inputs"),
    (lambda m: add_lora(m, targets=" ,"), "is empty; LoRA needs at least one Linear"),
    (lambda m: add_lora(m, r=0), "r=0; a rank is 1 or more"),
    (lambda m: add_lora(m, dropout=1.0), "dropout=1.0; it is a probability"),
    (lambda m: (add_lora(m), add_lora(m)), "blocks.0.attn.q_proj already carries LoRA"),
    (merge_lora, "merge_lora on a model without LoRA"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(small())


def test_a_refused_call_changes_nothing():
    model = small()
    add_lora(model, targets="k")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="already carries LoRA"):
        add_lora(model, targets="q,k")
    assert [name for name, _ in model.named_parameters()] == names


def test_generation_goes_through_lora():
    model, ids = small("causal", pooler=False, **GPT2), torch.randint(0, 101, (2, 5))
    how = {"max_new_tokens": 20, "precision": "fp32"}
    plain = generate(model, ids, **how)
    add_lora(model, targets="all")
    fill(model)
    tuned = [generate(model, ids, use_cache=cache, **how) for cache in (True, False)]
    merge_lora(model)
    assert torch.equal(tuned[0], tuned[1]) and torch.equal(tuned[0], generate(model, ids, **how)) and not torch.equal(tuned[0], plain)


def test_lora_works_with_what_else_changes_a_model():
    """Freezing by group, moving to another dtype, copying: a shared A stays shared."""
    import copy
    model = small()
    add_lora(model, targets="q+v")
    freeze_to(model, -2)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"pooler", "head"}
    unfreeze(model)
    assert trainable_report(model).total.percent == 100
    twin = copy.deepcopy(model).to(torch.float64)
    assert twin.blocks[0].attn.q_proj.lora_A is twin.blocks[0].attn.v_proj.lora_A
