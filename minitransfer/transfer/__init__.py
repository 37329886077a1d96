"""Ways to adapt a pretrained model: what is frozen, what is inserted, what trains and what is saved."""
from .base import Strategy
from .groups import TrainableReport, freeze, freeze_to, layer_groups, trainable_report, unfreeze
from .lora import adapters_off, add_lora, merge_lora, remove_adapters, unmerge_lora
from .peft_files import load_adapter, save_adapter
from .strategies import full, head, last, lora, strategy

__all__ = ["Strategy", "TrainableReport", "adapters_off", "add_lora", "freeze", "freeze_to", "full", "head", "last", "layer_groups", "load_adapter",
           "lora", "merge_lora", "remove_adapters", "save_adapter", "strategy", "trainable_report", "unfreeze", "unmerge_lora"]
