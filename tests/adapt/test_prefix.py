"""Prefixes and soft prompts: equal to PEFT for the same tensors, right with padding, caches, packed rows, every backend and checkpointing."""
import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitransfer import Cache, Model, generate
from minitransfer.config import ModelConfig, Rotary
from minitransfer.nn.masks import Mask
from minitransfer.transfer import adapters_off, add_prefix, add_soft_prompt, load_adapter, remove_adapters, save_adapter
from minitransfer.transfer.peft_files import carried
from minitransfer.transfer.prefix import prefix_names, prefixes

from .test_lora import GPT2, batch, small

SEQUENCE, TOKEN, NONE = "BertForSequenceClassification", "BertForTokenClassification", "BertModel"
GPT2_LM, GPT2_SEQUENCE = "GPT2LMHeadModel", "GPT2ForSequenceClassification"
TASKS = {SEQUENCE: "SEQ_CLS", TOKEN: "TOKEN_CLS", NONE: "FEATURE_EXTRACTION", GPT2_LM: "CAUSAL_LM", GPT2_SEQUENCE: "SEQ_CLS"}
WAYS = {"prefix": (add_prefix, peft.PrefixTuningConfig), "soft prompt": (add_soft_prompt, peft.PromptTuningConfig)}
BOTH = pytest.mark.parametrize("add", [add_prefix, add_soft_prompt])
KEYWORDS = {"filterwarnings": "ignore:.*Position ids are not supported"}


def causal(head: str = "causal", **changes) -> Model:
    return small(head, **(GPT2 | {"pooler": False} | changes))


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """Something learned: everything that trains is elsewhere."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.3)
    return model.eval()


def answer(one, wrapped) -> torch.Tensor:
    """PEFT's answer to the text; it gives one for the soft prompt, too."""
    out = one.theirs_out(wrapped)
    return out[:, -one.ids.shape[1] :] if out.dim() == 3 else out


@pytest.mark.parametrize("way,name", [*(("prefix", name) for name in TASKS), ("soft prompt", GPT2_LM), ("soft prompt", TOKEN), ("soft prompt", NONE)])
def test_peft_and_we_agree_for_the_same_file_both_ways(twin, tmp_path, peft_prefixes, way, name):
    """The reference's positions count padding, ours do not: on the right it makes no difference."""
    one, (add, config) = twin(name), WAYS[way]
    wrapped = moved(peft.get_peft_model(one.reference(), config(task_type=TASKS[name], num_virtual_tokens=5)))
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = one.ours().eval()
    plain = one.ours_out(ours)
    load_adapter(ours, tmp_path / "theirs")
    one.same(one.ours_out(ours), answer(one, wrapped))
    assert (one.ours_out(ours) - plain).abs().max() > 1e-2

    save_adapter(ours, tmp_path / "again")
    before, after = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

    mine = one.ours()
    add(mine, length=3, seed=1)
    moved(mine)
    save_adapter(mine, tmp_path / "ours")
    one.same(one.ours_out(mine), answer(one, peft.PeftModel.from_pretrained(one.reference(), tmp_path / "ours").eval()))
    back = one.ours()
    load_adapter(back, tmp_path / "ours")
    assert torch.equal(one.ours_out(back), one.ours_out(mine))


def test_a_classifier_on_gpt2_behind_a_soft_prompt(twin, tmp_path):
    """PEFT's reference cannot see padding behind embeddings, so it is asked for texts without any."""
    one = twin(GPT2_SEQUENCE)
    wrapped = moved(peft.get_peft_model(one.reference(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)))
    wrapped.save_pretrained(tmp_path)
    ours = one.ours().eval()
    load_adapter(ours, tmp_path)
    ids = torch.randint(2, 100, (5, 11))
    torch.testing.assert_close(ours(ids).logits, wrapped(ids, attention_mask=torch.ones_like(ids)).logits, atol=1e-5, rtol=0)


