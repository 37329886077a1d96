"""Claims that sizes and counts decide: no model is loaded."""
from __future__ import annotations

from ...tasks.metrics import wilson
from ..tables import Interval
from .base import Claim, Finding, result

PETAFLOP_DAY = 1e15 * 86_400
LLAMA_7B = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096), "gate": (4096, 11_008), "up": (4096, 11_008), "down": (11_008, 4096)}
LLAMA_7B_BLOCKS, LLAMA_7B_NUMBERS = 32, 6_738_415_616
GPT2 = {"c_attn": (768, 2304), "attention c_proj": (768, 768), "mlp c_proj": (3072, 768)}
GPT2_NUMBERS = 124_439_808
MILLION = 1e6


def lora_numbers(shapes: list[tuple[int, int]], r: int, blocks: int) -> int:
    """r (in + out) for each matrix. Source: Hu et al. 2022, section 4.1."""
    return blocks * sum(r * (d_in + d_out) for d_in, d_out in shapes)


def bert_numbers(blocks: int, d: int, ff: int, vocab: int, positions: int = 512, types: int = 2, pooler: bool = True) -> int:
    """The parameters of an encoder like BERT: tables and their norm, blocks of four attention matrices, two feed-forward ones, two norms; a pooler."""
    embed = (vocab + positions + types) * d + 2 * d
    block = 4 * (d * d + d) + d * ff + ff + ff * d + d + 4 * d
    return embed + blocks * block + (d * d + d if pooler else 0)


def gpt3_flops() -> Finding:
    right = 3640 * PETAFLOP_DAY
    return Finding("not as stated", f"3,640 petaflop/s-days are {right:.3g} FLOPs; 6 x 175e9 parameters x 300e9 tokens are {6 * 175e9 * 300e9:.3g}", "the two units were mixed")


def lora_7b() -> Finding:
    attention = lora_numbers([LLAMA_7B[name] for name in "qkvo"], 16, LLAMA_7B_BLOCKS)
    every = lora_numbers(list(LLAMA_7B.values()), 16, LLAMA_7B_BLOCKS)
    return Finding("partly", f"{attention:,} ({attention / LLAMA_7B_NUMBERS:.2%}) on q, k, v, o; {every:,} ({every / LLAMA_7B_NUMBERS:.2%}) on all seven matrices of a block",
                   "33M takes rank 32 on q, k, v, o; less than 0.5 % holds there at rank 16, and not on all seven")


def lora_file() -> Finding:
    sizes = [(what, lora_numbers([LLAMA_7B[name] for name in names], 16, LLAMA_7B_BLOCKS) * 2 / MILLION)
             for what, names in (("q, v", "qv"), ("q, k, v, o", "qkvo"), ("all seven matrices", list(LLAMA_7B)))]
    return Finding("partly", ", ".join(f"{size:.0f} MB on {what}" for what, size in sizes) + " at rank 16 in 16 bits",
                   "on attention it holds; on all matrices, or in 32 bits, a file is larger")


def lora_share() -> Finding:
    bert, sst2 = lora_numbers([(768, 768)] * 2, 8, 12), result("transfer_cpu")["sets"]["sst2"]["ours"]
    return Finding("partly", f"{bert / bert_numbers(12, 768, 3072, 30_522):.2%} of BERT-base at rank 8 on q, v; "
                   f"{lora_numbers(list(LLAMA_7B.values()), 16, LLAMA_7B_BLOCKS) / LLAMA_7B_NUMBERS:.2%} of 7B at rank 16 on all matrices; "
                   f"{sst2['lora']['trainable'] / sst2['full']['trainable']:.2%} of a body of 22.7M at rank 8 on all",
                   "both ranges occur: the share depends on rank, targets and the size of the model")


def gpt2_targets() -> Finding:
    attention = lora_numbers([GPT2["c_attn"], GPT2["attention c_proj"]], 16, 12)
    every = lora_numbers(list(GPT2.values()), 16, 12)
    return Finding("not as stated", f"{every:,} numbers ({every / GPT2_NUMBERS:.2%} of what the model has), and {attention:,} if attention alone were meant",
                   "the name c_proj also matches the projection of the feed-forward part")


def distilbert() -> Finding:
    small, large = bert_numbers(6, 768, 3072, 30_522, types=0, pooler=False), bert_numbers(12, 768, 3072, 30_522)
    return Finding("partly", f"{small:,} of {large:,} parameters, {small / large:.1%}; 6 blocks of 12, and so half of the products",
                   "size and the bound on speed follow from the shape; the 97 % are the authors' figure on GLUE and were not tested here")


