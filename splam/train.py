"""Distillation: Algorithm 1 as a loop, with EMA, atomic checkpoints, exact resume and several processes.

`python -m splam.train RUN` trains one entry of params.yaml; `torchrun --nproc-per-node N -m splam.train RUN`
does so on N processes, each on its share of the same global batch.

An iteration is one optimizer step. Its randomness is a function of the seed and its number alone, the networks'
own (dropout) of the rank besides, so that a checkpoint needs no state but weights, moments and the losses so far.
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
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from splam.batches import Batch, CachedPaths, Source, iteration_generator
from splam.cards import CardFacts
from splam.checkpoints import load_last_checkpoint, save_checkpoint
from splam.data.laion import DataError
from splam.loss import distillation_loss
from splam.metrics import array_hash
from splam.models import (
    Teacher,
    default_device,
    export_pipeline,
    load_teacher,
    make_student,
    objective_of,
    published_unet,
    save_gamma,
    save_lora,
    student_network,
    student_shell,
)
from splam.online import LatentStream, OnlinePaths, open_stream
from splam.parallel import (
    compile_networks,
    is_sharded,
    load_whole_optimizer,
    load_whole_weights,
    local_gradients,
    make_optimizer,
    shard,
    whole_optimizer,
    whole_weights,
)
from splam.params import (
    RECIPES,
    Params,
    ParamsError,
    ResolvedRun,
    Training,
    add_source_arguments,
    params_of,
    resolve,
)
from splam.solver import TrajectoryCache

DATA_NAMES = {
    "emoji": "OpenMoji glyphs (CC BY-SA 4.0) on coloured backgrounds",
    "laion": "captioned images in webdataset shards",
}


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
        student_network(unet, batch.captions, run, training, batch.guidance_scale, teacher.autocast, teacher.added)
        for unet in (student, target)
    )
    return distillation_loss(online, ema, batch.paths, batch.gamma, objective_of(teacher, run, training))


@dataclasses.dataclass
class Distillation:
    """One run in the making. `wrapped` is the student as it is called: itself, or within DDP."""

    resolved: ResolvedRun
    teacher: Teacher
    source: Source
    accelerator: Accelerator
    student: nn.Module
    target: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float]

    @classmethod
    def start(cls, resolved: ResolvedRun, teacher: Teacher, source: Source) -> Distillation:
        """Student and target at step 0, spread over the processes there are."""
        training = resolved.training
        accelerator = Accelerator(cpu=teacher.device.type == "cpu")
        torch.manual_seed(resolved.seed)  # a LoRA adapter's first values
        student = make_student(teacher.unet, resolved.run, training)
        target = copy.deepcopy(student).eval().requires_grad_(False)
        if training.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        sharded = training.sharding == "fsdp" and accelerator.num_processes > 1
        if sharded:
            for network in (student, target):
                shard(network, accelerator.device.type, accelerator.num_processes)
        if training.compile:
            compile_networks(student, target, teacher.unet)
        wrapped = student if sharded else accelerator.prepare_model(student)
        optimizer = make_optimizer([p for p in student.parameters() if p.requires_grad], training)
        return cls(resolved, teacher, source, accelerator, student, target, wrapped, optimizer, [])

    def gradients(self, iteration: int) -> Tensor:
        """Leave the gradient of one iteration's global batch in the student; returns this process's mean loss."""
        micro_batches, processes = self.resolved.training.accumulation, self.accelerator.num_processes
        self.optimizer.zero_grad()
        losses = []
        for micro in range(micro_batches):
            share = micro * processes + self.accelerator.process_index
            batch = self.source.batch(iteration, share, micro_batches * processes)
            with local_gradients(self.wrapped, local=micro + 1 < micro_batches):
                loss = train_step(self.wrapped, self.target, batch, self.teacher, self.resolved)
                self.accelerator.backward(loss / micro_batches)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def step(self, iteration: int) -> Tensor:
        """One optimizer step and the average's; returns this process's mean loss."""
        training = self.resolved.training
        # Dropout, where a network has some: no generator's state has to be saved for it.
        draws = iteration_generator(self.resolved.seed, iteration)
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)) + self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(iteration, self.resolved)
        loss = self.gradients(iteration)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.accelerator.clip_grad_norm_(trained, training.gradient_norm)
        self.optimizer.step()
        update_target(self.target, self.student, training.ema_decay)
        return loss

    @property
    def trained(self) -> list[str]:
        """Names of the parameters that are trained: all, or the adapter's."""
        return [name for name, parameter in self.student.named_parameters() if parameter.requires_grad]

    @property
    def global_batch(self) -> int:
        """Samples of one iteration."""
        training = self.resolved.training
        return training.batch_size * training.accumulation * self.accelerator.num_processes

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, whole on rank 0. Every process must call it where networks are sharded."""
        return {
            "student": whole_weights(self.student, self.trained),
            "target": whole_weights(self.target, self.trained),
            "optimizer": whole_optimizer(self.student, self.optimizer),
            "losses": self.losses,
            "global_batch": self.global_batch,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises ValueError where it was made with another global batch."""
        if state["global_batch"] != self.global_batch:
            raise ValueError(
                f"{self.resolved.name}: its checkpoint was made with a global batch of {state['global_batch']}, now it "
                f"is {self.global_batch}: keep batch_size x accumulation x processes, or remove the checkpoints"
            )
        load_whole_weights(self.student, state["student"])
        load_whole_weights(self.target, state["target"])
        load_whole_optimizer(self.student, self.optimizer, state["optimizer"])
        self.losses = state["losses"]

    def save(self, scratch: Path) -> None:
        """Write a checkpoint; every process calls it, rank 0 writes."""
        if not (self.accelerator.is_main_process or is_sharded(self.student)):
            return
        state = self.state()
        if self.accelerator.is_main_process:
            save_checkpoint(scratch, len(self.losses), state, self.resolved.training.keep_checkpoints)

    def whole_target(self) -> nn.Module | None:
        """theta- as one ordinary module, on rank 0. Every process must call it where networks are sharded."""
        if not is_sharded(self.target):
            return self.target if self.accelerator.is_main_process else None
        weights = whole_weights(self.target, self.trained)
        if not self.accelerator.is_main_process:
            return None
        whole = student_shell(self.teacher.unet, self.resolved.run, self.resolved.training)
        whole.load_state_dict(weights)
        return whole


