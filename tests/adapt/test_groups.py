"""What is frozen stays frozen, bit for bit, and costs nothing."""
import pytest
import torch

from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.training import param_groups
from minitransfer.training.memory import saved_for_backward
from minitransfer.transfer.groups import expand_range, explain, freeze, freeze_to, layer_groups, parameters_at, short_list, trainable_report, unfreeze
from minitransfer.transfer.strategies import strategy

SIZES = {"vocab_size": 101, "d_model": 28, "n_layers": 3, "n_heads": 4, "d_ff": 53, "max_len": 37}


def small(**changes) -> Model:
    return Model(ModelConfig(**(SIZES | {"pooler": True, "dropout": 0.0} | changes)), head="sequence", labels=["a", "b", "c"])


def gpt() -> Model:
    return small(causal=True, norm_position="pre", final_norm=True, embed_norm=False, pooler=False)


def trains(model: Model) -> str:
    return short_list([row.group for row in trainable_report(model).rows if row.trainable == row.parameters])


@pytest.mark.parametrize("model,groups", [(small(), ["embed", "blocks.0", "blocks.1", "blocks.2", "pooler", "head"]),
                                          (gpt(), ["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"])], ids=["bert", "gpt2"])
def test_groups_are_ordered_and_hold_every_parameter_once(model, groups):
    found = layer_groups(model)
    assert list(found) == groups
    assert sorted(name for names in found.values() for name in names) == sorted(name for name, _ in model.named_parameters())
    model.set_head("none")
    model.set_head("token", labels=["x", "y"])                          # the head is last whatever was registered when
    assert list(layer_groups(model))[-1] == "head"


def test_the_verbs():
    model = small()
    freeze(model, "embed, blocks.0-1")
    assert trains(model) == "blocks.2, pooler, head"
    freeze(model, ["blocks.2.attn", "pooler.bias"])                     # the rest stays as it was
    assert trains(model) == "head"
    left = {n for n in parameters_at(model, "blocks.2") if model.get_parameter(n).requires_grad}
    assert left == set(parameters_at(model, ["blocks.2.mlp", "blocks.2.norm_attn", "blocks.2.norm_mlp"]))
    unfreeze(model)
    assert trains(model) == "embed, blocks.0-2, pooler, head"
    for n, left in ((2, "blocks.1-2, pooler, head"), (-1, "head"), (0, "embed, blocks.0-2, pooler, head"), (6, ""), (-2, "pooler, head")):
        freeze_to(model, n)
        assert trains(model) == left
    assert expand_range("blocks.9-11.attn.q_proj") == [f"blocks.{i}.attn.q_proj" for i in (9, 10, 11)]
    assert short_list(["embed", "blocks.0", "blocks.1", "norm", "decoder.blocks.4", "decoder.blocks.5"]) == (
        "embed, blocks.0-1, norm, decoder.blocks.4-5")