def sizes() -> Finding:
    large, counted = bert_numbers(24, 1024, 4096, 30_522), {name: one["parameters"] for name, one in result("sizes").items()}
    found = {"BERT-base 110": bert_numbers(12, 768, 3072, 30_522), "BERT-large 340": large, "DistilBERT 66": bert_numbers(6, 768, 3072, 30_522, types=0, pooler=False),
             "RoBERTa-base 125": counted["roberta-base"], "ModernBERT-base 149": counted["ModernBERT-base"], "DeBERTa-v3-base 86": counted["deberta-v3-base"],
             "XLM-R-base 278": bert_numbers(12, 768, 3072, 250_002, positions=514, types=1)}
    return Finding("partly", ", ".join(f"{name}: {n / MILLION:.1f}M" for name, n in found.items()),
                   "all but two within 1 %: BERT-large is nearer 335M, and 86M of DeBERTa leaves out its token table of 98M")


def pos_probe() -> Finding:
    found = Interval(13 / 14, *wilson(13, 14))
    return Finding("partly", f"13 of 14 words right is {found}", "14 words in 768 dimensions do not tell a layer from another: study.probe compares with a control task", found)


def sample_figure() -> Finding:
    found = Interval(1.0, *wilson(4, 4))
    return Finding("not as stated", f"4 of 4 test sentences right is {found}",
                   "the pretrained line was tuned on another set and sees none of the labels, so it is flat whatever they teach; four sentences carry no comparison", found)


def pretraining_compute() -> Finding:
    pretraining = 1e6 * 256 * 512
    tuned = {f"{rows:,} rows of {length}": rows * length * 3 for rows, length in ((2000, 256), (25_000, 256), (100_000, 128))}
    return Finding("not as stated", "; ".join(f"{pretraining / n:,.0f} times for {what}" for what, n in tuned.items()),
                   "BERT saw 1M steps of 256 x 512 tokens, and three epochs of a task are far fewer: the ratio of tokens is that of FLOPs, and beyond 1,000")


def lower_rate() -> Finding:
    return Finding("partly", "BERT: pretrained at 1e-4, tuned at 2e-5 to 5e-5, 2 to 5 times lower; RoBERTa-base: 6e-4 and 1e-5 to 3e-5, 20 to 60 times",
                   "the factor depends on the batch of pretraining (256 rows, and 8,192) more than on tuning (Devlin et al. 2019, appendix A; Liu et al. 2019, tables 9 and 10)")


def bert_tokens() -> Finding:
    return Finding("not as stated", "800M + 2,500M words", "the paper counts words (Devlin et al. 2019, section 3.1); pieces of words are more")


def glue() -> Finding:
    return Finding("not as stated", "BiLSTM+ELMo+Attn 71.0, OpenAI GPT 75.1, BERT-base 79.6, BERT-large 82.1",
                   "ELMo's average in the table of the BERT paper is 71.0 and not about 79 (Devlin et al. 2019, table 1); BERT-large's agrees")


CLAIMS = (
    Claim("gpt3-flops", "S0", "GPT-3 took about 3.64e23 FLOPs.", "arithmetic", gpt3_flops),
    Claim("lora-7b", "S2", "LoRA at rank 16 on a 7B model trains about 33M parameters, less than 0.5 %.", "arithmetic", lora_7b),
    Claim("lora-file", "S2", "A LoRA file of a 7B model takes 5 to 50 MB.", "arithmetic", lora_file),
    Claim("lora-share", "S3 S4", "LoRA trains 0.1 to 1 % of the weights (S3), or 1 to 5 % (S4).", "arithmetic, transfer_cpu.json", lora_share),
    Claim("gpt2-targets", "S2", "c_attn and c_proj are the attention projections of GPT-2.", "arithmetic", gpt2_targets),
    Claim("distilbert", "S1 S2", "DistilBERT has 97 % of BERT's quality with 60 % of its size (66M), twice as fast.", "arithmetic", distilbert),
    Claim("sizes", "S2", "BERT-base 110M, RoBERTa-base 125M, DistilBERT 66M, DeBERTa-v3-base 86M, BERT-large 340M, XLM-R-base 278M, ModernBERT-base 149M.",
          "arithmetic, sizes.json", sizes),
    Claim("pos-probe", "S0", "A probe of layer 6 finds parts of speech with accuracy 0.93 +- 0.09 on 14 words.", "arithmetic", pos_probe),
    Claim("sample-figure", "S0", "With 4 to 12 labels a pretrained model is flat near 1.0 while TF-IDF climbs.", "arithmetic", sample_figure),
    Claim("pretraining-compute", "S0 S2", "Tuning takes 100 to 1,000 times less compute than pretraining.", "arithmetic", pretraining_compute),
    Claim("lower-rate", "S0", "The rate of tuning is 10 to 100 times below that of pretraining.", "arithmetic", lower_rate),
    Claim("bert-tokens", "S1", "BERT was pretrained on 3.3B tokens.", "cited", bert_tokens),
    Claim("glue-path", "S1", "GLUE rose from about 70 to 79 (ELMo), 82 (BERT-large), 88 and 91; people get 87.", "cited", glue),
)
