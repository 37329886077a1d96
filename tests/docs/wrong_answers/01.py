"""What learners write in 01, and what the verdict has to say: name -> (answer, pattern) ..."""
import minitransfer as mt

WRONG = {
    "lora_numbers": [(lambda blocks, d, r: blocks * 2 * r * d, "inserts")],
    "freeze_below_last_block": [(lambda model: mt.freeze(model, "embed"), "learns and should be frozen"),
                                (lambda model: mt.freeze(model, "embed, blocks"), "is frozen and should learn")],
    "sure_answers": [(lambda predictions, truth, threshold: (1.0, 0.6), "at 0.8")],
}
