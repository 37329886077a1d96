"""Label scoring against the reference library's logits, added up by hand."""
import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.tasks.label_scoring import Prompt, label_scores, order_spread, shots
from minitransfer.text import Tokenizer

TEXTS = ["The room was small and the food cold.", "A wonderful long evening by the sea", "so"]
LABELS = {"neg": "terrible", "pos": "quite good"}


@pytest.fixture(scope="module", params=["mini-gpt", "mini-bert"])
def parts(request):
    head = "causal" if request.param == "mini-gpt" else "masked"
    model, tok = mt.Model.from_pretrained(request.param, head=head), Tokenizer.from_pretrained(request.param)
    return model, tok


@torch.no_grad()
def reference(model, tok, prompt: str, words: str, tmp) -> float:
    """transformers' own logits of one prompt; the label's tokens are those that its prefix does not have."""
    maker = transformers.AutoModelForCausalLM if model.config.causal else transformers.AutoModelForMaskedLM
    theirs = maker.from_pretrained(tmp, dtype=torch.float32).eval()
    before, whole = (tok.encode(t, specials=False) for t in (prompt[:prompt.index(words)].rstrip(), prompt))
    n = len(tok.encode(" " + words if model.config.causal else words, specials=False))
    start = len(before)
    if not model.config.causal:
        whole, start = [tok.cls_id, *whole, tok.sep_id], start + 1
    ids, goal = torch.tensor([whole]), torch.tensor(whole[start:start + n])
    if model.config.causal:
        logits = theirs(ids).logits[0, start - 1:start - 1 + n]
    else:
        hidden = ids.clone()
        hidden[0, start:start + n] = tok.mask_id
        logits = theirs(hidden).logits[0, start:start + n]
    return logits.double().log_softmax(-1).gather(1, goal[:, None]).mean().item()


def test_scores_are_mean_log_likelihoods(parts, tmp_path):
    model, tok = parts
    model.save_pretrained(tmp_path)
    found = label_scores(model, tok, TEXTS, LABELS)
    for text, answer in zip(TEXTS, found, strict=True):
        expected = torch.tensor([reference(model, tok, f"{text} It was {words}.", words, tmp_path) for words in LABELS.values()]).softmax(0)
        assert [answer.probabilities[name] for name in LABELS] == pytest.approx(expected.tolist(), abs=2e-5)
        assert answer.label == list(LABELS)[int(expected.argmax())] and answer.probability == max(answer.probabilities.values())


def test_one_text_is_one_text(parts):
    assert label_scores(*parts, TEXTS[0], LABELS) == label_scores(*parts, TEXTS[:1], LABELS)


def test_rows_do_not_depend_on_their_batch(parts):
    model, tok = parts
    together, alone = label_scores(model, tok, TEXTS, LABELS), [label_scores(model, tok, [text], LABELS, batch_size=1)[0] for text in TEXTS]
    for a, b in zip(together, alone, strict=True):
        assert a.label == b.label and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_a_long_text_loses_its_end_and_keeps_its_label(parts):
    model, tok = parts
    long = "The sea was calm and the evening long. " * 40
    with pytest.warns(UserWarning, match="1 of 2 texts were shortened to fit into 128 tokens with their label"):
        found = label_scores(model, tok, [long, TEXTS[0]], LABELS)
    with pytest.warns(UserWarning, match="shortened"):
        other = label_scores(model, tok, [long + "It was bad.", TEXTS[0]], LABELS)
    assert found == other and 0 < found[0].probability < 1


def test_examples_are_shown_and_their_order_matters(parts):
    model, tok = parts
    rows = [{"text": f"text {i} of some words", "label": "pos" if i % 3 else "neg"} for i in range(30)]
    shown = shots(rows, 4, seed=2)
    assert sorted(row["label"] for row in shown) == ["neg", "neg", "pos", "pos"] and shown == shots(rows, 4, seed=2) != shots(rows, 4, seed=3)
    prompt = Prompt(examples=shown)
    written, end, start = prompt.write("So", "terrible", LABELS)
    assert written.count("It was") == 5 and written[start:] == "terrible." and written[:end].endswith("\n\nSo") and shown[0]["text"] in written[:40]
    assert label_scores(model, tok, ["So"], LABELS, prompt) != label_scores(model, tok, ["So"], LABELS)
    spread = order_spread(model, tok, rows[:6], LABELS, prompt, orders=3)
    assert len(spread) == 3 and all(0 <= value <= 1 and round(value * 6, 6) % 1 == 0 for value in spread)


