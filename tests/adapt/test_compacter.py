"""Compacter: the sum of Kronecker products, the counts and the answers of the `adapters` library, one shared rule, nothing changed at step 0."""
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.transfer import add_adapter, load_adapter, remove_adapters, save_adapter, strategy
from minitransfer.transfer.adapter import Design, adapter_list, adapter_names, bottlenecks
from minitransfer.transfer.features import body_hash
from minitransfer.transfer.hypercomplex import PHMLinear

from .test_adapter import fill
from .test_lora import GPT2, batch, small

LIBRARY = Path(__file__).parent / "adapters_library.safetensors"      # values and answers of adapters 1.3.0 on transformers 4.57.6
PLACES = {"attn.o_proj": "attention.output", "mlp.down_proj": "output"}


class Library:
    """A small BERT, a Compacter (n = 4, r = 3, m = 8) and a Houlsby adapter (m = 5), every value moved, and what the library answers with each."""

    def __init__(self, folder: Path) -> None:
        with safe_open(LIBRARY, "pt") as file:
            self.tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        self.folder, self.counts = folder, json.loads(about["bert_base_counts"])
        (folder / "config.json").write_text(json.dumps(json.loads(about["config"]) | {"architectures": ["BertModel"]}))
        save_file({name: t for name, t in self.tensors.items() if not re.search(r"adapters|shared|^out", name)}, folder / "model.safetensors")

    def base(self) -> Model:
        return Model.from_pretrained(self.folder).eval()

    def of(self, i: int, place: str, name: str) -> dict[str, torch.Tensor]:
        start = f"encoder.layer.{i}.{PLACES[place]}.adapters.{name}."
        return {key.removeprefix(start): t for key, t in self.tensors.items() if key.startswith(start)}

    def answer(self, model: Model) -> torch.Tensor:
        return model(self.tensors["out.ids"], attention_mask=self.tensors["out.keep"].bool()).last_hidden_state[self.tensors["out.keep"].bool()]

    def same(self, model: Model, name: str) -> None:
        torch.testing.assert_close(self.answer(model), self.tensors[f"out.{name}"][self.tensors["out.keep"].bool()], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return Library(tmp_path_factory.mktemp("library"))


@torch.no_grad()
def test_forward_is_that_of_the_adapters_library(library):
    """Its layer is y = x H with H of shape (in, out): our factors are its transposed ones, in the other order."""
    model = library.base()
    library.same(model, "base")
    add_adapter(model, size=8, hypercomplex=4, rank=3)
    for at, ours in bottlenecks(model, "default").items():
        _, i, *place = at.split(".")
        theirs = library.of(int(i), ".".join(place), "compacter")
        for layer, key in ((ours.down, "adapter_down.0."), (ours.up, "adapter_up.")):
            layer.left.copy_(theirs[key + "W_right"].mT)
            layer.right.copy_(theirs[key + "W_left"].mT)
            layer.bias.copy_(theirs[key + "b"])
    ours.down.rule.copy_(library.tensors["shared_parameters.compacter.phm_rule"].mT)      # of one place: it is the rule of all
    library.same(model, "compacter")


@torch.no_grad()
def test_houlsby_is_that_of_the_adapters_library(library):
    model = library.base()
    add_adapter(model, size=5, activation="silu")
    for at, ours in bottlenecks(model, "default").items():
        _, i, *place = at.split(".")
        theirs = library.of(int(i), ".".join(place), "houlsby")
        for part, parameter in ours.named_parameters():
            parameter.copy_(theirs["adapter_" + part.replace("down.", "down.0.")])
    library.same(model, "houlsby")


def test_counts_are_those_of_the_adapters_library(library):
    """BERT-base: m = 24, n = 4, r = 1 for Compacter, m = 48 for the others, whose defaults these are."""
    assert library.counts == {"compacter": 57_088, "compacter++": 28_576, "double_seq_bn": 1_789_056, "seq_bn": 894_528}
    with torch.device("meta"):
        base = Model(ModelConfig(vocab_size=30522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512, n_token_types=2), seed=None)
        for called, given in {"compacter": {"size": 24, "hypercomplex": 4}, "compacter++": {"size": 24, "hypercomplex": 4, "placement": "pfeiffer"},
                              "double_seq_bn": {"size": 48}, "seq_bn": {"size": 48, "placement": "pfeiffer"}}.items():
            assert add_adapter(base, **given).trainable == library.counts[called]
            remove_adapters(base)
        assert strategy("compacter").apply(base).trainable == 57_088


def test_the_matrix_is_a_sum_of_kronecker_products():
    rule = torch.nn.Parameter(torch.randn(3, 3, 3, dtype=torch.float64))
    layer = PHMLinear(15, 21, rule, rank=2).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    want = sum(torch.kron(rule[i], layer.left[i] @ layer.right[i]) for i in range(3))
    x = torch.randn(4, 15, dtype=torch.float64)
    torch.testing.assert_close(layer.weight, want, atol=1e-12, rtol=0)
    torch.testing.assert_close(layer(x), x @ want.T + layer.bias, atol=1e-12, rtol=0)
    assert sum(p.numel() for p in layer.parameters()) == 27 + 2 * (15 + 21) + 21


@pytest.mark.parametrize("facts", [{}, GPT2 | {"pooler": False}], ids=["bert", "gpt2"])
def test_step_zero_is_the_base_and_then_everything_moves(facts):
    """The first step moves `up.left` alone, as it is with every product that starts at zero."""
    model, one = small(**facts), batch()
    before = model(**one).logits
    add_adapter(model, size=8, hypercomplex=4, rank=2)
    assert torch.equal(model(**one).logits, before)
    was = {name: model.get_parameter(name).clone() for name in adapter_names(model)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    assert len(was) == 3 * 2 * 6 + 1 and not [name for name, t in was.items() if torch.equal(t, model.get_parameter(name))]
    rules = [layer.rule for bottleneck in bottlenecks(model, "default").values() for layer in (bottleneck.down, bottleneck.up)]
    assert len({id(rule) for rule in rules}) == 1


def test_the_start_is_of_the_size_of_a_linears():
    """Uniform factors: the variance of W is n / (27 in), of a plain `down` 1 / (3 in)."""
    model = small("none", d_model=64, d_ff=53, n_layers=1)
    add_adapter(model, size=32, hypercomplex=4)
    spread = torch.stack([bottleneck.down.weight for bottleneck in bottlenecks(model, "default").values()]).std().item()
    assert 0.5 < spread / (4 / (27 * 64)) ** 0.5 < 1.6
    again = small("none", d_model=64, d_ff=53, n_layers=1)
    add_adapter(again, size=32, hypercomplex=4)
    assert all(torch.equal(model.get_parameter(name), again.get_parameter(name)) for name in adapter_names(model))


def test_a_file_holds_the_rule_once_and_comes_back(twin, tmp_path):
    one = twin("BertForSequenceClassification")
    ours = one.ours()
    add_adapter(ours, size=8, hypercomplex=4, rank=2, name="first")
    save_adapter(fill(ours), tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert [name for name in file.keys() if name.endswith("rule")] == ["adapter.blocks.0.attn.o_proj.down.rule"]
    again = one.ours()
    load_adapter(again, tmp_path, name="second")
    assert adapter_list(again) == ["second"] and torch.equal(one.ours_out(again), one.ours_out(ours))
    assert next(iter(bottlenecks(again, "second").values())).design == Design(8, "houlsby", "gelu", 4, 2)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"hypercomplex": 3}))
    with pytest.raises(ValueError, match="config: size=8, placement='houlsby', activation='gelu', hypercomplex=3, rank=2, name='first' describe no adapter"):
        load_adapter(one.ours(), tmp_path)


def test_the_key_of_kept_features_hears_of_the_activation():
    hashes = set()
    for activation in ("gelu", "relu"):
        torch.manual_seed(0)
        model = small()
        add_adapter(model, size=8, activation=activation)
        hashes.add(body_hash(model))
    assert len(hashes) == 2


@pytest.mark.parametrize("given,message", [
    ({"size": 6, "hypercomplex": 4}, "hypercomplex=4 for a bottleneck 28 -> 6; a Kronecker product of 4 parts needs widths that 4 divides"),
    ({"size": 6, "hypercomplex": 3}, "hypercomplex=3 for a bottleneck 28 -> 6"),
    ({"hypercomplex": -1}, "hypercomplex=-1, rank=1; the first is a number of Kronecker products"), ({"hypercomplex": 4, "rank": 0}, "hypercomplex=4, rank=0"),
])
def test_what_cannot_be_built(given, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        add_adapter(model, **given)
    assert not adapter_list(model)
