"""What learners write in 13, and what the verdict has to say: name -> (answer, pattern) ..."""
from collections import Counter

import numpy as np


def kl(p, q):
    at = p > 0
    return (p[at] * np.log2(p[at] / q[at].clip(1e-12))).sum()


def one_sided(p_counts, q_counts):
    return kl(p_counts / p_counts.sum(), q_counts / q_counts.sum())


def in_nats(p_counts, q_counts):
    p, q = p_counts / p_counts.sum(), q_counts / q_counts.sum()
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2 * np.log(2)


def thrown_together(p_counts, q_counts):
    """The mean of the counts, in which the longer text weighs more."""
    p, q, m = (one / one.sum() for one in (p_counts, q_counts, p_counts + q_counts))
    return (kl(p, m) + kl(q, m)) / 2


def jaccard(a, b, k):
    first, second = ({word for word, _ in Counter(sorted(one)).most_common(k)} for one in (a, b))
    return len(first & second) / max(1, len(first | second))


def of_k(a, b, k):
    first, second = ({word for word, _ in Counter(sorted(one)).most_common(k)} for one in (a, b))
    return len(first & second) / k


def uncut(a, b, k):
    first, second = ({word for word, _ in Counter(sorted(one)).most_common(k)} for one in (a, b))
    return len(first & second) / max(1, min(len(first), len(second)))


def ties_by_place(a, b, k):
    k = min(k, len(set(a)), len(set(b)))
    first, second = ({word for word, _ in Counter(one).most_common(k)} for one in (a, b))
    return len(first & second) / max(1, k)


def mean_of_means(before, after):
    return np.mean([s / n for s, n in after if n]) - np.mean([s / n for s, n in before if n])


WRONG = {
    "divergence": [(one_sided, "bits for the counts"), (in_nats, "it is 1.0000"), (thrown_together, "it is 1.0000"),
                   (lambda p, q: float(np.abs(p / p.sum() - q / q.sum()).sum() / 2), "it is 0.3113")],
    "common_words": [(jaccard, "it is 0.500"), (of_k, "k=10000"), (uncut, "k=10000"), (ties_by_place, "k=10000")],
    "loss_rise": [(mean_of_means, "batches with"), (lambda before, after: sum(s for s, _ in after) - sum(s for s, _ in before), "batches with"),
                  (lambda before, after: sum(s for s, _ in before) / sum(n for _, n in before) - sum(s for s, _ in after) / sum(n for _, n in after), "batches with")],
    "old_rows": [(lambda k, B, share: int(B * float(share)), "old rows in the first"), (lambda k, B, share: round(B * float(share)), "old rows in the first"),
                 (lambda k, B, share: int((k + 1) * B * float(share)) - int(k * B * float(share)), "with a share of 0.29"),
                 (lambda k, B, share: int((k + 1) * B * float(share)), "in the first 2 batches")],
}