@BOTH
@pytest.mark.parametrize("build", [small, causal], ids=["encoder", "decoder"])
def test_padding_on_either_side_changes_nothing(add, build):
    model = build("none" if build is small else "causal")
    add(model, length=5)
    moved(model)
    ids = torch.randint(0, 101, (2, 7))
    alone = model(ids, output_hidden_states=True)
    right, left = (torch.nn.functional.pad(ids, sides) for sides in ((0, 4), (4, 0)))
    ones = torch.ones_like(ids)
    for padded, keep, place in ((right, torch.nn.functional.pad(ones, (0, 4)), slice(0, 7)), (left, torch.nn.functional.pad(ones, (4, 0)), slice(4, 11))):
        out = model(padded, attention_mask=keep, output_hidden_states=True)
        torch.testing.assert_close(out.last_hidden_state[:, place], alone.last_hidden_state, atol=1e-5, rtol=0)
        for state, want in zip(out.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(state[:, place], want, atol=1e-5, rtol=0)
    explicit = model(ids, position_ids=torch.arange(7)[None])
    assert torch.equal(explicit.last_hidden_state, alone.last_hidden_state)


@BOTH
@pytest.mark.parametrize("build", [small, causal], ids=["encoder", "decoder"])
def test_every_backend_gives_the_same_numbers(add, build):
    model, one = build("none" if build is small else "causal"), batch()
    add(model, length=5)
    moved(model)
    found = {}
    for backend in ("reference", "tiled", "sdpa", "auto"):
        model.attention = backend
        found[backend] = model(**one).last_hidden_state[one["attention_mask"]]
    for backend in ("tiled", "sdpa", "auto"):
        torch.testing.assert_close(found[backend], found["reference"], atol=2e-5, rtol=0)


@BOTH
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_a_cache_changes_nothing(add, n_kv_heads):
    model = causal(n_kv_heads=n_kv_heads)
    add(model, length=5)
    moved(model)
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[1, :4] = False
    ids = torch.randint(0, 101, (3, 9))
    whole = model(ids, attention_mask=keep).logits
    cache, parts = Cache(model.config.n_layers), []
    for piece in (slice(0, 5), slice(5, 6), slice(6, 9)):
        parts.append(model(ids[:, piece], attention_mask=keep[:, piece], cache=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1)[keep], whole[keep], atol=2e-5, rtol=0)
    greedy = {use: generate(model, ids, keep, max_new_tokens=6, use_cache=use, precision="fp32") for use in (True, False)}
    assert torch.equal(greedy[True], greedy[False])
    with adapters_off(model):
        assert not torch.equal(generate(model, ids, keep, max_new_tokens=6, precision="fp32"), greedy[True])


def test_texts_packed_in_one_row_see_the_prefix_and_not_each_other():
    model = causal()
    add_prefix(model, length=5)
    moved(model)
    a, b = torch.randint(0, 101, (1, 4)), torch.randint(0, 101, (1, 6))
    packed = model(torch.cat([a, b], 1), document_ids=torch.tensor([[0] * 4 + [1] * 6])).logits
    torch.testing.assert_close(packed, torch.cat([model(a).logits, model(b).logits], 1), atol=2e-5, rtol=0)
    soft = causal()
    add_soft_prompt(soft, length=5)
    with pytest.raises(ValueError, match="document_ids for a model with a soft prompt"):
        soft(a, document_ids=torch.zeros_like(a))


def test_a_window_does_not_hide_the_prefix():
    mask = Mask(torch.tensor([[False, True, True, True, True]]), causal=True, window=2, ahead=2)
    want = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 1]]).bool()
    assert torch.equal(mask.dense(5, 7, torch.device("cpu"))[0, 0], want)
    tiles = [torch.cat([mask.part(rows, cols, torch.device("cpu")) for cols in (range(0, 1), range(1, 4), range(4, 7))], -1) for rows in (range(2, 4), range(4, 7))]
    assert torch.equal(torch.cat(tiles, -2)[0, 0], want)


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_was_learned_gets_a_gradient_also_under_checkpointing(add, checkpointing):
    found = []
    for on in (False, checkpointing):
        torch.manual_seed(0)
        model, one = small(dropout=0.0), batch()
        add(model, length=5)
        model.train()
        model.checkpointing = on
        model(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if name.startswith(("embed", "blocks")) and p.grad is not None})
    assert len(found[0]) == (6 if add is add_prefix else 1)
    assert all(g.abs().max() > 0 for g in found[0].values())
    assert all(torch.equal(g, found[1][name]) for name, g in found[0].items())


