"""What learners write in 11, and what the verdict has to say: name -> (answer, pattern) ..."""


def to_zero(now, start, importance, strength):
    return strength / 2 * sum((importance[name] * now[name] ** 2).sum() for name in start)


def without_half(now, start, importance, strength):
    return strength * sum((importance[name] * (now[name] - w0) ** 2).sum() for name, w0 in start.items())


def detached(now, start, importance, strength):
    return strength / 2 * sum((importance[name] * (now[name].detach() - w0) * (now[name] - w0)).sum() for name, w0 in start.items())


def not_centred(x, y):
    return (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


WRONG = {
    "ewc_pull": [(to_zero, "the pull"), (without_half, "the pull"), (detached, "the slope at"),
                 (lambda now, start, importance, strength: strength / 2 * sum((importance[name] * (w - start[name]) ** 2).sum() for name, w in now.items()), "KeyError")],
    "fisher_diagonal": [(lambda slopes: slopes.mean(0) ** 2, "a difference of"), (lambda slopes: slopes.var(0), "a difference of"),
                        (lambda slopes: slopes.abs().mean(0), "a difference of")],
    "linear_cka": [(not_centred, "it is"), (lambda x, y: float("nan") if x.shape != y.shape else 1.0, "it is")],
    "old_rows_and_weight": [(lambda new, share: (new * share, share), "it is"), (lambda new, share: (new * share / (1 - share), 1.0), "is multiplied by")],
}
