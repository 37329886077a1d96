"""Fine-tuning step by step against the reference library: its BERT, torch's AdamW, its schedule, its clipping, the same batches."""
import pytest
import torch
import transformers

from minitransfer.nn.model import Model
from minitransfer.tasks import finetune
from minitransfer.tasks.sequence import LabelledBatches
from tests.reference import perturbed

from .small import QUICK, TRAIN

STEPS, WARMUP, PEAK, DECAY, CLIP = 20, 4, 5e-3, 0.1, 0.2
FROZEN = {"full": (), "last:1": ("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1."), "head": ("bert.",)}


def their_loop(model: torch.nn.Module, batches: LabelledBatches) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    none = [p for name, p in trained.items() if "bias" in name or "LayerNorm" in name]
    decay = [p for name, p in trained.items() if not ("bias" in name or "LayerNorm" in name)]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": DECAY}, {"params": none, "weight_decay": 0.0}], lr=PEAK, foreach=False)
    rate = transformers.get_scheduler("linear", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS).lr_lambdas[0]
    seen = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate(max(step, min(step + 1, WARMUP)))          # our warm-up is one step ahead, so that no step is at rate 0
        loss = model(**batches[step]).loss
        loss.backward()
        seen.append((loss.item(), torch.nn.utils.clip_grad_norm_(trained.values(), CLIP).item()))
        optimizer.step()
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("strategy", FROZEN)
def test_the_loss_curve_is_the_reference_librarys(word_tok, tmp_path, strategy):
    """Without dropout; three blocks, rows of many lengths, some gradients clipped."""
    perturbed("BertModel", vocab_size=word_tok.vocab_size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(tmp_path / "body")
    ours = Model.from_pretrained(tmp_path / "body")
    ours.set_head("sequence", ["neg", "pos"], seed=5).save_pretrained(tmp_path / "start")
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "start", attn_implementation="eager").train()
    for name, p in theirs.named_parameters():
        p.requires_grad_(not (FROZEN[strategy] and name.startswith(FROZEN[strategy])))
    wanted = their_loop(theirs, LabelledBatches(TRAIN, word_tok, ["neg", "pos"], batch_size=16, seed=5))

    seen: list[tuple[float, float]] = []
    finetune(ours, word_tok, train=TRAIN, strategy=strategy, steps=STEPS, batch_size=16, lr=PEAK, warmup=WARMUP, weight_decay=DECAY, max_grad_norm=CLIP, seed=5,
             on_step=lambda one: seen.append((one["loss"], one["grad_norm"])), **QUICK)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    assert wanted[-1][0] < wanted[0][0] - (0.1 if strategy == "full" else 0.001)
