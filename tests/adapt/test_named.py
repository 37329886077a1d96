"""Several adapters on one body: chosen for a batch or for each of its rows, equal to peft, merged and trained one at a time."""
import copy

import peft
import pytest
import torch

from minitransfer import generate
from minitransfer.generate import embed
from minitransfer.tasks import label_scores, predict
from minitransfer.transfer import (
    adapter_list,
    adapters_off,
    add_adapter,
    add_lora,
    extract_features,
    load_adapter,
    merge_lora,
    remove_adapter,
    remove_adapters,
    save_adapter,
    set_adapter,
    unmerge_lora,
    use_adapter,
)
from minitransfer.transfer.lora import lora_layers
from minitransfer.transfer.named import adapter_names, chosen_adapter

from .small import bert
from .test_lora import GPT2, batch, small

SEQUENCE, GPT2_LM = "BertForSequenceClassification", "GPT2LMHeadModel"
ROWS = ["a", None, "b", "a", "c"]
TEXTS = ["a good long film that felt very quiet", "dull"]


def fill(model, std=0.3):
    with torch.no_grad():
        for name in adapter_names(model):
            p = model.get_parameter(name)
            p.add_(torch.randn_like(p) * std)
    return model.eval()


def three(way: str):
    """A model and its adapters a, b, c, of different sizes at different places."""
    model = small()
    if way == "bottleneck":
        for name, size, placement in (("a", 3, "houlsby"), ("b", 5, "pfeiffer"), ("c", 7, "houlsby")):
            add_adapter(model, size, placement, name=name, seed=size)
            fill(model)
    else:
        for name, r, targets in (("a", 3, "q,v"), ("b", 5, "q+k+v,down"), ("c", 2, "blocks.1.mlp,pooler")):
            add_lora(model, r=r, targets=targets, dora=way == "dora", name=name, seed=r)
            fill(model)
    return model


WAYS = pytest.mark.parametrize("way", ["lora", "dora", "bottleneck"])


@WAYS
@torch.no_grad()
def test_a_batch_is_answered_by_one_and_by_none_as_the_base(way):
    model, one = three(way), batch()
    base = small_base(model)
    answers = {name: copy.deepcopy(model) for name in "abc"}
    for name, alone in answers.items():
        for other in set("abc") - {name}:
            remove_adapter(alone, other)
        set_adapter(alone, name)
    want = {name: alone(**one).logits for name, alone in answers.items()} | {None: base(**one).logits}
    assert len({tuple(t.flatten().tolist()) for t in want.values()}) == 4
    for name in ("a", None, "c", "b", "a"):
        with use_adapter(model, name):
            assert torch.equal(model(**one).logits, want[name])
        set_adapter(model, name)
        assert torch.equal(model(**one).logits, want[name])
    with adapters_off(model):
        assert torch.equal(model(**one).logits, want[None])
    remove_adapters(model)
    assert adapter_list(model) == [] and torch.equal(model(**one).logits, want[None])


def small_base(model):
    """The plain model under a copy of this one."""
    base = copy.deepcopy(model)
    remove_adapters(base)
    return base


