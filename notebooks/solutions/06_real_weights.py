"""Answers to the exercises of 06_real_weights: minitransfer check 06 notebooks/solutions/06_real_weights.py"""
import json
import re
import struct

PARTS = {"attention.self.query": "attn.q_proj", "attention.self.key": "attn.k_proj", "attention.self.value": "attn.v_proj", "attention.output.dense": "attn.o_proj",
         "attention.output.LayerNorm": "norm_attn", "intermediate.dense": "mlp.up_proj", "output.dense": "mlp.down_proj", "output.LayerNorm": "norm_mlp"}


def shapes(raw):
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    return {name: about["shape"] for name, about in header.items() if name != "__metadata__"}


def split_fused(weight):
    return weight.T.chunk(3, dim=0)


def our_name(theirs):
    found = re.fullmatch(r"bert\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", theirs)
    return f"blocks.{found[1]}.{PARTS[found[2]]}.{found[3]}" if found else None


def first_difference(ours, theirs, bar):
    for name, truth in theirs.items():
        far = (ours[name] - truth).abs().max()
        if not far <= bar * truth.abs().max().clamp(min=1):     # a NaN is not smaller than anything
            return name
    return None
