"""Parity with the reference library, module by module: states, logits, loss and the gradient of every parameter."""
import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.families import find
from minitransfer.families.rules import Rule
from minitransfer.nn.heads import IGNORE
from tests.reference import HEADS, close, pair, perturbed

IDS = sorted(HEADS)


def texts(T: int, left: bool):
    ids, keep = torch.randint(2, 100, (3, T)), torch.ones(3, T, dtype=torch.bool)
    for row, n in ((1, 5), (2, 11)):
        keep[row, slice(None, T - n) if left else slice(n, None)] = False
    return ids, keep


def targets(head: str, ids, keep):
    T = ids.shape[1]
    if head == "sequence":
        return torch.tensor([2, 0, 1])
    if head == "token":
        return torch.randint(0, 3, ids.shape).masked_fill(~keep, IGNORE)
    if head == "span":
        first = keep.int().argmax(-1)
        return torch.stack([first + 1, first + 3], dim=1)
    if head == "causal":
        return ids.masked_fill(~keep, IGNORE)
    return ids.masked_fill((torch.rand(3, T) > 0.4) | ~keep, IGNORE)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("T", [13, 31])
@pytest.mark.parametrize("name", IDS)
def test_states_and_logits(name, T, left, tmp_path):
    reference, ours = pair(name, tmp_path)
    assert ours.head_name == HEADS[name]
    ids, keep = texts(T, left)
    types = torch.randint(0, 2, ids.shape) if name.startswith("Bert") else None
    with torch.no_grad():
        got = ours(ids, attention_mask=keep, token_type_ids=types, output_hidden_states=True, output_attentions=True)
        fast = ours(ids, attention_mask=keep, token_type_ids=types)
        for row in range(3):                                   # the truth: each row alone, without padding
            here = keep[row]
            kinds = {} if types is None else {"token_type_ids": types[row][here][None]}
            want = reference(ids[row][here][None], output_hidden_states=True, output_attentions=True, **kinds)
            assert len(want.hidden_states) == len(got.hidden_states) == ours.config.n_layers + 1
            for i, (theirs, mine) in enumerate(zip(want.hidden_states, got.hidden_states, strict=True)):
                close(mine[row][here], theirs[0], what=f"state {i}")
            for theirs, mine in zip(want.attentions, got.attentions, strict=True):
                close(mine[row][:, here][:, :, here], theirs[0], what="attention")
            for mine in (got, fast):
                if HEADS[name] == "span":
                    close(mine.logits[row][here], torch.stack([want.start_logits[0], want.end_logits[0]], dim=-1), what="logits")
                elif ours.head is not None:
                    theirs = want.prediction_logits if HEADS[name] == "masked+next" else want.logits
                    mine_logits = mine.logits[row][None] if HEADS[name] == "sequence" else mine.logits[row][here][None]
                    close(mine_logits, theirs, what="logits")
                if getattr(want, "pooler_output", None) is not None:
                    close(mine.pooled[row], want.pooler_output[0], what="pooled")
                if HEADS[name] == "masked+next":
                    close(mine.next_logits[row], want.seq_relationship_logits[0], what="next sentence")


def reference_loss(name, reference, ids, labels, types):
    """Their loss of each row alone, combined as one mean over all targets."""
    kinds = {} if types is None else {"token_type_ids": types}
    if HEADS[name] == "span":
        return reference(ids, start_positions=labels[:, 0], end_positions=labels[:, 1], **kinds).loss
    if HEADS[name] == "masked+next":
        return reference(ids, labels=labels, next_sentence_label=torch.tensor([1, 0, 1]), **kinds).loss
    return reference(ids, labels=labels, **kinds).loss