@WAYS
@torch.no_grad()
def test_each_row_is_answered_by_its_own(way):
    """Also where an adapter has nothing at a layer; a row without one is the base's, bit for bit."""
    model, one = three(way), batch()
    alone = {}
    for name in ("a", "b", "c", None):
        with use_adapter(model, name):
            alone[name] = model(**one, output_hidden_states=True)
    chosen = chosen_adapter(model)
    with use_adapter(model, ROWS):
        mixed = model(**one, output_hidden_states=True)
    keep = one["attention_mask"]
    for i, name in enumerate(ROWS):
        torch.testing.assert_close(mixed.logits[i], alone[name].logits[i], atol=1e-6, rtol=1e-6)
        for got, want in zip(mixed.hidden_states, alone[name].hidden_states, strict=True):
            torch.testing.assert_close(got[i][keep[i]], want[i][keep[i]], atol=1e-6, rtol=1e-6)
    assert torch.equal(mixed.logits[1], small_base(model)(**one).logits[1])
    assert len({tuple(alone[name].logits[0].tolist()) for name in alone}) == 4
    assert chosen_adapter(model) == chosen == "c" and torch.equal(model(**one).logits, alone["c"].logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_row_teaches_its_own(checkpointing):
    """The gradient of a mixed batch is the sum of those of its rows alone; one that answers no row gets none."""
    labels, one = torch.tensor([0, 1, 2, 0, 1]), batch()

    def gradients(*which):
        model = three("lora")
        for p in model.parameters():
            p.requires_grad_(True)
        model.checkpointing = checkpointing
        for names, rows in which:
            with use_adapter(model, names):
                (model(**{k: v[rows] for k, v in one.items()}, labels=labels[rows]).loss * len(rows)).backward()
        return {name: p.grad for name, p in model.named_parameters()}
    torch.manual_seed(5)
    mixed = gradients((["a", None, "b", "a", None], [0, 1, 2, 3, 4]))
    torch.manual_seed(5)
    alone = gradients(("a", [0, 3]), ("b", [2]), (None, [1, 4]))
    assert mixed.keys() == alone.keys() and all(mixed[name] is None and "_c" in name for name in alone if alone[name] is None)
    assert {name for name in alone if name.endswith(("_a", "_b"))} and all(mixed[n].abs().max() > 0 for n in alone if n.endswith(("lora_A_a", "lora_B_b")))
    for name, want in alone.items():
        if want is not None:
            torch.testing.assert_close(mixed[name], want, atol=2e-5, rtol=1e-4)


def test_the_one_without_a_name_has_the_names_it_had():
    model = small()
    add_lora(model, r=3, targets="q+v")
    assert adapter_list(model) == ["default"]
    one = {name for name, _ in model.named_parameters() if "lora" in name}
    assert one == {f"blocks.{i}.attn.{at}" for i in range(3) for at in ("q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_B")}
    add_lora(model, r=5, targets="k,v", name="law", dora=True)
    assert {name.split(".")[-1] for name in adapter_names(model, "law") if "v_proj" in name} == {"lora_A_law", "lora_B_law", "lora_magnitude_law"}
    remove_adapter(model, "law")
    assert {name for name, _ in model.named_parameters() if "lora" in name} == one and type(model.blocks[0].attn.k_proj).__name__ == "Linear"


def test_training_moves_only_the_chosen_one_and_the_head():
    model, one = three("lora"), batch()
    report = set_adapter(model, "b")
    assert report.trainable == 3 * (5 * (28 + 3 * 28) + 5 * (53 + 28)) + 3 * 29
    was = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model.train()(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, was[name])}
    assert moved == {*adapter_names(model, "b"), "head.classifier.weight", "head.classifier.bias"}


@pytest.mark.parametrize("way", ["lora", "dora"])
@torch.no_grad()
def test_merging_takes_the_chosen_one_and_gives_all_back(way):
    model, one = three(way), batch()
    was = {name: p.clone() for name, p in model.named_parameters()}
    names = set(dict(small_base(model).named_parameters()))
    set_adapter(model, "b")
    want = model(**one).logits
    report = merge_lora(model, one)
    assert report.layers == 12 and "merged 12 layers of the adapter 'b'" in str(report) and report.max_logit_change <= 2e-5
    assert (model(**one).logits - want).abs().max() <= 2e-5 and set(dict(model.named_parameters())) == names
    for call, verb in ((lambda: set_adapter(model, "a"), "choose"), (lambda: use_adapter(model, "a").__enter__(), "use"), (lambda: remove_adapter(model, "a"), "remove"),
                       (lambda: add_lora(model, name="d"), "add"), (lambda: add_adapter(model, name="d"), "add")):
        with pytest.raises(ValueError, match=f"{verb} an adapter of a model whose weights hold 'b' already, since it is merged: call unmerge_lora"):
            call()
    for p in model.parameters():
        p.add_(1.0)                                     # what happens to the merged weights is not kept
    unmerge_lora(model)
    now = dict(model.named_parameters())
    kept = [name for name in was if name.rpartition(".")[0] in lora_layers(model)]
    assert now.keys() == was.keys() and len(kept) > 60 and all(torch.equal(now[name], was[name]) for name in kept)


@pytest.mark.parametrize("name,targets,more", [(SEQUENCE, (["query", "value"], ["value", "output.dense"]), {"task_type": "SEQ_CLS"}),
                                               (GPT2_LM, (["c_attn"], ["c_attn", "mlp.c_proj"]), {"task_type": "CAUSAL_LM", "fan_in_fan_out": True})], ids=["bert", "gpt2"])
