"""What learners write in 06, and what the verdict has to say: name -> (answer, pattern) ..."""
import json
import struct


def with_metadata(raw):
    (length,) = struct.unpack("<Q", raw[:8])
    return {name: about.get("shape") for name, about in json.loads(raw[8:8 + length]).items()}


def big_endian(raw):
    (length,) = struct.unpack(">Q", raw[:8])
    return json.loads(raw[8:8 + length])


def first_digit(theirs):
    parts = {"attention.self.query": "attn.q_proj", "attention.self.key": "attn.k_proj", "attention.self.value": "attn.v_proj", "attention.output.dense": "attn.o_proj",
             "attention.output.LayerNorm": "norm_attn", "intermediate.dense": "mlp.up_proj", "output.dense": "mlp.down_proj", "output.LayerNorm": "norm_mlp"}
    if not theirs.startswith("bert.encoder.layer."):
        return None
    rest, kind = theirs.removeprefix("bert.encoder.layer.").rsplit(".", 1)
    return f"blocks.{rest[0]}.{parts.get(rest[2:], '?')}.{kind}"


def absolute(ours, theirs, bar):
    return next((name for name, t in theirs.items() if (ours[name] - t).abs().max() > bar), None)


def blind_to_nan(ours, theirs, bar):
    return next((name for name, t in theirs.items() if (ours[name] - t).abs().max() > bar * t.abs().max().clamp(min=1)), None)


def signed(ours, theirs, bar):
    return next((name for name, t in theirs.items() if not (ours[name] - t).max() <= bar * t.abs().max().clamp(min=1)), None)


WRONG = {
    "shapes": [(with_metadata, "__metadata__ is no tensor"), (big_endian, "it stopped with ")],
    "split_fused": [(lambda weight: weight.chunk(3, dim=1), "blocks.0.attn.q_proj.weight: a difference of"),
                    (lambda weight: weight.T.reshape(-1, 3, weight.shape[0]).unbind(1), "a difference of"),
                    (lambda weight: weight.T.chunk(3, dim=0)[::-1], "a difference of")],
    "our_name": [(first_digit, "block 11"), (lambda theirs: theirs, "it is None")],
    "first_difference": [(absolute, "within its bar"), (blind_to_nan, "for a NaN"), (signed, "two that differ")],
}
