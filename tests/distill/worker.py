"""Run by test_processes.py, under torchrun too: gradients, then two steps, a save and a load."""

import copy
import os
import sys
from pathlib import Path

import torch

from splam.distill.loop import Distillation
from splam.distill.online import OnlinePaths
from splam.networks.teacher import load_teacher
from tests.runs import SETTINGS, FakeStream, small_run


def measure(teacher_folder: Path, **training) -> dict:
    """Loss and gradient of iteration 0, the target after four steps, and whether a checkpoint brings all back."""
    teacher, run = load_teacher(teacher_folder), small_run(training=training)
    stream = FakeStream(run.training.batch_size, int(os.environ.get("RANK", 0)), run.training.processes)

    def start() -> Distillation:
        return Distillation(run, teacher, OnlinePaths(stream, run, teacher, SETTINGS))

    def shared(job: Distillation, loss: torch.Tensor) -> float:
        return job.accelerator.reduce(loss, "mean").item()

    job = start()
    loss = shared(job, job.gradients(0))
    gradient = {name: p.grad.clone() for name, p in job.student.named_parameters()}
    losses = [shared(job, job.step(i)) for i in range(2)]
    again, state = start(), copy.deepcopy(job.state())
    again.load(state)
    went_on, repeated = ([shared(j, j.step(i)) for i in (2, 3)] for j in (job, again))
    facts = {"loss": loss, "gradient": gradient, "losses": losses, "went_on": went_on, "repeated": repeated}
    return facts | {"target": dict(job.target.state_dict()), "global_batch": job.parameters["global_batch"]}


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    cut = {"batch_size": 1, "gradient_accumulation_steps": 2, "processes": 2, "gradient_checkpointing": True}
    results = measure(folder, **cut)
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
