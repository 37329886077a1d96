"""Distillation against its formula written out, and a student that learns."""
import pytest
import torch
import transformers
from torch.nn.functional import cosine_embedding_loss, cross_entropy

import minitransfer as mt
from minitransfer.objectives import Distilled
from minitransfer.objectives.distillation import kept_blocks, soft_targets
from minitransfer.training import train
from minitransfer.training.settings import TrainSettings
from minitransfer.transfer.student import student
from tests.unit.tiny import bert, gpt2, moved

GENERATOR = torch.Generator()


def ids(B, T, seed=1):
    return torch.randint(101, (B, T), generator=torch.Generator().manual_seed(seed))


def kl(teacher, learner, T):
    p, q = (teacher.double() / T).softmax(-1), (learner.double() / T).softmax(-1)
    return T * T * (p * (p / q).log()).sum()


def test_soft_targets_are_the_divergence_written_out():
    teacher, learner = torch.randn(5, 7), torch.randn(5, 7, requires_grad=True)
    found = soft_targets(learner, teacher, 3.0)
    torch.testing.assert_close(found.double(), kl(teacher, learner, 3.0), atol=1e-5, rtol=1e-5)
    g, = torch.autograd.grad(found, learner)
    torch.testing.assert_close(g, 3.0 * ((learner / 3).softmax(-1) - (teacher / 3).softmax(-1)), atol=1e-5, rtol=1e-5)     # T (q - p)


@pytest.mark.parametrize("kind", ["sequence", "causal"])
def test_the_three_terms(kind):
    """Padded rows; the reference takes logits and states from forward() and sums the terms by hand."""
    config = gpt2(dropout=0.0) if kind == "causal" else bert(dropout=0.0)
    labels = None if kind == "causal" else ["a", "b", "c"]
    teacher, learner = (moved(mt.Model(config, kind, labels=labels, seed=s)).eval() for s in (1, 2))
    keep = torch.arange(11)[None] < torch.tensor([11, 7, 4])[:, None]
    batch = {"input_ids": ids(3, 11), "attention_mask": keep}
    if kind == "sequence":
        batch["labels"] = torch.tensor([2, 0, 1])
    total, n = Distilled(teacher, temperature=1.7, soft=0.9, hard=0.4, cosine=0.3)(learner, batch, GENERATOR)
    ours, theirs = (m(batch["input_ids"], keep) for m in (learner, teacher))
    if kind == "causal":
        asked = (keep[:, 1:] & keep[:, :-1])
        a, b, goal = ours.logits[:, :-1][asked], theirs.logits[:, :-1][asked], batch["input_ids"][:, 1:][asked]
    else:
        a, b, goal = ours.logits, theirs.logits, batch["labels"]
    x, y = ours.last_hidden_state[keep], theirs.last_hidden_state[keep]
    angle = cosine_embedding_loss(x, y, torch.ones(len(x)))
    expected = 0.9 * kl(b, a, 1.7) + 0.4 * cross_entropy(a.double(), goal, reduction="sum") + 0.3 * len(goal) * angle
    assert int(n) == len(goal)
    torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-5)


def test_the_teacher_gets_no_gradient_and_stays_in_evaluation_mode():
    teacher, learner = (mt.Model(gpt2(dropout=0.1), "causal", seed=s) for s in (1, 2))
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    Distilled(teacher)(learner.train(), {"input_ids": ids(2, 7)}, GENERATOR)[0].backward()
    assert not teacher.training and all(p.grad is None and torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert all(p.grad is not None for p in learner.parameters())


def test_a_student_starts_from_blocks_spread_evenly():
    assert kept_blocks(12, 6).tolist() == [0, 2, 4, 7, 9, 11] and kept_blocks(5, 1).tolist() == [0] and kept_blocks(5, 5).tolist() == [0, 1, 2, 3, 4]
    teacher = moved(mt.Model(gpt2(n_layers=5), "causal"))
    made = student(teacher, 3)
    assert made.config.n_layers == 3 and made.head.tokens[0] is made.embed.tokens and made.embed.tokens is not teacher.embed.tokens
    for i, j in enumerate((0, 2, 4)):
        for p, q in zip(made.blocks[i].parameters(), teacher.blocks[j].parameters(), strict=True):
            assert torch.equal(p, q) and p is not q


@pytest.mark.parametrize("n,windows", [(6, [None, 3, 3, 3, 3, None]), (3, [None, None, None])])
def test_a_student_keeps_how_far_each_block_sees_and_is_saved(tmp_path, n, windows):
    """A body whose blocks differ in their window and its base of the rotation: the kept ones see as they did."""
    hf = transformers.ModernBertConfig(vocab_size=101, hidden_size=32, num_hidden_layers=7, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
                                       local_attention=4, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    transformers.ModernBertModel(hf).save_pretrained(tmp_path / "teacher")
    teacher = mt.Model.from_pretrained(tmp_path / "teacher").eval()
    made, x = student(teacher, n), ids(2, 23)
    assert [made.config.window_of(i) for i in range(n)] == windows == [teacher.config.window_of(int(i)) for i in kept_blocks(7, n)]
    made.save_pretrained(tmp_path / "student")
    reference = transformers.ModernBertModel.from_pretrained(tmp_path / "student", attn_implementation="eager", pad_token_id=0).eval()
    with torch.no_grad():
        assert (reference(x).last_hidden_state - made(x).last_hidden_state).abs().max() < 1e-5


def test_a_whole_copy_has_nothing_to_learn():
    teacher = moved(mt.Model(gpt2(dropout=0.0), "causal")).eval()
    made = student(teacher, teacher.config.n_layers).eval()
    total, _ = Distilled(teacher, hard=0.0)(made, {"input_ids": ids(3, 7)}, GENERATOR)
    assert abs(total.item()) < 1e-4


@pytest.mark.slow
def test_the_student_comes_to_answer_like_its_teacher():
    """No labels at all: the divergence on texts it was not taught on falls to a third."""
    class Texts:
        def __len__(self):
            return 50

        def __getitem__(self, k):
            return {"input_ids": ids(16, 13, seed=k)}

    teacher = moved(mt.Model(gpt2(dropout=0.0), "causal")).eval()
    made, objective = student(teacher, 1), Distilled(teacher, hard=0.0, cosine=0.0, soft=1.0)

    def apart():
        with torch.no_grad():
            total, n = objective(made.eval(), {"input_ids": ids(16, 13, seed=999)}, GENERATOR)
        return total.item() / int(n)

    before = apart()
    train(made, Texts(), objective, TrainSettings(steps=120, lr=3e-3, precision="fp32", progress=False))
    assert apart() < before / 3


def test_refused():
    teacher = mt.Model(gpt2(), "causal")
    with pytest.raises(ValueError, match="a temperature is above 0 and a weight at least 0"):
        Distilled(teacher, temperature=0)
    with pytest.raises(ValueError, match="both must answer the same question"):
        Distilled(teacher)(mt.Model(gpt2(vocab_size=103), "causal"), {"input_ids": ids(2, 7)}, GENERATOR)
    with pytest.raises(ValueError, match="an angle needs one width"):
        Distilled(teacher)(mt.Model(gpt2(d_model=16, n_heads=2), "causal"), {"input_ids": ids(2, 7)}, GENERATOR)
    with pytest.raises(ValueError, match="n_layers=9 of a teacher with"):
        student(teacher, 9)
