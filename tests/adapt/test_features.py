"""Features of a frozen body: run once, the same numbers as running it again, kept under the right key, and gone from the model afterwards."""
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from minitransfer.nn.model import Model
from minitransfer.tasks import finetune
from minitransfer.text import Tokenizer
from minitransfer.transfer import ScalarMix, add_lora, extract_features, features
from minitransfer.transfer.features import features_of, reading_of, remembered, rows_of

from .small import HELD_OUT, QUICK, TRAIN, bert, gpt


def tagged(rows: list[dict]) -> list[dict]:
    return [{"words": row["text"].split(), "tags": ["A" if len(word) > 3 else "B" for word in row["text"].split()]} for row in rows]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minitransfer" / "features"


@contextmanager
def counting(model: Model):
    """How many rows each pass through the blocks had."""
    counted: list[int] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, args: counted.append(len(args[0])))
    yield counted
    hook.remove()


def test_the_body_reads_each_row_once_and_never_again(word_tok):
    model = bert(word_tok)
    with counting(model) as counted:
        result = finetune(model, word_tok, train=TRAIN, validation=HELD_OUT, strategy="features", lr=1e-2, epochs=5, batch_size=16, **QUICK)
        assert sum(counted) == len({row["text"] for row in TRAIN + HELD_OUT}) and result.training.steps == 20
        assert len([one for one in result.history if "evaluation" in one]) == 5
        counted.clear()
        again = finetune(bert(word_tok), word_tok, train=TRAIN, validation=HELD_OUT, strategy="features", lr=1e-2, epochs=5, batch_size=16, **QUICK)
    with counting(again.model) as counted:
        finetune(again.model, word_tok, train=TRAIN, strategy=features(), steps=3, **QUICK)     # these rows without the others are another set
        assert sum(counted) == len({row["text"] for row in TRAIN})
        counted.clear()
        finetune(again.model, word_tok, train=TRAIN, strategy=features(), steps=3, **QUICK)
        assert counted == []
    assert [one["loss"] for one in again.history if "loss" in one] == [one["loss"] for one in result.history if "loss" in one]


@pytest.mark.parametrize("build,task", [(bert, "sequence"), (gpt, "sequence"), (bert, "token")], ids=["bert", "gpt2", "token"])
def test_every_step_is_that_of_the_head_on_a_running_body(word_tok, build, task):
    """Without dropout both are one computation; the padding of a batch is not part of it."""
    train, held_out = (tagged(part) if task == "token" else part for part in (TRAIN, HELD_OUT))
    seen: list[list[tuple[float, float]]] = []
    for strategy in ("head", "features"):
        result = finetune(build(word_tok, task), word_tok, task, train=train, validation=held_out, strategy=strategy, lr=1e-2, epochs=3, batch_size=16, **QUICK)
        seen.append([(one["loss"], one["grad_norm"]) if "loss" in one else (one["evaluation"]["loss"], one["evaluation"]["accuracy"]) for one in result.history])
    assert len(seen[0]) == 15 and seen[0][0][0] != seen[0][4][0]
    for head, kept in zip(*seen, strict=True):
        assert head == pytest.approx(kept, abs=2e-5)