@BOTH
@pytest.mark.parametrize("build", [small, causal], ids=["encoder", "decoder"])
def test_on_a_body_in_bfloat16_it_is_as_exact_as_the_body_and_learns_in_float32(add, build):
    """Against the same body in double precision: no further from it than the base without anything added, up to a factor for the longer sums."""
    errors = {}
    for way in ("base", "added"):
        torch.manual_seed(0)
        model, one = build(), batch()
        if way == "added":
            add(model, length=5)
            moved(model)
        one.pop("token_type_ids", None)
        low, exact = copy.deepcopy(model).eval().to(torch.bfloat16), copy.deepcopy(model).eval().double()
        for name, p in low.named_parameters():
            if "prefix" in name or "prompt" in name:
                p.data = model.get_parameter(name).data                          # what learns stays in float32
        out = low(**one).last_hidden_state
        errors[way] = (out.double() - exact(**one).last_hidden_state)[one["attention_mask"].bool()].abs().max().item()
    assert out.dtype == torch.bfloat16 and errors["added"] < 2 * errors["base"] + 1e-2, errors
    out.float().square().sum().backward()
    grads = {p.grad.dtype for name, p in low.named_parameters() if ("prefix" in name or "prompt" in name) and p.grad is not None and p.grad.abs().max() > 0}
    assert grads == {torch.float32}


