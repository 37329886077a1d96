"""Answers to the exercises of 01_first_run: minitransfer check 01 notebooks/solutions/01_first_run.py"""
import minitransfer as mt


def lora_numbers(blocks, d, r):
    return blocks * 2 * (r * d + d * r)


def freeze_below_last_block(model):
    mt.freeze(model, f"embed, blocks.0-{len(model.blocks) - 2}")


def sure_answers(predictions, truth, threshold):
    pairs = zip(predictions, truth, strict=True)
    kept = [one.label == label for one, label in pairs if one.probability >= threshold]
    return len(kept) / len(truth), sum(kept) / len(kept) if kept else 0.0