def test_a_pooler_that_trains_is_no_part_of_the_features(word_tok, tmp_path):
    """The checkpoint of a masked model has no pooler, so it is fresh and trains; what is kept is what it reads."""
    bert(word_tok, "masked").save_pretrained(tmp_path / "masked")
    models = [Model.from_pretrained(tmp_path / "masked") for _ in range(2)]
    losses = [[one["loss"] for one in finetune(model, word_tok, train=TRAIN, strategy=strategy, lr=1e-2, steps=6, **QUICK).history]
              for model, strategy in zip(models, ("head", "features"), strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    torch.testing.assert_close(models[0].pooler.weight, models[1].pooler.weight, atol=1e-4, rtol=0)
    assert not torch.equal(models[0].pooler.weight, Model.from_pretrained(tmp_path / "masked", head="sequence", labels=["a", "b"]).pooler.weight)


def test_dropout_is_no_part_of_the_features(word_tok):
    model, plain = bert(word_tok, dropout=0.5), bert(word_tok)
    batch = word_tok([row["text"] for row in TRAIN[:5]])
    reading = reading_of(model)
    kept = features_of(model.train(), [batch], reading)
    assert model.training and all(module.training for module in model.modules())
    with remembered(model, kept, reading):
        torch.testing.assert_close(model.body(**batch).pooled, plain.eval().body(**batch).pooled, atol=1e-6, rtol=0)


def test_the_key_is_the_body_and_the_rows(word_tok, own_cache):
    def run(model: Model, rows: list[dict]) -> int:
        with counting(model) as counted:
            finetune(model, word_tok, train=rows, strategy="features", steps=1, **QUICK)
        return sum(counted)
    model = bert(word_tok)
    assert run(model, TRAIN) == len(TRAIN) and run(model, TRAIN[::-1]) == 0               # their order is none of its business
    assert run(model, TRAIN[:-1]) == len(TRAIN) - 1
    model.head.classifier.weight.data += 1.0
    assert run(model, TRAIN) == 0                                                         # nor is the head
    model.blocks[1].attn.k_proj.bias.data[3] += 1e-3
    assert run(model, TRAIN) == len(TRAIN)
    assert run(bert(word_tok, norm_eps=1e-3), TRAIN) == len(TRAIN)                        # the same weights, another function
    # a folder of its own for each, and nothing half-written; one that was cut off is written again
    folders = sorted(own_cache.iterdir())
    assert len(folders) == 4 and all(sorted(p.name for p in f.iterdir()) == ["features.bin", "keys.bin", "meta.json", "offsets.bin"] for f in folders)
    for folder in folders:
        (folder / "features.bin").write_bytes((folder / "features.bin").read_bytes()[:-4])
    assert run(bert(word_tok), TRAIN) == len(TRAIN) and run(bert(word_tok), TRAIN) == 0
    shutil.rmtree(own_cache)
    assert run(bert(word_tok), TRAIN) == len(TRAIN)


@pytest.mark.filterwarnings("ignore:.*were cut from their ends")
def test_the_key_is_also_the_tokenizer_the_length_and_the_reading(word_tok):
    """An answer kept for other ids, or of another layer, would be a wrong one without a word."""
    other = Tokenizer.train([row["text"] for row in TRAIN], vocab_size=60, max_len=29, min_count=1)
    model = bert(word_tok)
    seen = []
    for tok, given in ((word_tok, {}), (other, {}), (word_tok, {"max_length": 5}), (word_tok, {"layers": 1}), (word_tok, {"pooling": "mean"})):
        for fresh in (True, False):
            with counting(model) as counted:
                seen.append(extract_features(model, tok, TRAIN[:11], **given)[0])
            assert (sum(counted) > 0) is fresh
    assert all(np.array_equal(seen[i], seen[i + 1]) for i in range(0, 10, 2))
    assert all(not np.allclose(seen[0], one, atol=1e-3) for one in seen[2::2])


@pytest.mark.parametrize("estimator", [LinearSVC(), KNeighborsClassifier(3), GaussianNB(), make_pipeline(StandardScaler(), PCA(7), LogisticRegression())],
                         ids=lambda one: type(one).__name__)
def test_any_estimator_of_scikit_learn_takes_the_arrays(word_tok, estimator):
    found = cross_val_score(estimator, *extract_features(bert(word_tok), word_tok, TRAIN, pooling="mean", layers=0), cv=3)
    assert found.shape == (3,) and found.mean() > 0.55


def test_an_adapter_is_part_of_the_body(word_tok):
    """Of the same tensors another scale makes another function."""
    batch, found = word_tok([row["text"] for row in TRAIN[:5]]), []
    for alpha in (16, 32, 16):
        model = bert(word_tok)
        add_lora(model, r=2, alpha=alpha)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.fill_(0.1)
        kept = features_of(model, [batch], reading_of(model))
        found.append(np.array(kept.values))
        with torch.no_grad():
            np.testing.assert_allclose(found[-1][kept.number[next(rows_of(batch))[0]]], model.eval().body(**batch).x[0, 0].numpy(), atol=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-3) and np.array_equal(found[0], found[2])


def test_a_mix_of_layers_is_the_formula_and_finds_the_layer_that_knows():
    """Labels that only layer 2 of 4 can tell; the other layers are noise of the same size."""
    H = torch.randn(300, 4, 7, generator=torch.Generator().manual_seed(3))
    mix = ScalarMix(4)
    torch.testing.assert_close(mix(H), H.mean(1))
    mix.scores.data, mix.gamma.data = torch.tensor([0.0, 1.0, 2.0, -1.0]), torch.tensor(3.0)
    e = np.exp([0.0, 1.0, 2.0, -1.0])
    want = 3.0 * sum(float(e[i] / e.sum()) * H[:, i] for i in range(4))
    torch.testing.assert_close(mix(H), want)
    torch.testing.assert_close(mix(H[5]), want[5])
    classifier = nn.Sequential(ScalarMix(4), nn.Linear(7, 2))
    labels, optimizer = (H[:, 2].sum(-1) > 0).long(), torch.optim.Adam(classifier.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(H), labels).backward()
        optimizer.step()
    assert classifier[0].weights.argmax() == 2 and classifier[0].weights[2] > 0.8
    with pytest.raises(ValueError, match=r"3 layers for a mix of 4; .* give states \(\.\.\., 4, D\)"):
        classifier(H[:, :3])


def test_the_model_is_itself_again_afterwards(word_tok):
    """Also after an error. A body that went on answering from the cache would train without a gradient and without a word."""
    def fail(record: dict) -> None:
        raise KeyboardInterrupt
    model = bert(word_tok)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, word_tok, train=TRAIN, strategy="features", steps=2, on_step=fail, **QUICK)
    assert "body" not in vars(model)
    finetune(model, word_tok, train=TRAIN, strategy="features", steps=2, **QUICK)
    assert "body" not in vars(model)
    before = model.embed.tokens.weight.detach().clone()
    finetune(model, word_tok, train=TRAIN, strategy="full", lr=1e-3, steps=2, **QUICK)
    assert not torch.equal(model.embed.tokens.weight, before)


def test_rows_that_were_not_read_and_other_questions_go_to_the_body(word_tok):
    model = bert(word_tok).eval()
    known, other = (word_tok([row["text"] for row in rows]) for rows in (TRAIN[:4], HELD_OUT[:3]))
    reading = reading_of(model)
    kept, want = features_of(model, [known], reading), model(**other, output_hidden_states=True)
    with remembered(model, kept, reading), counting(model) as counted:
        assert model.body(**known).x.shape == (4, 1, 36) and counted == []
        assert torch.equal(model(**other).logits, want.logits) and counted == [3]
        assert len(model(**known, output_hidden_states=True).hidden_states) == 4 and counted == [3, 4]
        moved = known | {"token_type_ids": known["attention_mask"].long()}
        assert not torch.allclose(model(**moved).logits, model(**known).logits) and counted == [3, 4, 4]    # types are part of a row


@pytest.mark.parametrize("layers", [-1, 0, 2, (-4, -3, -2, -1)], ids=str)
@pytest.mark.parametrize("build,pooling", [(bert, "auto"), (gpt, "auto"), (bert, "last"), (gpt, "mean")])
def test_features_as_arrays_are_the_states_of_each_text_alone(word_tok, build, pooling, layers):
    model, rows = build(word_tok, dropout=0.3), TRAIN[:11]
    X, y = extract_features(model, word_tok, rows, layers=layers, pooling=pooling)
    assert y.tolist() == [row["label"] for row in rows]
    model.eval()
    for i, row in enumerate(rows):
        with torch.no_grad():
            states = model(**word_tok([row["text"]]), output_hidden_states=True).hidden_states
        x = torch.cat([states[k][0] for k in (layers if isinstance(layers, tuple) else (layers,))], -1)     # (T, W)
        want = {"mean": x.mean(0), "last": x[-1], "auto": x[-1 if model.config.causal else 0]}[pooling]
        assert X[i] == pytest.approx(want.numpy(), abs=1e-5)
    assert X.dtype == np.float32 and X.shape == (11, 36 * (4 if isinstance(layers, tuple) else 1))


def test_a_classifier_of_scikit_learn(word_tok):
    model = bert(word_tok)
    X, y = extract_features(model, word_tok, TRAIN, pooling="mean", layers=0)
    held_out, labels = extract_features(model, word_tok, HELD_OUT, pooling="mean", layers=0)
    assert LogisticRegression(max_iter=1000, C=100.0).fit(X, y).score(held_out, labels) >= 0.9      # which words occur decides, and their vectors differ
    alone, none = extract_features(model, word_tok, [{"text": row["text"]} for row in HELD_OUT], label=None, pooling="mean", layers=0)
    assert (alone == held_out).all() and none.shape == (0,)


@pytest.mark.parametrize("given,error,message", [
    ({"layers": 4}, ValueError, "layer 4 of a model with 3 blocks; .* give -4 to 3"),
    ({"pooling": "max"}, ValueError, "pooling='max'; it is one of 'first', 'last', 'mean'"),
    ({"pooling": "each"}, ValueError, "pooling='each' gives texts of different shape"),
    ({"layers": ()}, ValueError, r"layers=\(\); .*: give some, such as -1"),
    ({"label": "lable"}, KeyError, "lable"),
])
def test_bad_arguments(word_tok, own_cache, given, error, message):
    with pytest.raises(error, match=message):
        extract_features(bert(word_tok), word_tok, TRAIN, **given)
    assert not own_cache.exists() or not list(own_cache.iterdir())