@pytest.mark.parametrize("name", [name for name in IDS if HEADS[name] != "none"])
def test_loss_and_every_gradient(name, tmp_path):
    reference, ours = pair(name, tmp_path)
    ids, keep = texts(17, left=False)
    keep[:] = True                                             # padding is judged above, on rows alone; here the batch is full
    labels = targets(HEADS[name], ids, keep)
    types = torch.randint(0, 2, ids.shape) if name.startswith("Bert") else None
    want = reference_loss(name, reference, ids, labels, types)
    want.backward()
    got = ours(ids, token_type_ids=types, labels=labels, next_labels=torch.tensor([1, 0, 1]) if HEADS[name] == "masked+next" else None)
    got.loss.backward()
    close(got.loss, want, what="loss")
    gradients, family, seen = dict(reference.named_parameters()), find(reference.config.model_type), set()
    for rule in family.WEIGHTS:
        if not isinstance(rule, Rule) or (rule.heads and ours.head_name not in rule.heads):
            continue
        for i in range(ours.config.n_layers) if "{i}" in rule.theirs else [None]:
            theirs, names = rule.names(i)
            parameter = gradients.get(family.PREFIX + theirs, gradients.get(theirs))
            if parameter is None:
                continue
            for one, gradient in zip(names, rule.op.read(parameter.grad, len(names)), strict=True):
                close(ours.get_parameter(one).grad, gradient, what=one)
                seen.add(one)
    assert seen == {one for one, _ in ours.named_parameters()}


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_padded_loss_is_the_mean_over_all_targets(name, tmp_path):
    """Rows of unequal length: every target counts once, whichever row it is in."""
    reference, ours = pair(name, tmp_path)
    ids, keep = texts(19, left=True)
    labels = targets(HEADS[name], ids, keep)
    total, count = 0.0, 0
    for row in range(3):
        one = labels[row][keep[row]][None]
        n = int((one[:, 1:] != IGNORE).sum()) if HEADS[name] == "causal" else int((one != IGNORE).sum())
        total, count = total + reference(ids[row][keep[row]][None], labels=one).loss * n, count + n
    close(ours(ids, attention_mask=keep, labels=labels).loss, total / count, what="loss")


@pytest.mark.slow
@pytest.mark.parametrize("name, changes", [
    ("BertForMaskedLM", {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}),
    ("GPT2LMHeadModel", {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_positions": 1024}),
], ids=["bert-base", "gpt2"])
def test_full_size(name, changes, tmp_path):
    reference, ours = pair(name, tmp_path, scale=0.02, **changes)
    ids = torch.randint(2, 30000, (2, 47))
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, 29:] = False
    with torch.no_grad():
        got = ours(ids, attention_mask=keep, output_hidden_states=True)
        for row in range(2):
            want = reference(ids[row][keep[row]][None], output_hidden_states=True)
            for i, (theirs, mine) in enumerate(zip(want.hidden_states, got.hidden_states, strict=True)):
                close(mine[row][keep[row]], theirs[0], bar=1e-4, what=f"state {i}")
            close(got.logits[row][keep[row]], want.logits[0], bar=1e-4, what="logits")


def test_parameter_counts_of_the_published_models():
    """109,482,240 and 124,439,808 are the published sizes of bert-base-uncased (with pooler) and gpt2."""
    bert = mt.Model(mt.ModelConfig(vocab_size=30522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512), seed=None)
    assert sum(p.numel() for p in bert.parameters()) == 109_482_240
    _, gpt2 = mt.families.read_config(transformers.GPT2Config().to_dict())
    assert sum(p.numel() for p in mt.Model(gpt2, "causal", seed=None).parameters()) == 124_439_808


def test_low_precision_is_no_worse_than_the_reference(tmp_path):
    """bf16: our distance from the fp64 truth is at most the reference library's own, with a tenth of slack for the order of sums."""
    perturbed("BertModel", scale=0.05).save_pretrained(tmp_path)
    ids = torch.randint(2, 100, (7, 31))
    with torch.no_grad():
        truth = transformers.BertModel.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")(ids).last_hidden_state
        theirs = transformers.BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")(ids).last_hidden_state
        ours = mt.Model.from_pretrained(tmp_path, dtype=torch.bfloat16)(ids).last_hidden_state
    assert (ours.double() - truth).abs().mean() <= 1.1 * (theirs.double() - truth).abs().mean()
