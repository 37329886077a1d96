"""Several tasks on one body: each answers as it did alone, to the bit, in any order; switched off, the base does."""
import pytest
import torch

from minitransfer.nn.model import Model
from minitransfer.tasks import finetune, load_several, load_tuned, predict
from minitransfer.transfer import NamedHeads, adapter, adapter_list, add_prefix, lora
from minitransfer.transfer.named import adapter_names

from .small import HELD_OUT, QUICK, TRAIN, bert, tokenizer

TEXTS = [row["text"] for row in HELD_OUT[:7]]
WORDS = [{"words": row["text"].split(), "tags": ["B-FILM" if word in ("film", "book", "song") else "O" for word in row["text"].split()]} for row in TRAIN]
HOW = {"steps": 2, "batch_size": 12, **QUICK}
TASKS = {"mood": ("sequence", TRAIN, lora(r=3, name="mood")), "things": ("token", WORDS, lora(r=5, targets="q,down", name="things"))}


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(scope="module", params=["none", "masked"])
def base(request, tok, tmp_path_factory):
    """A checkpoint with a head of its own, or none and a pooler."""
    folder = tmp_path_factory.mktemp("base")
    bert(tok, request.param).save_pretrained(folder)
    return folder


def states(model, tok) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        out = model.eval()(**tok(TEXTS), output_hidden_states=True)
    return {"last": out.last_hidden_state, **{f"state {i}": one for i, one in enumerate(out.hidden_states)},
            **{name: one for name in ("logits", "pooled") if (one := getattr(out, name)) is not None}}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(one, b[name]) for name, one in a.items())


@pytest.mark.parametrize("base", ["none"], indirect=True)
def test_tasks_trained_one_after_the_other_answer_as_alone_and_off_is_the_base(tok, base, tmp_path):
    model = Model.from_pretrained(base)
    was = states(model, tok)
    heads, alone = NamedHeads(model), {}
    for name, (task, rows, way) in TASKS.items():
        single = Model.from_pretrained(base)
        finetune(single, tok, task, train=rows, strategy=way, **HOW)
        alone[name] = states(single, tok)
        finetune(model, tok, task, train=rows, strategy=way, out=tmp_path / name, **HOW)
        assert same(states(model, tok), alone[name])
        heads.keep(name)
        assert same(states(model, tok), was)
    assert len({one["last"].abs().sum().item() for one in (was, *alone.values())}) == 3
    for name in ("mood", "things", None, "things", "mood", None):
        heads.use(name)
        assert same(states(model, tok), was if name is None else alone[name])
    heads.use("things")
    assert {name for name, p in model.named_parameters() if p.requires_grad} >= {*adapter_names(model, "things"), "head.classifier.weight"}

    several, own = load_several({name: tmp_path / name for name in TASKS})
    for name in ("mood", "things", "mood"):
        several.use(name)
        assert same(states(several.model, own), states(load_tuned(tmp_path / name)[0], tok)) and same(states(several.model, own), alone[name])
        assert predict(several.model, own, TEXTS) == predict(tmp_path / name, texts=TEXTS)
    several.use(None)
    now = states(several.model, own)
    assert all(torch.equal(now[name], one) for name, one in was.items() if name.startswith(("last", "state")))


def test_a_fresh_pooler_belongs_to_its_task(tok, tmp_path):
    """A checkpoint without one: each task starts from the same fresh values and trains its own."""
    bert(tok, "token").save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path, head="none")
    was, heads = states(model, tok), NamedHeads(model)
    finetune(model, tok, train=TRAIN, strategy=lora(r=3, name="a"), **HOW)
    first = states(model, tok)
    heads.keep("a")
    assert same(states(model, tok), was) and "pooled" in first and "pooled" not in was
    finetune(model, tok, train=TRAIN[::-1], strategy=lora(r=3, name="b", targets="v"), **HOW)
    second = states(model, tok)
    heads.keep("b")
    for name, want in (("a", first), ("b", second), (None, was)):
        heads.use(name)
        assert same(states(model, tok), want)
    assert adapter_list(model) == ["a", "b"] and not torch.equal(heads.tasks["a"].pooler.weight, heads.tasks["b"].pooler.weight)


def test_bottleneck_adapters_and_heads_alone_are_tasks_too(tok, base):
    model = Model.from_pretrained(base)
    was, heads, want = states(model, tok), NamedHeads(model), {}
    for name, way in (("a", adapter(5, name="a")), ("b", "head"), ("c", adapter(3, placement="pfeiffer", name="c"))):
        finetune(model, tok, train=TRAIN, strategy=way, **HOW)
        want[name] = states(model, tok)
        heads.keep(name)
    for name in ("c", "b", "a", "b"):
        heads.use(name)
        assert same(states(model, tok), want[name])
    heads.use(None)
    assert same(states(model, tok), was)


def test_what_is_refused(tok, base):
    heads = NamedHeads(Model.from_pretrained(base))
    with pytest.raises(ValueError, match="no task is called 'mood'; there are none: use one of these"):
        heads.use("mood")
    finetune(heads.model, tok, train=TRAIN, strategy="head", steps=1, batch_size=12, **QUICK)
    assert repr(heads) == "<NamedHeads: no task kept yet>"
    heads.keep("mood")
    assert repr(heads) == "<NamedHeads: mood (sequence)>"
    with pytest.raises(ValueError, match="a task named 'mood' is kept already"):
        heads.keep("mood")
    add_prefix(heads.model, 3)
    with pytest.raises(ValueError, match="carries a prefix, which would answer in every task"):
        heads.keep("other")
    heads = NamedHeads(Model.from_pretrained(base))
    finetune(heads.model, tok, train=TRAIN, strategy="bitfit", steps=1, batch_size=12, **QUICK)
    with pytest.raises(ValueError, match="the body is not the one of the other tasks any more"):
        heads.keep("mood")
    with pytest.raises(ValueError, match="load_several without a folder"):
        load_several({})
    with pytest.raises(ValueError, match=r"holds no adapter \(adapter_config.json\); one is needed beside its base"):
        load_several({"mood": base})


def test_folders_of_two_kinds_are_refused_before_one_takes_the_others_place(tok, base, tmp_path):
    for name, way in (("a", lora(r=3)), ("b", adapter(5))):
        finetune(Model.from_pretrained(base), tok, train=TRAIN, strategy=way, out=tmp_path / name, **{**HOW, "steps": 1})
    with pytest.raises(ValueError, match="load_several of BOTTLENECK and LORA; one body carries several adapters of one kind"):
        load_several({name: tmp_path / name for name in "ab"})
