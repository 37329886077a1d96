"""Ways to adapt a pretrained model: what is frozen, what is inserted, what trains and what is saved."""
from .adapter import add_adapter
from .alignment import adversarial, coral
from .base import Strategy
from .features import extract_features
from .forgetting import ewc, fisher, l2sp
from .groups import TrainableReport, explain, freeze, freeze_to, layer_groups, trainable_report, unfreeze
from .ia3 import add_ia3, merge_ia3, unmerge_ia3
from .lora import add_lora, merge_lora, unmerge_lora
from .mixout import mixout
from .named import adapter_list, remove_adapter, set_adapter, use_adapter
from .named_heads import NamedHeads
from .peft_files import load_adapter, remove_adapters, save_adapter
from .plan import plan
from .prefix import add_prefix
from .quantize import dequantize, quantize
from .replay import copy_of_head, replay
from .scalar_mix import ScalarMix
from .soft_prompt import add_soft_prompt
from .strategies import adapter, bitfit, compacter, discriminative, features, full, head, ia3, last, lora, prefix, soft_prompt, strategy, ulmfit
from .student import student
from .wrapped import adapters_off

__all__ = ["NamedHeads", "ScalarMix", "Strategy", "TrainableReport", "adapter", "adapter_list", "adapters_off", "add_adapter", "add_ia3", "add_lora", "add_prefix",
           "add_soft_prompt", "adversarial", "bitfit", "compacter", "copy_of_head", "coral", "dequantize", "discriminative", "ewc", "explain", "extract_features", "features",
           "fisher", "freeze", "freeze_to", "full", "head", "ia3", "l2sp", "last", "layer_groups", "load_adapter", "lora", "merge_ia3", "merge_lora", "mixout",
           "plan", "prefix", "quantize", "remove_adapter", "remove_adapters", "replay", "save_adapter", "set_adapter", "soft_prompt", "strategy", "student", "trainable_report",
           "ulmfit", "unfreeze", "unmerge_ia3", "unmerge_lora", "use_adapter"]