def test_two_under_names_and_a_mixed_batch_are_those_of_peft(twin, tmp_path, name, targets, more):
    one = twin(name)
    for which, r, modules in (("law", 5, targets[0]), ("news", 3, targets[1])):
        wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=r, lora_alpha=7, target_modules=modules, **more))
        with torch.no_grad():
            for parameter, p in wrapped.named_parameters():
                if "lora_" in parameter:
                    p.add_(torch.randn_like(p) * 0.1)
        wrapped.save_pretrained(tmp_path / which)
    reference = peft.PeftModel.from_pretrained(one.reference(), tmp_path / "law", adapter_name="law")
    reference.load_adapter(tmp_path / "news", adapter_name="news")
    reference.eval()
    ours = one.ours()
    base = one.ours_out(ours)
    for which in ("law", "news"):
        load_adapter(ours, tmp_path / which, name=which)
    assert adapter_list(ours) == ["law", "news"] and chosen_adapter(ours) == "news"
    for which in ("law", "news", "law"):
        reference.set_adapter(which)
        set_adapter(ours, which)
        one.same(one.ours_out(ours), one.theirs_out(reference))
        assert (one.ours_out(ours) - base).abs().max() > 1e-2
        save_adapter(ours, tmp_path / "again" / which)
        assert (tmp_path / "again" / which / "adapter_model.safetensors").stat().st_size > 1000
    rows = ["news", None, "law", "news", None]
    with use_adapter(ours, rows), torch.no_grad():
        got = one.ours_out(ours)
        theirs = reference(one.ids, attention_mask=one.keep.long(), adapter_names=[row or "__base__" for row in rows]).logits
    one.same(got, theirs)
    assert torch.equal(got[1], base[1])


def test_two_that_were_loaded_with_a_head_answer_with_their_own_and_none_with_the_bases(twin, tmp_path):
    one = twin(SEQUENCE)
    for which in ("law", "news"):
        wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=3, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["pooler"]))
        with torch.no_grad():
            for p in (p for p in wrapped.parameters() if p.requires_grad):
                p.add_(torch.randn_like(p) * 0.3)
        wrapped.save_pretrained(tmp_path / which)
    reference = peft.PeftModel.from_pretrained(one.reference(), tmp_path / "law", adapter_name="law").eval()
    reference.load_adapter(tmp_path / "news", adapter_name="news")
    ours = one.ours()
    base = one.ours_out(ours)
    for which in ("law", "news"):
        load_adapter(ours, tmp_path / which, name=which)

    def answer(which, model=ours):
        with use_adapter(model, which):
            return one.ours_out(model)
    for which in ("law", "news", None, "law"):
        reference.set_adapter(which or "law")
        assert torch.equal(answer(None), base)
        set_adapter(ours, which)
        assert torch.equal(one.ours_out(ours), answer(which))
        if which:
            one.same(one.ours_out(ours), one.theirs_out(reference))
    law, copied = answer("law"), copy.deepcopy(ours)
    assert not torch.equal(law, answer("news"))
    with pytest.raises(ValueError, match="use_adapter with rows for law, None, which were loaded with different heads; one head answers a batch"), \
            use_adapter(ours, ["law", None, "law", None, "law"]):
        raise AssertionError("not reached")
    set_adapter(ours, "law")
    with torch.no_grad():
        ours.head.classifier.weight.mul_(2)                                  # training changes its own only
    trained = one.ours_out(ours)
    assert torch.equal(answer("law", copied), law) and torch.equal(answer("news"), answer("news", copied)) and torch.equal(answer(None), base)
    assert torch.equal(answer("law"), trained) and not torch.equal(trained, law)
    remove_adapter(ours, "law")
    assert torch.equal(one.ours_out(ours), base) and torch.equal(answer("news"), answer("news", copied))
    ours.set_head("sequence", ["a", "b", "c"], seed=3)
    fresh = ours.head.classifier.weight.clone()
    set_adapter(ours, "news")
    assert torch.equal(ours.head.classifier.weight, fresh)                   # a head put there later is nobody's


def test_a_file_replaces_its_name_only(twin, tmp_path):
    one = twin(SEQUENCE)
    ours = one.ours()
    add_lora(ours, r=3, name="law")
    fill(ours)
    want = one.ours_out(ours)
    save_adapter(ours, tmp_path)
    add_lora(ours, r=5, targets="q,down", name="news")
    fill(ours)
    news = one.ours_out(ours)
    merge_lora(ours)
    load_adapter(ours, tmp_path)                        # without a name: "default", as in PEFT
    assert adapter_list(ours) == ["default", "law", "news"] and torch.equal(one.ours_out(ours), want)
    load_adapter(ours, tmp_path, name="news")
    assert adapter_list(ours) == ["default", "law", "news"] and torch.equal(one.ours_out(ours), want) and not torch.equal(news, want)
    before = set(dict(ours.named_parameters()))
    with pytest.raises(ValueError, match=r"an adapter named 'a\.b'; the name becomes part"):
        load_adapter(ours, tmp_path, name="a.b")
    assert set(dict(ours.named_parameters())) == before


