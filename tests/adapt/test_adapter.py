"""Bottleneck adapters: nothing changes at step 0, counts are exact, each has a name, files come back to the same bits."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitransfer import generate
from minitransfer.config import ModelConfig
from minitransfer.nn.masks import Mask
from minitransfer.nn.model import Model
from minitransfer.transfer import adapters_off, add_adapter, add_lora, load_adapter, remove_adapter, remove_adapters, save_adapter, set_adapter
from minitransfer.transfer.adapter import adapted_layers
from minitransfer.transfer.named import adapter_list, adapter_names, chosen_adapter

from .test_lora import GPT2, batch, small

SEQUENCE, GPT2_LM = "BertForSequenceClassification", "GPT2LMHeadModel"


def fill(model: Model) -> Model:
    with torch.no_grad():
        for name in adapter_names(model):
            p = model.get_parameter(name)
            p.add_(torch.randn_like(p) * 0.3)
    return model.eval()


@pytest.mark.parametrize("facts", [{}, GPT2 | {"pooler": False}], ids=["bert", "gpt2"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_step_zero_is_the_base_bit_for_bit_and_the_count_is_exact(facts, placement):
    """2 m D + m + D parameters each, two or one in each of 3 blocks; here m = 7, D = 28."""
    model, one = small(**facts), batch()
    before = model(**one).logits
    report = add_adapter(model, size=7, placement=placement)
    assert torch.equal(model(**one).logits, before)
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith("head."))
    assert report.trainable == 3 * (2 if placement == "houlsby" else 1) * (2 * 7 * 28 + 7 + 28) + head
    fill(model)
    assert (model(**one).logits - before).abs().max() > 1e-2


def test_a_published_count():
    """BERT-base, m = 64: 24 adapters of 99,136 parameters."""
    with torch.device("meta"):
        bert = Model(ModelConfig(vocab_size=30522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512, n_token_types=2), seed=None)
        assert add_adapter(bert, size=64).trainable == 24 * 99_136
        remove_adapters(bert)
        assert add_adapter(bert, size=64, placement="pfeiffer").trainable == 12 * 99_136


def test_the_formula_in_a_block_written_by_hand():
    """Post-norm: each projection's output goes through its adapter before the sum and the norm."""
    model = small("none", n_layers=1, pooler=False)
    add_adapter(model, size=7, activation="relu")
    fill(model)
    block = model.blocks[0]
    x = torch.randn(2, 5, 28)

    def adapted(y, layer):
        a = layer.adapters["default"]
        return y + torch.relu(y @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias
    attn, mlp = block.attn, block.mlp
    q, k, v = (torch.nn.functional.linear(x, p.weight, p.bias).unflatten(-1, (4, 7)).transpose(1, 2) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
    mixed = ((q @ k.transpose(-2, -1) / 7**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    h = block.norm_attn(x + adapted(mixed @ attn.o_proj.weight.T + attn.o_proj.bias, attn.o_proj))
    hidden = torch.nn.functional.gelu(h @ mlp.up_proj.weight.T + mlp.up_proj.bias)
    want = block.norm_mlp(h + adapted(hidden @ mlp.down_proj.weight.T + mlp.down_proj.bias, mlp.down_proj))
    torch.testing.assert_close(block(x, Mask())[0], want, atol=1e-5, rtol=0)


def test_only_the_chosen_adapter_and_the_head_train():
    model, one = small(), batch()
    add_adapter(model, size=3, name="other")
    fill(model)
    add_adapter(model, size=7, placement="pfeiffer", name="mine")
    was = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model.train()
        model.checkpointing = True
        model(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, was[name])} == \
        {*adapter_names(model, "mine"), "head.classifier.weight", "head.classifier.bias"}


def test_several_on_one_body_are_swapped_by_name_and_taken_out_again():
    model, one = small(), batch()
    base, names = model(**one).logits, set(dict(model.named_parameters()))
    answers = {}
    for name, placement in (("a", "houlsby"), ("b", "pfeiffer")):
        add_adapter(model, size=3, placement=placement, name=name, seed=ord(name))
        answers[name] = fill(model)(**one).logits
    assert adapter_list(model) == ["a", "b"] and not torch.equal(answers["a"], answers["b"])
    for name in ("a", "b", "a"):
        assert set_adapter(model, name).trainable == sum(model.get_parameter(n).numel() for n in adapter_names(model, name)) + 3 * 29
        assert torch.equal(model(**one).logits, answers[name])
    with adapters_off(model):
        assert torch.equal(model(**one).logits, base)
    assert torch.equal(model(**one).logits, answers["a"])
    set_adapter(model, None)
    assert torch.equal(model(**one).logits, base)
    set_adapter(model, "a")
    remove_adapter(model, "a")
    assert chosen_adapter(model) is None and torch.equal(model(**one).logits, base)
    assert adapter_list(model) == ["b"] and set(adapted_layers(model)) == {f"blocks.{i}.mlp.down_proj" for i in range(3)}
    set_adapter(model, "b")
    assert torch.equal(model(**one).logits, answers["b"])
    remove_adapters(model)
    assert set(dict(model.named_parameters())) == names and torch.equal(model(**one).logits, base)


def test_generation_follows_the_chosen_adapter():
    """Its quick copy of the model is made again when another adapter answers."""
    model = small("causal", **(GPT2 | {"pooler": False}))
    ids = torch.randint(0, 101, (2, 5))
    add_adapter(model, size=7)
    fill(model)
    for name in ("default", None, "default"):
        set_adapter(model, name)
        want = ids
        for _ in range(6):
            want = torch.cat([want, model(want).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(generate(model, ids, max_new_tokens=6, precision="fp32"), want)


@pytest.mark.parametrize("name,placement", [(SEQUENCE, "houlsby"), (GPT2_LM, "pfeiffer")])
def test_a_file_comes_back_under_its_name_beside_the_others(twin, tmp_path, name, placement):
    one = twin(name)
    ours = one.ours()
    add_adapter(ours, size=7, placement=placement, activation="silu", name="first")
    save_adapter(fill(ours), tmp_path / "first")
    want = {"first": one.ours_out(ours)}
    add_adapter(ours, size=3, name="second")
    save_adapter(fill(ours), tmp_path / "second")
    want["third"] = one.ours_out(ours)
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["size"], config["placement"], config["activation"], config["name"]) == ("BOTTLENECK", 7, placement, "silu", "first")

    again = one.ours()
    load_adapter(again, tmp_path / "first")
    load_adapter(again, tmp_path / "second", name="third")
    assert adapter_list(again) == ["first", "third"]
    for which in ("first", "third"):
        set_adapter(again, which)
        assert torch.equal(one.ours_out(again), want[which])
    load_adapter(again, tmp_path / "first")
    assert adapter_list(again) == ["first", "third"] and torch.equal(one.ours_out(again), want["first"])
    add = load_file(tmp_path / "first" / "adapter_model.safetensors")
    save_adapter(again, tmp_path / "again")
    assert all(torch.equal(t, add[key]) for key, t in load_file(tmp_path / "again" / "adapter_model.safetensors").items())


FAULTS = [
    (lambda c, t: t.pop("adapter.blocks.1.attn.o_proj.up.bias"), "missing: adapter.blocks.1.attn.o_proj.up.bias"),
    (lambda c, t: t.update({"adapter.blocks.9.attn.o_proj.up.bias": torch.zeros(28)}), "unexpected: adapter.blocks.9.attn.o_proj.up.bias"),
    (lambda c, t: c.update(size=8), r"shape: adapter.blocks.0.attn.o_proj.down.weight is \(7, 28\), this base needs \(8, 28\)"),
    (lambda c, t: c.update(placement="above"), "config: size=7, placement='above', .* describe no adapter"),
]


@pytest.mark.parametrize("fault,message", FAULTS, ids=[message[:20] for _, message in FAULTS])
def test_a_file_that_does_not_fit_changes_nothing(twin, tmp_path, fault, message):
    one = twin(SEQUENCE)
    ours = one.ours()
    add_adapter(ours, size=7)
    save_adapter(ours, tmp_path)
    tensors, config = load_file(tmp_path / "adapter_model.safetensors"), json.loads((tmp_path / "adapter_config.json").read_text())
    fault(config, tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = one.ours()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)
    assert before.keys() == dict(model.named_parameters()).keys() and all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_cannot_be_added_chosen_or_saved(tmp_path):
    model = small()
    for wrong, message in (({"size": 0}, "size=0; a bottleneck is 1 or more wide"), ({"placement": "above"}, "placement='above'; it is one of 'houlsby', 'pfeiffer'"),
                           ({"activation": "sine"}, "activation='sine'; it is one of"), ({"name": "a.b"}, r"an adapter named 'a\.b'; the name becomes part"),
                           ({"name": "pop"}, "an adapter named 'pop'; the name becomes part")):
        with pytest.raises(ValueError, match=message):
            add_adapter(model, **wrong)
    assert not adapted_layers(model)
    add_adapter(model, name="a")
    with pytest.raises(ValueError, match="an adapter named 'a' is in this model already"):
        add_adapter(model, name="a")
    with pytest.raises(ValueError, match="no adapter is called 'b'; this model has a: choose one"):
        set_adapter(model, "b")
    with pytest.raises(ValueError, match="no adapter is called 'b'; this model has a: remove one"):
        remove_adapter(model, "b")
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.o_proj already carries adapters"):
        add_lora(model, targets="o")
    set_adapter(model, None)
    with pytest.raises(ValueError, match="save_adapter with none of the adapters a chosen"):
        save_adapter(model, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("n", [0, 4])
def test_a_model_that_was_cast_with_its_adapter_answers(n):
    model, one = small(), batch()
    add_adapter(model, size=8, hypercomplex=n)
    want = fill(model)(**one).logits
    assert (model.double()(**one).logits - want).abs().max() <= 1e-5 and (model.bfloat16()(**one).logits - want).abs().max() <= 0.1
