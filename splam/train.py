"""Distillation: Algorithm 1 as a loop, with EMA, atomic checkpoints, exact resume and several processes.

`python -m splam.train RUN` trains one entry of params.yaml; `torchrun --nproc-per-node N -m splam.train RUN`
does so on N processes, each on its share of the same global batch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from splam.loss import distillation_loss, draw_gamma
from splam.metrics import array_hash
from splam.models import (
    Teacher,
    export_pipeline,
    load_teacher,
    make_student,
    objective_of,
    published_unet,
    student_network,
)
from splam.params import Params, ResolvedRun, load_params, resolve
from splam.schedule import path_starts
from splam.solver import SubPaths, TrajectoryCache


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """The source of all randomness of one iteration, so that a resumed run needs no saved RNG state."""
    digest = hashlib.sha256(f"{seed}/{iteration}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_rows(iteration: int, batch: int, pool: int, seed: int) -> Tensor:
    """Rows of the cache for one global batch: without replacement until the pool is used up, then reshuffled."""
    positions = torch.arange(iteration * batch, (iteration + 1) * batch)
    epochs = positions // pool
    order = {int(e): torch.randperm(pool, generator=iteration_generator(seed, -1 - int(e))) for e in epochs.unique()}
    return torch.stack([order[int(e)][p % pool] for e, p in zip(epochs, positions, strict=True)])


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's share of a global batch: paths, caption embeddings, gamma (n,), and w (n,) for LCM*."""

    paths: SubPaths
    captions: Tensor
    gamma: Tensor
    guidance_scale: Tensor | None


class CachedPaths:
    """Batches from a TrajectoryCache: the same draws for every run that shares a seed and a batch size."""

    def __init__(self, cache: TrajectoryCache, resolved: ResolvedRun, teacher: Teacher):
        self.cache, self.resolved, self.teacher = cache, resolved, teacher
        starts = path_starts(resolved.run.skip, resolved.training.short_ends, teacher.schedule.length)
        self.pool = torch.isin(cache.t, starts).nonzero().flatten()
        if not len(self.pool):
            raise ValueError(f"{resolved.name}: no cached draw starts at a time that short_ends = 'strict' allows")

    def batch(self, iteration: int, rank: int, processes: int) -> Batch:
        """The share of process `rank` in the batch of one iteration."""
        run, training = self.resolved.run, self.resolved.training
        count = training.batch_size * processes
        rows = self.pool[batch_rows(iteration, count, len(self.pool), self.resolved.seed)]
        generator = iteration_generator(self.resolved.seed, iteration)
        gamma = torch.ones(count)  # LCM: Alg. 1 with gamma = 1
        if run.method == "splam":
            gamma = draw_gamma(count, training.gamma_one_probability, generator)
        low, high = training.lcm_star_scales
        scales = low + (high - low) * torch.rand(count, generator=generator)
        share = slice(rank * training.batch_size, (rank + 1) * training.batch_size)
        rows, gamma, scales = rows[share], gamma[share], scales[share]
        star = run.method == "lcm_star"
        if run.multiple_estimation and run.skip > int(self.cache.solver_skip):
            paths = self.cache.multiple_steps(rows, run.skip)
        else:
            w = scales if star else run.guidance_scale
            paths = self.cache.one_step(rows, run.skip, w, self.teacher.schedule)
        captions = self.cache.embeddings[paths.caption].float()
        return Batch(paths, captions, gamma, scales if star else None)


def learning_rate(iteration: int, resolved: ResolvedRun) -> float:
    """Linear warm-up, then constant or falling linearly to 0."""
    training = resolved.training
    peak = training.lora_learning_rate if resolved.run.method == "lcm_lora" else training.learning_rate
    warm = min(1.0, (iteration + 1) / max(1, training.warmup))
    return peak * warm * (1 - iteration / training.iterations if training.schedule == "linear" else 1.0)


@torch.no_grad()
def update_target(target: nn.Module, student: nn.Module, decay: float) -> None:
    """Alg. 1: theta- <- mu theta- + (1 - mu) theta, on what is trained."""
    for average, parameter in zip(target.parameters(), student.parameters(), strict=True):
        if parameter.requires_grad:
            average.lerp_(parameter, 1 - decay)


def train_step(student: nn.Module, target: nn.Module, batch: Batch, teacher: Teacher, resolved: ResolvedRun) -> Tensor:
    """The loss of Alg. 1 on one batch."""
    run, training = resolved.run, resolved.training
    online, ema = (
        student_network(unet, batch.captions, run, training, batch.guidance_scale, teacher.autocast)
        for unet in (student, target)
    )
    return distillation_loss(online, ema, batch.paths, batch.gamma, objective_of(teacher, run, training))