def test_generation_follows_each_row():
    model, ids = small("causal", pooler=False, **GPT2), torch.randint(0, 101, (3, 5))
    how = {"max_new_tokens": 6, "precision": "fp32"}
    for name in ("a", "b"):
        add_lora(model, r=3, name=name)
        fill(model)
    want = {}
    for name in ("a", "b", None):
        with use_adapter(model, name):
            want[name] = generate(model, ids, **how)
    for rows in (["a", "b", None], [None, "a", "b"]):
        with use_adapter(model, rows):
            got = generate(model, ids, **how)
        assert all(torch.equal(got[i], want[name][i]) for i, name in enumerate(rows))
    assert not torch.equal(want["a"], want["b"])


def test_what_is_refused():
    model = three("lora")
    with pytest.raises(ValueError, match="no adapter is called 'd'; this model has a, b, c: use one of these"), use_adapter(model, ["a", "d"]):
        raise AssertionError("not reached")
    with pytest.raises(ValueError, match="use_adapter names an adapter for each of 2 rows, and the batch has 5"), use_adapter(model, ["a", None]):
        model(**batch())
    assert chosen_adapter(model) == "c"
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q_proj already carries LoRA named 'a'; a Linear has one of a name"):
        add_lora(model, targets="k,q", name="a")
    with pytest.raises(ValueError, match="an adapter named 'b' is in this model already"):
        add_adapter(model, name="b")
    assert adapter_list(model) == ["a", "b", "c"] and "blocks.0.attn.k_proj.lora_A_a" not in dict(model.named_parameters())
    set_adapter(model, None)
    with pytest.raises(ValueError, match="merge_lora with none of the adapters a, b, c chosen"):
        merge_lora(model)
    model = small()
    add_lora(model, name="l")
    add_adapter(model, 3, name="d")
    with pytest.raises(ValueError, match="merge_lora with 'd' chosen, which is no LoRA"):
        merge_lora(model)


@pytest.mark.parametrize("head, ask", [
    ("sequence", lambda model, tok: predict(model, tok, TEXTS)),
    ("masked", lambda model, tok: label_scores(model, tok, TEXTS, ["good", "dull"])),
    ("embedding", lambda model, tok: embed(model, tok, TEXTS)),
    ("none", lambda model, tok: extract_features(model, tok, [{"text": text} for text in TEXTS], label=None)),
])
def test_what_orders_texts_itself_takes_no_adapter_for_each_row(head, ask, word_tok, monkeypatch, tmp_path):
    """A longer text before a shorter one would be answered by the other's adapter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = bert(word_tok, head)
    add_lora(model, name="a")
    with pytest.raises(ValueError, match="with an adapter for each row; it puts texts of like length together"), use_adapter(model, ["a", None]):
        ask(model, word_tok)
    with use_adapter(model, "a"):
        assert len(ask(model, word_tok)) == len(TEXTS)


def test_a_cast_while_merged_casts_what_was_put_aside():
    model, one = three("lora"), batch()
    want = copy.deepcopy(model).to(torch.bfloat16).state_dict()
    merge_lora(model)
    model.to(torch.bfloat16)
    unmerge_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and torch.isfinite(model(**one).logits.float()).all()
    assert model.state_dict().keys() == want.keys() and all(torch.equal(t, want[name]) for name, t in model.state_dict().items())


@torch.no_grad()
def test_generation_sees_what_is_written_through_data_and_takes_no_beams_by_row():
    model, ids = small("causal", pooler=False, **GPT2), torch.randint(0, 101, (2, 5))
    add_lora(model, r=3, name="a")
    fill(model)
    how = {"max_new_tokens": 9, "precision": "fp32"}

    def fresh():
        return torch.equal(generate(model, ids, **how), generate(copy.deepcopy(model), ids, **how))
    assert fresh()
    for p in model.parameters():
        p.data.mul_(0.3).add_(0.05)
    assert fresh()
    for layer in lora_layers(model).values():
        layer.adapters["a"].scale = 40.0
    assert fresh()
    with pytest.raises(ValueError, match="num_beams=3 with an adapter for each row; every text becomes 3 rows"), use_adapter(model, ["a", None]):
        generate(model, ids, num_beams=3, **how)
