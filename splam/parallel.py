"""Networks over several processes and within little memory: sharding, optimizers, compilation, whole states.

Sharding is torch's fully_shard (FSDP2), called directly: accelerate turns to FSDP on accelerators alone, and this way
what runs on GPUs is what is tested on CPUs.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from splam.params import Training

SHARDED_BLOCKS = {"BasicTransformerBlock", "ResnetBlock2D"}  # gathered one at a time; the rest is one unit
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(unet: nn.Module, device_type: str, processes: int) -> nn.Module:
    """Spread a UNet's weights over all processes, in place: each holds one part, and gathers a block when it runs."""
    mesh = init_device_mesh(device_type, (processes,))
    unet.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
    for module in unet.modules():
        if type(module).__name__ in SHARDED_BLOCKS:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return fully_shard(unet, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return isinstance(module, FSDPModule)


@contextlib.contextmanager
def local_gradients(module: nn.Module, local: bool):
    """Within it, backward passes leave gradients to this process where `local`: all but the last micro-batch's."""
    if not local:
        yield
    elif is_sharded(module):
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)
    else:
        with getattr(module, "no_sync", contextlib.nullcontext)():
            yield


def make_optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """AdamW in float32, fused on a GPU, or with 8-bit moments. Raises ImportError where bitsandbytes is missing."""
    options = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "adamw_8bit":
        return _bitsandbytes().optim.AdamW8bit(parameters, **options)
    if parameters[0].device.type == "cuda":
        options["fused"] = True
    return torch.optim.AdamW(parameters, **options)


def _bitsandbytes():
    try:
        import bitsandbytes
    except ImportError as error:
        message = "training.optimizer = adamw_8bit needs the package bitsandbytes: install it, or set adamw"
        raise ImportError(message) from error
    return bitsandbytes


def compile_networks(*networks: nn.Module, backend: str = "inductor") -> None:
    """torch.compile, in place: the modules keep their names, classes and weights."""
    for network in networks:
        network.compile(backend=backend)


def whole_weights(module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The named parameters; of a sharded module gathered on the CPU of rank 0, on other ranks nothing.

    Every process must call it.
    """
    weights = get_model_state_dict(module, options=WHOLE) if is_sharded(module) else dict(module.named_parameters())
    return {name: weights[name].detach() for name in names if name in weights}


@torch.no_grad()
def load_whole_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Take over what whole_weights gave; every process passes all of it. Raises KeyError for an unknown name."""
    if is_sharded(module):
        set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))
        return
    parameters = dict(module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def whole_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state; of a sharded module gathered on rank 0. Every process must call it."""
    return get_optimizer_state_dict(module, optimizer, options=WHOLE) if is_sharded(module) else optimizer.state_dict()


def load_whole_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over what whole_optimizer gave; every process passes all of it."""
    if is_sharded(module):
        set_optimizer_state_dict(module, optimizer, state, options=StateDictOptions(full_state_dict=True))
    else:
        optimizer.load_state_dict(state)