@pytest.mark.parametrize("call,message", [
    (lambda m: freeze(m, "embd"), "'embd' names nothing in this model; its layer groups are embed, blocks.0-2, pooler, head: did you mean 'embed'"),
    (lambda m: freeze(m, "blocks.1-3"), "address 'blocks.3' names nothing"),
    (lambda m: freeze(m, "blocks.2-1"), "'blocks.2-1' runs backwards; .* write blocks.1-2"),
    (lambda m: freeze_to(m, 7), r"freeze_to\(7\) on a model of 6 layer groups \(embed, blocks.0-2, pooler, head\): give a number from -6 to 6"),
])
def test_errors(call, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        call(model)
    assert trains(model) == "embed, blocks.0-2, pooler, head"


def test_the_report():
    model = small(embed_norm=False)
    report = freeze(model, "embed, blocks, pooler")
    by_hand = {"embed": (101 + 37 + 2) * 28, "blocks.1": 4 * 28 * 29 + 2 * 28 * 53 + 53 + 28 + 4 * 28, "pooler": 28 * 29, "head": 3 * 29}
    rows = {row.group: row for row in report.rows}
    assert {group: rows[group].parameters for group in by_hand} == by_hand
    assert report.trainable == 87 and report.total.parameters == sum(p.numel() for p in model.parameters())
    assert rows["head"].percent == 100 and rows["embed"].percent == 0
    lines = str(report).splitlines()
    assert lines[0].split() == ["group", "parameters", "trainable", "%"] and lines[-1].split()[::2] == ["total", "87"]
    assert len({len(line) for line in lines}) == 1 and repr(report) == str(report)
    html = report._repr_html_()
    assert html.count("<tr>") == 8 and f"<td>{by_hand['pooler']:,}</td>" in html


def test_the_three_parts_and_what_is_usually_done_with_them():
    model = small(embed_norm=False)
    freeze(model, "embed, blocks.0-1")
    block, pooler, head = 4 * 28 * 29 + 2 * 28 * 53 + 53 + 28 + 4 * 28, 28 * 29, 3 * 29
    told = explain(model)
    assert told.rows == (("embed", "embed", (101 + 37 + 2) * 28, "frozen", "frozen"),
                         ("blocks", "blocks.0-2", 3 * block, "frozen below, tuned on top", "blocks.2 train"),
                         ("head", "pooler, head", pooler + head, "replaced", "sequence; pooler, head train"))
    lines = str(told).splitlines()
    assert lines[0].split() == ["part", "groups", "parameters", "usually", "now"] and [line.split()[0] for line in lines[1:]] == ["embed", "blocks", "head"]
    strategy("head").apply(body := gpt())
    assert [row[-1] for row in explain(body).rows] == ["frozen", "frozen", "sequence; head train"] and explain(body).rows[2][1] == "norm, head"
    bare = small(pooler=False).set_head("none")
    assert explain(bare).rows[2] == ("head", "none", 0, "replaced", "none; frozen")


@pytest.mark.parametrize("name", ["head", "last:1", "last:2", "full"])
def test_frozen_tensors_keep_their_bits_and_are_in_no_optimizer(name):
    model = small()
    strategy(name).apply(model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    groups = param_groups(model, 0.5)
    assert {id(p) for g in groups for p in g["params"]} == {id(model.get_parameter(n)) for n in trained}
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for _ in range(3):
        model(torch.randint(0, 101, (4, 11)), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(model.get_parameter(n), t) for n, t in frozen.items())
    # position 11 to 36 of a table and the key biases have no gradient; every tensor as a whole has moved
    assert all(not torch.equal(model.get_parameter(n), t) for n, t in trained.items() if not n.endswith("k_proj.bias"))


def saved_bytes(model: Model) -> tuple[int, list[bool]]:
    """How much the backward pass keeps, weights left out, and for each block whether its input asks for a gradient."""
    asks = []
    hooks = [block.register_forward_pre_hook(lambda module, args: asks.append(args[0].requires_grad)) for block in model.blocks]
    with saved_for_backward(model) as saved:
        loss = model(torch.randint(0, 101, (8, 31)), labels=torch.arange(8) % 3).loss
    kept = sum(saved.values())
    for hook in hooks:
        hook.remove()
    loss.backward()
    return kept, asks


@pytest.mark.parametrize("build", [small, gpt], ids=["bert", "gpt2"])
def test_backward_stops_at_the_lowest_trainable_block(build):
    """What is kept for the backward pass falls with every block that is frozen from below, and nothing below asks for a gradient."""
    sizes = []
    for k in (3, 2, 1):
        model = build()
        strategy(f"last:{k}").apply(model)
        kept, asks = saved_bytes(model)
        assert asks == [False] * (3 - k + 1) + [True] * (k - 1)          # the lowest trained block reads a constant
        assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(("embed", *(f"blocks.{i}." for i in range(3 - k)))))
        sizes.append(kept)
    model = build()
    strategy("full").apply(model)
    sizes.insert(0, saved_bytes(model)[0])
    model = build()
    strategy("head").apply(model)
    sizes.append(saved_bytes(model)[0])
    assert sizes == sorted(sizes, reverse=True) and sizes[4] < 0.02 * sizes[0]
    per_block = [sizes[1] - sizes[2], sizes[2] - sizes[3]]
    assert per_block[0] == per_block[1] > 0.25 * sizes[1]                # each frozen block saves the same, and a block's worth


def test_frozen_from_above_saves_nothing_below():
    """The converse: with the embeddings training, every block is needed; freezing the top is not freezing the bottom."""
    model = small()
    freeze(model, "blocks.1-2")
    assert saved_bytes(model)[1] == [True, True, True]
