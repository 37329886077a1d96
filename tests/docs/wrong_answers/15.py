"""What learners write in 15, and what the verdict has to say: name -> (answer, pattern) ..."""
import torch


def unshifted(logits, ids, first):
    return logits[first:].log_softmax(-1).gather(1, ids[first:, None]).mean()


def summed(logits, ids, first):
    return logits[first - 1:-1].log_softmax(-1).gather(1, ids[first:, None]).sum()


def one_late(ids, keep, prompt_lengths):
    return ids.masked_fill(~keep | (torch.arange(ids.shape[1]) <= prompt_lengths[:, None]), -100)


def with_padding(ids, keep, prompt_lengths):
    return ids.masked_fill(torch.arange(ids.shape[1]) < prompt_lengths[:, None], -100)


def without_end(ids, keep, prompt_lengths):
    last = torch.arange(ids.shape[1]) >= keep.sum(1, keepdim=True) - 1
    return ids.masked_fill(~keep | last | (torch.arange(ids.shape[1]) < prompt_lengths[:, None]), -100)


def overflows(chosen, rejected, chosen_before, rejected_before, beta):
    ahead = (chosen - chosen_before) - (rejected - rejected_before)
    return -torch.log(1 / (1 + torch.exp(-beta * ahead))).sum()


def without_reference(chosen, rejected, chosen_before, rejected_before, beta):
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected)).sum()


WRONG = {
    "label_score": [(unshifted, "the score with first=1"), (summed, "the score with first=1")],
    "calibrated": [(lambda scores, empty: scores.softmax(-1) / empty.softmax(-1).mean(0), "a difference of"),
                   (lambda scores, empty: (scores - empty.mean(0)).softmax(-1), "a difference of")],
    "response_labels": [(one_late, "the labels: a difference of"), (with_padding, "the labels: a difference of"), (without_end, "the labels: a difference of")],
    "preference_loss": [(overflows, "wrong side.*"), (without_reference, "the loss of three pairs"), (lambda *given: -preference(*given), "the loss of three pairs")],
}


def preference(chosen, rejected, chosen_before, rejected_before, beta):
    return -torch.nn.functional.logsigmoid(beta * (chosen - chosen_before - rejected + rejected_before)).sum()