@dataclasses.dataclass
class State:
    """What a checkpoint holds."""

    student: nn.Module
    target: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float]

    def save(self, folder: Path, keep: int) -> None:
        """Write checkpoint-<iteration>.pt atomically, then remove all but the last `keep`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"checkpoint-{len(self.losses):08d}.pt"
        state = {
            "student": self.student.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        for old in sorted(folder.glob("checkpoint-*.pt"))[:-keep]:
            old.unlink()

    def load_last(self, folder: Path) -> None:
        """Take over the newest checkpoint, if there is one."""
        found = sorted(folder.glob("checkpoint-*.pt"))
        if not found:
            return
        state = torch.load(found[-1], weights_only=True, map_location="cpu")
        self.student.load_state_dict(state["student"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]


def train(resolved: ResolvedRun, teacher: Teacher, source: CachedPaths, scratch: Path, out: Path) -> list[float]:
    """Distil one run into out/pipeline (theta-, Eq. 19), out/snapshots and out/log.csv; returns the losses.

    A checkpoint in `scratch` every training.checkpoint_seconds; a rerun goes on from the last one with the same
    bits. Raises FloatingPointError where the loss is no longer finite.
    """
    training = resolved.training
    accelerator = Accelerator(cpu=teacher.device.type == "cpu")
    torch.manual_seed(resolved.seed)  # a LoRA adapter's first values
    student = make_student(teacher.unet, resolved.run, training)
    target = copy.deepcopy(student).eval().requires_grad_(False)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, training.learning_rate, weight_decay=training.weight_decay)
    state = State(student, target, optimizer, [])
    state.load_last(scratch)
    wrapped = accelerator.prepare_model(student)
    saved = time.monotonic()
    first = len(state.losses)
    bar = tqdm(
        range(first, training.iterations),
        initial=first,
        total=training.iterations,
        desc=resolved.name,
        mininterval=2,
        disable=not accelerator.is_main_process,
    )
    for iteration in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(iteration, resolved)
        batch = source.batch(iteration, accelerator.process_index, accelerator.num_processes)
        loss = train_step(wrapped, target, batch, teacher, resolved)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, training.gradient_norm)
        optimizer.step()
        update_target(target, student, training.ema_decay)
        value = accelerator.reduce(loss.detach(), "mean").item()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{resolved.name}: loss {value} at iteration {iteration}; lower learning_rate")
        state.losses.append(value)
        bar.set_postfix(loss=f"{value:.4f}", refresh=False)
        if not accelerator.is_main_process:
            continue
        if iteration + 1 in training.snapshots:
            save_snapshot(target, resolved, scratch / "snapshots" / f"{iteration + 1:06d}")
        if time.monotonic() - saved > training.checkpoint_seconds:
            state.save(scratch, training.keep_checkpoints)
            saved = time.monotonic()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state.save(scratch, training.keep_checkpoints)
        publish(target, resolved, teacher, state.losses, scratch, out)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return state.losses


def save_snapshot(target: nn.Module, resolved: ResolvedRun, folder: Path) -> None:
    """The network as it would be published now, for Fig. 2b."""
    published_unet(target, resolved.run).save_pretrained(folder)


def publish(
    target: nn.Module, resolved: ResolvedRun, teacher: Teacher, losses: list[float], scratch: Path, out: Path
) -> None:
    """Write what the run leaves: out/pipeline, out/snapshots, out/log.csv."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    export_pipeline(published_unet(target, resolved.run), teacher.folder, out / "pipeline")
    if (scratch / "snapshots").is_dir():
        shutil.copytree(scratch / "snapshots", out / "snapshots")
    with (out / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("iteration", "loss"))
        writer.writerows((i + 1, f"{loss:.8g}") for i, loss in enumerate(losses))


def scratch_folder(resolved: ResolvedRun, params: Params, cache: TrajectoryCache, root: Path) -> Path:
    """Where a run's checkpoints lie: keyed by all that its bits depend on."""
    facts = [
        resolved.run.model_dump(exclude={"datasets", "seeds", "training"}),
        resolved.training.model_dump(exclude={"checkpoint_seconds", "keep_checkpoints"}),
        resolved.seed,
        params.teacher.model_dump(),
        array_hash(cache.conditional.numpy()),
        array_hash(cache.chain.numpy()),
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return root / f"{resolved.name}-{key}"


def cache_for(params: Params, resolved: ResolvedRun, folder: Path) -> Path:
    """The trajectory cache a run reads: its own w's where there is one; one-step paths can use any."""
    scales = params.trajectories.guidance_scales
    scale = resolved.run.guidance_scale if resolved.run.guidance_scale in scales else scales[0]
    return folder / f"w{scale:g}.safetensors"


def main() -> None:
    """Train one run; nothing is done where another process is training it already."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a name of matrix.runs in params.yaml, e.g. splam-w3-k100-me-s0")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--teacher", type=Path, default=Path("build/teacher"))
    parser.add_argument("--trajectories", type=Path, default=Path("build/trajectories"))
    parser.add_argument("--scratch", type=Path, default=Path("build/scratch/distill"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    params = load_params(args.params)
    resolved = resolve(params, args.run)
    torch.use_deterministic_algorithms(True, warn_only=True)
    teacher = load_teacher(args.teacher, bf16=resolved.training.bf16)
    cache = TrajectoryCache.load(cache_for(params, resolved, args.trajectories))
    scratch = scratch_folder(resolved, params, cache, args.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    with locked(scratch / "lock"):
        train(resolved, teacher, CachedPaths(cache, resolved, teacher), scratch, args.out)
    if int(os.environ.get("RANK", 0)) == 0:
        shutil.rmtree(scratch)


@contextlib.contextmanager
def locked(path: Path):
    """Hold an exclusive lock, so that two trainings of one run cannot write over each other; rank 0 takes it."""
    if int(os.environ.get("RANK", 0)):
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{path.parent.name} is being trained by another process; wait for it or end it") from None
        yield


if __name__ == "__main__":
    main()
