"""Strategies: what they insert, train and save; and that one from outside needs no change of the loop."""
import pytest
import torch

from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.tasks import finetune
from minitransfer.transfer import Strategy, full, head, last, layer_groups, lora, strategy
from minitransfer.transfer.lora import lora_layers
from minitransfer.weights.report import LoadReport

from .small import QUICK, TRAIN, bert, without_biases
from .test_groups import gpt, small, trains


@pytest.mark.parametrize("name,left", [
    ("full", "embed, blocks.0-2, norm, head"), ("head", "head"), ("last:1", "blocks.2, norm, head"), ("last:3", "blocks.0-2, norm, head")])
def test_what_trains(name, left):
    model = gpt()
    report = strategy(name).apply(model)
    assert trains(model) == left
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_lora_by_name_and_with_settings():
    model = gpt()
    strategy("lora:4").apply(model, seed=3)
    layer = lora_layers(model)["blocks.1.attn.v_proj"]
    assert layer.adapters["default"].r == 4 and len(lora_layers(model)) == 18
    other, same = gpt(), gpt()
    lora(r=4).apply(other, seed=4)
    lora(r=4).apply(same, seed=3)
    assert (lora_layers(same)["blocks.1.attn.v_proj"].lora_A == layer.lora_A).all()
    assert not (lora_layers(other)["blocks.1.attn.v_proj"].lora_A == layer.lora_A).all()
    model = gpt()
    lora(r=2, targets="q,v", alpha=3, dropout=0.25).apply(model)
    assert len(lora_layers(model)) == 6 and lora_layers(model)["blocks.0.attn.q_proj"].adapters["default"].dropout == 0.25


def test_by_name_or_as_it_is():
    own = Strategy("mine", trains=lambda model: ["head.classifier.weight"])
    assert strategy(own) is own
    assert [strategy(n).name for n in ("full", "head", "last:2", "lora")] == [full().name, head().name, last(2).name, lora().name]


@pytest.mark.parametrize("wanted,message", [
    ("laura", r"no strategy is called 'laura' \(did you mean 'lora'\?\); there are full, head, last, "),
    ("discriminativ", "did you mean 'discriminative'"), ("ulmfti", "did you mean 'ulmfit'"), ("bit_fit", "did you mean 'bitfit'"),
    ("feature", "did you mean 'features'"), ("bitfit:1", r"strategy 'bitfit:1' does not fit bitfit\(\)"), ("ulmfit:two", "strategy 'ulmfit:two' does not fit ulmfit"),
    ("last", r"strategy 'last' does not fit last\(k\)"),
    ("last:two", "strategy 'last:two' does not fit"),
    ("full:2", r"strategy 'full:2' does not fit full\(\)"),
])
def test_names_that_do_not_exist(wanted, message):
    with pytest.raises(ValueError, match=message):
        strategy(wanted)


def test_what_cannot_be_applied():
    with pytest.raises(ValueError, match=r"strategy 'last:4' on a model of 3 blocks; .* give 1 to 3"):
        strategy("last:4").apply(small())
    with pytest.raises(ValueError, match="strategy 'head' leaves nothing to train in a model with head='causal'"):
        strategy("head").apply(gpt().set_head("causal"))


def test_the_order_of_the_groups():
    """Gradual unfreezing goes down this list and discriminative rates count along it, with the norm beside the head."""
    assert list(layer_groups(gpt())) == ["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]


def under(*starts: str):
    return lambda name: name.startswith(starts)


TRAINS = {      # strategy -> is this parameter to train in six steps of three epochs; by hand
    "full": lambda name: True, "head": under("head."), "features": under("head."), "last:1": under("blocks.2.", "pooler.", "head."),
    "bitfit": lambda name: name.endswith("bias") or name.startswith("head."), "lora": lambda name: "lora_" in name or name.startswith("head."),
    "discriminative": lambda name: True, "ulmfit": under("blocks.1.", "blocks.2.", "pooler.", "head.")}


@pytest.mark.parametrize("name", TRAINS)
def test_what_is_frozen_keeps_its_bits_through_a_run_and_the_optimizer_knows_nothing_of_it(word_tok, optimizers, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bert(word_tok, "none").save_pretrained(tmp_path / "body")
    model, before = Model.from_pretrained(tmp_path / "body", head="sequence", labels=["neg", "pos"]), {}

    def remember(record: dict) -> None:
        if not before:
            before.update({n: p.detach().clone() for n, p in model.named_parameters()})       # after the first step: what was inserted is there
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    finetune(model, word_tok, train=TRAIN, strategy=name, lr=1e-2, epochs=3, batch_size=30, on_step=remember, **QUICK)
    own = {id(p): n for n, p in model.named_parameters()}
    listed = {own[id(p)] for group in optimizers[-1].param_groups for p in group["params"]}
    moments = {own[id(p)] for p, state in optimizers[-1].state.items() if state}
    wanted = {n for n in own.values() if TRAINS[name](n)}
    assert moments == wanted and (listed == wanted or name == "ulmfit")                       # ulmfit's others join later: listed, without moments
    frozen = set(own.values()) - wanted
    assert all(torch.equal(model.get_parameter(n), start[n.replace(".base.", ".")]) for n in frozen)
    still = {n for n in wanted if torch.equal(model.get_parameter(n), before[n])}
    assert not {n for n in still if "k_proj.bias" not in n}                                   # the key biases have no gradient


def test_bitfit_counts_as_published():
    """BERT base has 102,912 biases: 12 blocks of 8,448, the embeddings' norm and the pooler. The head is its own."""
    sizes = {"vocab_size": 30522, "d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 3072, "max_len": 512, "n_token_types": 2, "pooler": True}
    model = Model(ModelConfig(**sizes), head="sequence", labels=["a", "b"], seed=None)
    model.load_report = LoadReport("bert-base", [name for name, _ in model.named_parameters() if not name.startswith("head.")])
    assert strategy("bitfit").apply(model).trainable == 12 * 8_448 + 2 * 768 + (2 * 768 + 2) == 102_912 + 1_538


def test_a_body_without_biases(word_tok):
    with pytest.raises(ValueError, match=r"strategy 'bitfit' on a body without biases; .* choose lora, last:2 or full"):
        strategy("bitfit").apply(without_biases(bert(word_tok)))


@pytest.mark.parametrize("name", ["head", "features", "bitfit", "ia3", "prefix", "soft_prompt", "compacter"])
def test_a_fresh_pooler_learns_at_its_own_rate(name, word_tok):
    """The rate that suits a prefix drives a fresh pooler's tanh to its ends; a pooler of the checkpoint keeps the run's rate, where it trains at all."""
    chosen, model = strategy(name), bert(word_tok)
    chosen.apply(model)
    rate = chosen.rate(model)
    assert chosen.settings["lr"] * rate("pooler.weight") == pytest.approx(1e-3) and rate("head.classifier.weight") == 1.0
    model.load_report = LoadReport("x", loaded=["pooler.weight", "pooler.bias"])
    assert chosen.rate(model)("pooler.bias") == 1.0
