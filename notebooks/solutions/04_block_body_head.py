"""Answers to the exercises of 04_block_body_head: minitransfer check 04 notebooks/solutions/04_block_body_head.py"""
import torch


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)                 # of all D numbers: divided by D, not by D - 1
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def block(x, attention, mlp, norm_attn, norm_mlp, pre_norm):
    if pre_norm:
        x = x + attention(norm_attn(x))
        return x + mlp(norm_mlp(x))
    x = norm_attn(x + attention(x))
    return norm_mlp(x + mlp(x))


def mean_token(states, keep):
    return (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)


def parameters(V, P, types, D, F, L):
    norm = 2 * D
    block = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * norm
    return (V + P + types) * D + norm + L * block + D * D + D