def test_an_embedding_head_takes_the_nearest_label():
    tok = Tokenizer.from_pretrained("mini-bert")
    model = mt.Model.from_pretrained("mini-bert", head="embedding")
    vectors = mt.embed(model, tok, [*TEXTS, *LABELS.values()])
    cosines = torch.nn.functional.cosine_similarity(vectors[:3, None], vectors[None, 3:], dim=-1)
    for row, answer in zip(cosines, label_scores(model, tok, TEXTS, LABELS), strict=True):
        assert list(answer.probabilities.values()) == pytest.approx((row / 0.05).softmax(0).tolist(), abs=1e-5)


def test_refused(parts):
    model, tok = parts
    with pytest.raises(ValueError, match="there must be something to choose from"):
        label_scores(model, tok, TEXTS, ["pos"])
    with pytest.raises(ValueError, match=r"template='Well'; it says where the text and the label stand"):
        label_scores(model, tok, TEXTS, LABELS, Prompt("Well"))
    with pytest.raises(ValueError, match="use fewer or shorter examples"):
        label_scores(model, tok, TEXTS, LABELS, Prompt(examples=[{"text": "word " * 200, "label": "pos"}]))
    with pytest.raises(ValueError, match="examples with the label 'other'; an example shows one of the labels that are chosen from"):
        label_scores(model, tok, TEXTS, LABELS, Prompt(examples=[{"text": "a word", "label": "other"}]))
    with pytest.raises(ValueError, match='a model with head "none"; labels are scored by'):
        label_scores(mt.Model(model.config), tok, TEXTS, LABELS)


def test_calibration_divides_by_what_texts_without_content_get(parts):
    """Zhao et al. 2021: p / mean p(content-free), and the softmax of the quotients has their order."""
    model, tok = parts
    plain, empty = (label_scores(model, tok, texts, LABELS) for texts in (TEXTS, ["N/A", "[MASK]", ""]))
    p0 = {name: sum(one.probabilities[name] for one in empty) / 3 for name in LABELS}
    for one, found in zip(plain, label_scores(model, tok, TEXTS, LABELS, calibrate=True), strict=True):
        quotients = {name: one.probabilities[name] / p0[name] for name in LABELS}
        assert found.probabilities == pytest.approx({name: q / sum(quotients.values()) for name, q in quotients.items()}, abs=1e-5)
        assert found.label == max(quotients, key=quotients.get)
    assert p0 != pytest.approx({"neg": 0.5, "pos": 0.5}, abs=0.02)


def test_a_calibrated_model_has_no_opinion_of_nothing():
    """One content-free text stands for all three here: calibrated, its labels come out equal, for an embedding head too."""
    tok, model = Tokenizer.from_pretrained("mini-bert"), mt.Model.from_pretrained("mini-bert", head="embedding")
    plain, even = (label_scores(model, tok, ["N/A", "[MASK]", ""], LABELS, calibrate=on) for on in (False, True))
    p0 = sum(one.probabilities["neg"] for one in plain) / 3
    for before, after in zip(plain, even, strict=True):
        odds = (before.probabilities["neg"] / p0) / (before.probabilities["pos"] / (1 - p0))
        assert after.probabilities["neg"] == pytest.approx(odds / (1 + odds), abs=1e-5)


@torch.no_grad()
def test_a_label_that_a_prompt_begins_with_has_something_before_it():
    """Its first token is foretold by the token that texts begin with; and one without words cannot be scored."""
    tok, model = Tokenizer.from_pretrained("mini-gpt"), mt.Model.from_pretrained("mini-gpt").eval()
    found = label_scores(model, tok, ["a nice day"], ["the", "he"], Prompt("{label}: {text}"))[0]
    log_p = []
    for words in ("the", "he"):
        ids = [tok.bos_id, *tok.encode(f"{words}: a nice day")]
        log_p.append(model(torch.tensor([ids])).logits[0, 0].double().log_softmax(-1)[ids[1]])
        assert len(tok.encode(words)) == 1 and tok.encode(words)[0] == ids[1]
    assert list(found.probabilities.values()) == pytest.approx(torch.stack(log_p).softmax(0).tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="the label 'a' has no words; what is scored are its words"):
        label_scores(model, tok, ["a nice day"], {"a": " ", "b": "bad"})
    mt.transfer.add_soft_prompt(model, 20)
    with pytest.warns(UserWarning, match=f"1 of 1 texts were shortened to fit into {model.longest} tokens"):
        label_scores(model, tok, ["a nice day " * 200], ["good", "bad"])
