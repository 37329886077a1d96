"""Similarity against sentence-transformers: its losses on fixed batches, its folders, its search."""
import pytest
import sentence_transformers
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses

import minitransfer as mt
from minitransfer.tasks import SimilarityTask, finetune, predict, search
from minitransfer.text import Tokenizer

FIRST = ["A man plays a guitar.", "The sea is calm", "Two dogs run through the long grass of the park", "It rains.", "She reads a book"]
SECOND = ["Someone is playing music", "The water is quiet today.", "Dogs are running", "The sun is out and the sky is blue", "A woman reads"]
SCORES = [0.8, 0.7, 0.9, 0.1, 0.85]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A bundled model with every weight moved, written as a sentence-transformers folder, and read by that library."""
    tok = Tokenizer.from_pretrained("mini-bert")
    model = mt.Model.from_pretrained("mini-bert", head="embedding")
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    folder = tmp_path_factory.mktemp("st")
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return model.eval(), tok, sentence_transformers.SentenceTransformer(str(folder), device="cpu").eval()


@pytest.mark.parametrize("problem", ["cosine", "negatives"])
def test_losses_and_gradients_are_theirs(parts, problem):
    model, tok, theirs = parts
    task = SimilarityTask(label="label" if problem == "cosine" else None)
    rows = [{"text": a, "pair": b, "label": s} for a, b, s in zip(FIRST, SECOND, SCORES, strict=True)]
    batch = task.batches(rows, tok, [], 5, None, 128, 0).rows(range(5))
    model.head.use(task.problem)
    model.zero_grad()
    out = model(**batch)
    out.loss.backward()
    loss = losses.CosineSimilarityLoss(theirs) if problem == "cosine" else losses.MultipleNegativesRankingLoss(theirs)
    theirs.zero_grad()
    expected = loss([theirs.tokenize(FIRST), theirs.tokenize(SECOND)], torch.tensor(SCORES))
    expected.backward()
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    embeddings = dict(theirs.named_parameters())
    name = next(n for n in embeddings if n.endswith("word_embeddings.weight"))
    torch.testing.assert_close(model.embed.tokens.weight.grad, embeddings[name].grad, atol=1e-5, rtol=1e-4)
    name = next(n for n in embeddings if n.endswith("layer.1.attention.self.query.weight"))
    torch.testing.assert_close(model.blocks[1].attn.q_proj.weight.grad, embeddings[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_tuning_moves_pairs_to_their_scores_and_the_folder_is_theirs(parts, tmp_path):
    _, tok, _ = parts
    rows = [{"text": a, "pair": b, "label": 5 * s} for a, b, s in zip(FIRST, SECOND, SCORES, strict=True)]
    model = mt.Model.from_pretrained("mini-bert", head="embedding")
    result = finetune(model, tok, SimilarityTask(highest=5.0), train=rows, epochs=25, lr=3e-4, batch_size=5, out=tmp_path / "run", precision="fp32", progress=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 5
    found = [one.value for one in predict(tmp_path / "run", texts=FIRST, pairs=SECOND)]
    assert found == pytest.approx([5 * s for s in SCORES], abs=0.8)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "run/model"), device="cpu")
    vectors = theirs.encode([*FIRST, *SECOND], convert_to_tensor=True)
    assert (5 * util.pairwise_cos_sim(vectors[:5], vectors[5:])).tolist() == pytest.approx(found, abs=1e-4)


@pytest.mark.slow
def test_partners_find_each_other_when_trained_with_negatives(parts):
    _, tok, _ = parts
    rows = [{"text": a, "pair": b} for a, b in zip(FIRST, SECOND, strict=True)]
    held_out = [{"text": b, "pair": a} for a, b in zip(FIRST, SECOND, strict=True)]
    result = finetune(mt.Model.from_pretrained("mini-bert", head="embedding"), tok, SimilarityTask(label=None), train=rows, validation=held_out, epochs=15, lr=3e-4,
                      batch_size=5, precision="fp32", progress=False)
    assert result.metrics["accuracy"] == 1.0 and result.metrics["n"] == 5 and result.metrics["loss"] < 0.5


def test_search_is_a_full_sort():
    queries, corpus = torch.randn(7, 13), torch.randn(101, 13)
    expected = util.cos_sim(queries, corpus).sort(descending=True)
    values, index = search(queries, corpus, k=5, chunk=17)
    assert torch.equal(index, expected.indices[:, :5])
    torch.testing.assert_close(values, expected.values[:, :5])
    assert search(queries, corpus[:3], k=5)[1].shape == (7, 3)


def test_search_is_semantic_search():
    queries, corpus = torch.randn(7, 13), torch.randn(101, 13)
    theirs = util.semantic_search(queries, corpus, top_k=6, corpus_chunk_size=23)
    values, index = search(queries, corpus, k=6, chunk=31)
    assert index.tolist() == [[one["corpus_id"] for one in row] for row in theirs]
    torch.testing.assert_close(values, torch.tensor([[one["score"] for one in row] for row in theirs]))


@pytest.mark.slow
def test_zero_shot_on_real_pairs_is_theirs(parts, data):
    """Spearman of cosine and score on 300 pairs of stsb."""
    from minitransfer.text import read_rows
    model, tok, theirs = parts
    rows = read_rows(data / "stsb/en/validation.csv")[:300]
    task = SimilarityTask("sentence1", "sentence2", "score", highest=5.0)
    with torch.no_grad():
        found = task.evaluation(task.batches(rows, tok, [], 32, None, 128, 0))(model)
    vectors = [theirs.encode([row[name] for row in rows], convert_to_tensor=True) for name in ("sentence1", "sentence2")]
    from scipy.stats import spearmanr
    expected = spearmanr(util.pairwise_cos_sim(*vectors).numpy(), [float(row["score"]) for row in rows]).statistic
    assert found["spearman"] == pytest.approx(expected, abs=1e-3) and found["n"] == 300


def test_refused(parts):
    model, tok, _ = parts
    with pytest.raises(ValueError, match=r"a row 0: 'label' is 4; a cosine is at most 1: say which score means the same"):
        SimilarityTask().batches([{"text": "a", "pair": "b", "label": 4}], tok, [], 2, None, None, 0)
    with pytest.raises(ValueError, match="texts without pairs; a similarity is that of two"):
        SimilarityTask().predict(model, tok, ["a"], None, 2, None)
    with pytest.raises(ValueError, match="3 texts and 1 labels for an embedding head"):
        model(torch.ones(3, 5, dtype=torch.long), labels=torch.ones(1))
    with pytest.raises(ValueError, match="k=0 of 3 vectors"):
        search(torch.ones(1, 3), torch.ones(3, 3), k=0)
    with pytest.raises(ValueError, match="max_tokens=99 for pairs"):
        SimilarityTask(label=None).batches([{"text": "a", "pair": "b"}], tok, [], None, 99, None, 0)
