"""What learners write in 14, and what the verdict has to say: name -> (answer, pattern) ..."""
import torch


def only_b(tags):
    found = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = i + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            found.append((tag[2:], i, end))
    return found


def forgets_the_last(tags):
    found, kind, start = [], None, 0
    for i, tag in enumerate(tags):
        goes_on = kind is not None and tag == f"I-{kind}"
        if kind is not None and not goes_on:
            found.append((kind, start, i))
            kind = None
        if tag != "O" and not goes_on:
            kind, start = tag[2:], i
    return found


def each_alone(start, end, allowed, longest):
    return int(start.masked_fill(~allowed, -torch.inf).argmax()), int(end.masked_fill(~allowed, -torch.inf).argmax())


def one_longer(start, end, allowed, longest):
    both = start[:, None] + end[None]
    possible = torch.ones_like(both, dtype=torch.bool).triu().tril(longest) & allowed[:, None] & allowed[None]
    return divmod(int(both.masked_fill(~possible, -torch.inf).argmax()), len(start))


def of_sets(answer, truth):
    said, there = set(answer.lower().split()), set(truth.lower().split())
    return 2 * len(said & there) / max(len(said) + len(there), 1)


WRONG = {
    "entities": [(only_b, "it has"), (forgets_the_last, "it has")],
    "best_span": [(each_alone, "it is"), (one_longer, "longest=")],
    "answer_f1": [(of_sets, "it is"), (lambda answer, truth: float(answer == truth), "it is")],
    "pair_loss": [(lambda a, b, scale: -(a @ b.T).log_softmax(-1).diagonal().sum(), "the loss of three pairs"),
                  (lambda a, b, scale: -(scale * a @ b.T).log_softmax(0).diagonal().sum(), "the loss of three pairs"),
                  (lambda a, b, scale: -(scale * a @ b.T).log_softmax(-1).diagonal().mean(), "the loss of three pairs"),
                  (lambda a, b, scale: -(scale * a @ b.detach().T).log_softmax(-1).diagonal().sum(), "the gradient")],
}