def train(
    resolved: ResolvedRun,
    teacher: Teacher,
    source: Source,
    scratch: Path,
    out: Path,
    card: CardFacts | None = None,
) -> list[float]:
    """Distil one run into out/pipeline (theta-, Eq. 19), out/snapshots and out/log.csv; returns the losses.

    A checkpoint in `scratch`, which all processes must see, every training.checkpoint_seconds; a rerun goes on from
    the last one with the same bits. Raises FloatingPointError where the loss is no longer finite.
    """
    training = resolved.training
    run = Distillation.start(resolved, teacher, source)
    if (state := load_last_checkpoint(scratch)) is not None:
        run.load(state)
    saved = time.monotonic()
    for iteration in progress(run):
        loss = run.step(iteration)
        due = run.accelerator.is_main_process and time.monotonic() - saved > training.checkpoint_seconds
        value, save_now = share_loss(run.accelerator, loss, due)
        if not math.isfinite(value):
            raise FloatingPointError(f"{resolved.name}: loss {value} at iteration {iteration}; lower learning_rate")
        run.losses.append(value)
        if iteration + 1 in training.snapshots and (target := run.whole_target()) is not None:
            save_snapshot(target, resolved, scratch / "snapshots" / f"{iteration + 1:06d}")
        if save_now:
            run.save(scratch)
            saved = time.monotonic()
    run.save(scratch)
    if (target := run.whole_target()) is not None:
        publish(target, resolved, teacher, run.losses, scratch, out, card)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return run.losses


def progress(run: Distillation) -> Iterator[int]:
    """The iterations that are left, with a bar that shows the loss, on rank 0's terminal."""
    first, last = len(run.losses), run.resolved.training.iterations
    hidden = not run.accelerator.is_main_process
    name = run.resolved.name
    with tqdm(initial=first, total=last, desc=name, mininterval=2, disable=hidden) as bar:
        for iteration in range(first, last):
            yield iteration
            bar.set_postfix(loss=f"{run.losses[-1]:.4f}", refresh=False)
            bar.update()


def share_loss(accelerator: Accelerator, loss: Tensor, due: bool) -> tuple[float, bool]:
    """The mean loss of all processes, and whether any finds a checkpoint due: all must save at one iteration."""
    shared = accelerator.reduce(torch.stack([loss.float(), loss.new_tensor(due, dtype=torch.float32)]), "mean")
    value, save_now = shared.tolist()
    return value, save_now > 0


def save_snapshot(target: nn.Module, resolved: ResolvedRun, folder: Path) -> None:
    """The network as it would be published now, for Fig. 2b."""
    published_unet(target, resolved.run).save_pretrained(folder)


