"""Encoder-decoders in float16 on a CPU: finite, and no further from the fp64 truth than the reference library."""
import pytest
import torch
import transformers

import minitransfer as mt

from .cases import CASES

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name, class_name", [("bart", "BartModel"), ("m2m-100", "M2M100Model")])
def test_float16(name, class_name, tmp_path):
    BY_NAME[name].reference(class_name).half().float().save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    ids, written = (torch.randint(3, 103, (5, n), generator=generator) for n in (23, 17))

    def theirs(dtype):
        model = getattr(transformers, class_name).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")
        return model(ids, decoder_input_ids=written).last_hidden_state.double()
    with torch.no_grad():
        truth, model = theirs(torch.float64), mt.Model.from_pretrained(tmp_path, dtype=torch.float16)
        for more in ({}, {"output_attentions": True}):                           # the fast path and the one that shows
            ours = model(ids, decoder_input_ids=written, **more).last_hidden_state
            assert ours.dtype == torch.float16 and ours.isfinite().all()
            assert (ours.double() - truth).abs().mean() <= 1.1 * (theirs(torch.float16) - truth).abs().mean()


def test_float16_trains_and_writes(tmp_path):
    """Padding, a loss and its gradients, and a text, all finite."""
    BY_NAME["bart"].reference("BartForConditionalGeneration").save_pretrained(tmp_path)
    model = mt.Model.from_pretrained(tmp_path, dtype=torch.float16)
    ids, keep = torch.randint(3, 103, (3, 11)), torch.tensor([[1] * 11, [1] * 4 + [0] * 7, [1] * 7 + [0] * 4])
    out = model(ids, keep, labels=ids.masked_fill(keep == 0, -100))
    out.loss.backward()
    assert out.loss.isfinite() and out.logits.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert mt.generate(model.eval(), ids, keep, max_new_tokens=5, num_beams=2).shape == (3, 6)
