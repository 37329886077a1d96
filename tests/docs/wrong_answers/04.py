"""What learners write in 04, and what the verdict has to say: name -> (answer, pattern) ..."""
import torch


def unbiased(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) * weight + bias


def eps_outside(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + 1000 * eps) * weight + bias


def over_positions(x, weight, bias, eps):
    return (x - x.mean(-2, keepdim=True)) / torch.sqrt(x.var(-2, keepdim=True, correction=0) + eps) * weight + bias


def always_post(x, attention, mlp, norm_attn, norm_mlp, pre_norm):
    x = norm_attn(x + attention(x))
    return norm_mlp(x + mlp(x))


def without_the_second_addition(x, attention, mlp, norm_attn, norm_mlp, pre_norm):
    x = x + attention(norm_attn(x)) if pre_norm else norm_attn(x + attention(x))
    return mlp(norm_mlp(x)) if pre_norm else norm_mlp(mlp(x))


def swapped(x, attention, mlp, norm_attn, norm_mlp, pre_norm):
    if pre_norm:
        x = x + attention(norm_mlp(x))
        return x + mlp(norm_attn(x))
    x = norm_mlp(x + attention(x))
    return norm_attn(x + mlp(x))


WRONG = {
    "layer_norm": [(unbiased, "a difference of"), (eps_outside, "a difference of"), (over_positions, "a difference of")],
    "block": [(always_post, "in the engine, "), (without_the_second_addition, "in the engine, "), (swapped, "in the engine, ")],
    "mean_token": [(lambda states, keep: states.mean(1), "in the engine, the embeddings"), (lambda states, keep: (states * keep[..., None]).mean(1), "a difference of"),
                   (lambda states, keep: (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True), "the means has a NaN")],
    "parameters": [(lambda V, P, types, D, F, L: (V + P + types) * D + L * (4 * D * D + 2 * D * F), "it is "),
                   (lambda V, P, types, D, F, L: (V + P + types) * D + L * (4 * (D * D + D) + 2 * D * F + F + D + 4 * D) + D * D + D, "it is ")],
}