@BOTH
def test_only_what_was_added_and_the_head_train_and_taking_it_out_restores_the_base(add):
    model, one = small(), batch()
    before, was = model(**one).logits, {name: p.clone() for name, p in model.named_parameters()}
    report = add(model, length=5)
    assert report.trainable == (2 * 3 * 5 * 28 if add is add_prefix else 5 * 28) + 3 * 29
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model.train()
        model(**one, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    model.eval()
    assert all(torch.equal(p, was[name]) for name, p in model.named_parameters() if name in was and not name.startswith("head."))
    for name, p in model.named_parameters():
        if name.startswith("head."):
            p.data.copy_(was[name])
    assert not torch.equal(model(**one).logits, before)
    with adapters_off(model):
        assert torch.equal(model(**one).logits, before)
    remove_adapters(model)
    assert torch.equal(model(**one).logits, before) and not carried(model) and dict(model.named_parameters()).keys() == was.keys()


def test_the_start_is_what_the_model_computes_for_random_tokens():
    """A prefix of the first block holds k and v of those tokens; the same seed draws the same ones."""
    model, same, other = small(), small(), small()
    same.load_state_dict(model.state_dict())
    other.load_state_dict(model.state_dict())
    add_prefix(model, length=5, seed=3)
    add_prefix(same, length=5, seed=3)
    add_prefix(other, length=5, seed=4)
    ids = torch.randint(101, (5,), generator=torch.Generator().manual_seed(3))
    x = other.embed(ids[None], torch.arange(5)[None], None)[0]
    first = prefixes(model)["blocks.0.attn.prefix"]
    torch.testing.assert_close(first.keys, other.blocks[0].attn.k_proj(x))
    torch.testing.assert_close(first.values, other.blocks[0].attn.v_proj(x))
    for name in prefix_names(model):
        assert torch.equal(model.get_parameter(name), same.get_parameter(name)) and not torch.equal(model.get_parameter(name), other.get_parameter(name))
    prompted = small()
    add_soft_prompt(prompted, length=5, seed=3)
    assert torch.equal(prompted.get_parameter("embed.prompt.vectors"), prompted.embed.tokens.weight[ids])


@BOTH
def test_texts_may_be_shorter_by_its_length(add):
    model = causal()
    add(model, length=5)
    assert model.longest == 32 and model(torch.zeros(1, 32, dtype=torch.long)).logits.shape == (1, 32, 101)
    with pytest.raises(ValueError, match="a text of 33 tokens; this model reads at most 32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="30 tokens and 3 new ones; this model reads at most 32: ask for at most 2"):
        generate(model, torch.zeros(1, 30, dtype=torch.long), max_new_tokens=3)


def test_lengths_out_of_range_and_two_at_a_time():
    for length in (0, 37):
        with pytest.raises(ValueError, match=f"a prefix of length={length} in a model that reads 37 positions; .* give 1 to 36"):
            add_prefix(small(), length=length)
    model = small()
    add_prefix(model, length=2)
    with pytest.raises(ValueError, match="this model has a prefix already; it has one at a time"):
        add_soft_prompt(model, length=2)
    model = small()
    add_soft_prompt(model, length=2)
    with pytest.raises(ValueError, match="this model has a soft prompt already"):
        add_prefix(model)


def test_a_file_that_does_not_fit_changes_nothing(twin, tmp_path):
    one = twin(SEQUENCE)
    for add, kind in ((add_prefix, r"\(5, 167\); this base needs 1 to 36 rows of 168"), (add_soft_prompt, r"\(5, 27\); this base needs 1 to 36 rows of 28")):
        ours, folder = one.ours(), tmp_path / add.__name__
        add(ours, length=5)
        save_adapter(ours, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        cut = {key: t[:, :-1].contiguous() if key == "prompt_embeddings" else t for key, t in tensors.items()}
        save_file(cut, folder / "adapter_model.safetensors")
        model = one.ours()
        with pytest.raises(ValueError, match="shape: prompt_embeddings is " + kind):
            load_adapter(model, folder)
        save_file({key: t for key, t in tensors.items() if key != "prompt_embeddings"}, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match="empty: it holds no prompt_embeddings"):
            load_adapter(model, folder)
        assert not carried(model) and model.ahead == (0, 0)
        assert json.loads((folder / "adapter_config.json").read_text())["num_virtual_tokens"] == 5


def test_a_published_count():
    """BERT-base, 20 positions: 2 x 12 x 20 x 768 for a prefix, 20 x 768 for a soft prompt."""
    with torch.device("meta"):
        bert = Model(ModelConfig(vocab_size=30522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512, n_token_types=2), seed=None)
        assert add_soft_prompt(bert).trainable == 15_360
        remove_adapters(bert)
        assert add_prefix(bert).trainable == 368_640


@pytest.mark.parametrize("facts", [{"rotary": Rotary(theta=50.0), "positions": "none"}, {"rotary": Rotary(share=0.5), "positions": "none", "qk_norm": True, "n_kv_heads": 2}])
def test_a_prefix_starts_as_the_keys_and_values_that_its_tokens_would_have(facts):
    """With keys normed and turned as attention does it, a text behind the prefix is the text behind the tokens."""
    model = causal(**facts, head_width=8)
    drawn = torch.randint(model.config.vocab_size, (5,), generator=torch.Generator().manual_seed(3))
    ids = torch.randint(0, 101, (2, 7))
    want = model(torch.cat([drawn.expand(2, -1), ids], dim=1)).logits[:, 5:]
    add_prefix(model, length=5, seed=3)
    torch.testing.assert_close(model(ids).logits, want, atol=1e-5, rtol=0)


def test_a_soft_prompt_starts_as_the_vectors_that_its_tokens_would_have():
    """In a body whose token table is narrower than its stream, and scaled."""
    model = causal("none", d_embed=24, embed_scale=3.0)
    drawn = torch.randint(model.config.vocab_size, (5,), generator=torch.Generator().manual_seed(3))
    ids = torch.randint(0, 101, (2, 7))
    want = model(torch.cat([drawn.expand(2, -1), ids], dim=1)).last_hidden_state[:, 5:]
    add_soft_prompt(model, length=5, seed=3)
    torch.testing.assert_close(model(ids).last_hidden_state, want, atol=1e-5, rtol=0)