def publish(
    target: nn.Module,
    resolved: ResolvedRun,
    teacher: Teacher,
    losses: list[float],
    scratch: Path,
    out: Path,
    card: CardFacts | None = None,
) -> None:
    """Write what the run leaves: out/pipeline, out/snapshots, out/log.csv; SPLAM's gamma weights, a LoRA's out/lora."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    export_pipeline(published_unet(target, resolved.run), teacher.folder, out / "pipeline", card)
    save_gamma(target, resolved.run, out)
    if resolved.run.method == "lcm_lora":
        save_lora(target, out / "lora")
    if (scratch / "snapshots").is_dir():
        shutil.copytree(scratch / "snapshots", out / "snapshots")
    with (out / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("iteration", "loss"))
        writer.writerows((i + 1, f"{loss:.8g}") for i, loss in enumerate(losses))


def card_facts(params: Params, resolved: ResolvedRun, teacher: Teacher) -> CardFacts:
    """What the model card of one run says, from its parameters."""
    run, training = resolved.run, resolved.training
    told = ("iterations", "global_batch", "learning_rate", "ema_decay", "loss", "sigma_form", "bf16")
    facts = {key.replace("_", " "): getattr(training, key) for key in told}
    if run.method == "splam":
        facts |= {"input scaling": run.input_scaling, "gamma conditioning": run.gamma_conditioning}
    usual = {key: Training.model_fields[key].default for key in RECIPES}
    facts |= {key.replace("_", " "): getattr(training, key) for key in RECIPES if getattr(training, key) != usual[key]}
    return CardFacts(
        name=resolved.name,
        method=run.method,
        teacher=params.teacher.source,
        data=DATA_NAMES[params.data.kind],
        guidance_scale=run.guidance_scale,
        skip=run.skip,
        multiple_estimation=run.multiple_estimation,
        training=facts | {"seed": resolved.seed},
        pipeline="StableDiffusionPipeline" if teacher.added is None else "StableDiffusionXLPipeline",
        steps=params.evaluation.steps,
        licence=params.teacher.licence,
    )


def scratch_folder(resolved: ResolvedRun, params: Params, data: Any, root: Path) -> Path:
    """Where a run's checkpoints lie: keyed by all that its bits depend on; `data` says which data it is."""
    facts = [
        resolved.run.model_dump(exclude={"datasets", "seeds", "training", "ablation"}),
        resolved.training.model_dump(exclude={"checkpoint_seconds", "keep_checkpoints"}),
        resolved.seed,
        params.teacher.model_dump(),
        data,
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return root / f"{resolved.name}-{key}"


def cache_for(params: Params, resolved: ResolvedRun, folder: Path) -> Path:
    """The trajectory cache a run reads: its own w's where there is one; one-step paths can use any."""
    scales = params.trajectories.guidance_scales
    scale = resolved.run.guidance_scale if resolved.run.guidance_scale in scales else scales[0]
    return folder / f"w{scale:g}.safetensors"


def open_source(
    params: Params, resolved: ResolvedRun, teacher: Teacher, args: argparse.Namespace
) -> tuple[Source, Any]:
    """Where a run's batches come from, and what identifies their data (for scratch_folder)."""
    if resolved.training.source == "cached":
        cache = TrajectoryCache.load(cache_for(params, resolved, args.trajectories))
        hashes = [array_hash(part.numpy()) for part in (cache.conditional, cache.chain, cache.second_order)]
        return CachedPaths(cache, resolved, teacher), hashes
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    stream = open_stream(params, resolved, args.data, args.latents, rank, ranks)
    data = [params.data.model_dump(), params.trajectories.solver_skip, params.trajectories.empty_captions]
    if isinstance(stream, LatentStream):
        data.append(stream.store.plan)
    return OnlinePaths(stream, resolved, teacher, params.trajectories), data


def main(arguments: list[str] | None = None) -> int:
    """The command line: train one run; nothing is done where another process is training it already."""
    options = _parser().parse_args(arguments)
    try:
        params = params_of(options)
        resolved = resolve(params, options.run)
        torch.use_deterministic_algorithms(True, warn_only=True)
        teacher = load_teacher(options.teacher, bf16=resolved.training.bf16, device=default_device())
        source, data = open_source(params, resolved, teacher, options)
    except (ParamsError, FileNotFoundError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    scratch = scratch_folder(resolved, params, data, options.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    out = options.out or Path("build/runs") / resolved.name
    with locked(scratch / "lock"):
        train(resolved, teacher, source, scratch, out, card_facts(params, resolved, teacher))
    if int(os.environ.get("RANK", 0)) == 0:
        shutil.rmtree(scratch)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m splam.train",
        description="Distil one run of a profile into a folder that stock diffusers opens.",
        epilog="On N processes: torchrun --nproc-per-node N -m splam.train RUN ... A killed training goes on from its "
        "last checkpoint, with the same bits, when it is started again by the same command.",
    )
    parser.add_argument("run", help="a name of matrix.runs, which is a run and its seed: splam-w3-k100-me-s0")
    add_source_arguments(parser)
    parser.add_argument("--teacher", type=Path, default=Path("build/teacher"), help="a pipeline's folder (%(default)s)")
    trajectories = Path("build/trajectories")
    parser.add_argument("--trajectories", type=Path, default=trajectories, help="of source = cached (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="of source = online (%(default)s)")
    parser.add_argument("--latents", type=Path, default=Path("build/latents"), help="of source = latents (%(default)s)")
    scratch = Path("build/scratch/distill")
    parser.add_argument("--scratch", type=Path, default=scratch, help="for checkpoints, seen by all (%(default)s)")
    parser.add_argument("--out", type=Path, help="what is written: pipeline/, log.csv ... (build/runs/RUN)")
    return parser


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
    sys.exit(main())
