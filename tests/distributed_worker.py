"""Run by test_parallel.py under torchrun: first gradients, then two steps, a save and a load, plain and sharded."""

import copy
import sys
from pathlib import Path

import torch
from runs import SETTINGS, FakeStream, small_run
from torch.distributed.tensor import DTensor

from splam.models import load_teacher
from splam.online import OnlinePaths
from splam.train import Distillation, share_loss


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def measure(teacher_folder: Path, **training) -> dict:
    """Loss and gradient of iteration 0, the target after two steps, and whether a checkpoint brings all back."""
    teacher = load_teacher(teacher_folder)
    resolved = small_run(**training)
    size = resolved.training.global_batch // resolved.training.accumulation

    def start() -> Distillation:
        return Distillation.start(resolved, teacher, OnlinePaths(FakeStream(size), resolved, teacher, SETTINGS))

    run = start()
    loss, _ = share_loss(run.accelerator, run.gradients(0), False)
    gradient = {name: whole(p.grad).clone() for name, p in run.student.named_parameters()}
    losses = [share_loss(run.accelerator, run.step(i), False)[0] for i in range(2)]
    shared = [copy.deepcopy(run.state())]
    if run.accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(shared)
    again = start()
    again.load(shared[0])
    went_on, repeated = ([share_loss(r.accelerator, r.step(i), False)[0] for i in (2, 3)] for r in (run, again))
    target = run.whole_target()
    return {
        "loss": loss,
        "gradient": gradient,
        "losses": losses,
        "went_on": went_on,
        "repeated": repeated,
        "local_weights": sum(
            p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in run.student.parameters()
        ),
        "target": None if target is None else dict(target.state_dict()),
    }


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    results = {
        "ddp": measure(folder, batch_size=1, accumulation=2, processes=2, gradient_checkpointing=True),
        "fsdp": measure(folder, batch_size=2, processes=2, sharding="fsdp", gradient_checkpointing=True),
    }
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
