"""The training loop: draw a batch, step, move the average, save; after a kill it resumes bit for bit.

An iteration is one optimizer step. Its randomness depends on the seed and its number alone (dropout on the rank too),
so a checkpoint holds weights, moments and losses, but no generator's state.
"""

import contextlib
import copy
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from splam.config import Params, ParamsError, Run, Training, suggestion
from splam.data.images import DataError, built
from splam.data.latents import LatentStore
from splam.data.streams import Stream, iteration_generator, training_facts, training_images
from splam.distill import checkpoints
from splam.distill.paths import CachedPaths, OnlinePaths, TrajectoryCache, digest
from splam.method.loss import Objective, distillation_loss, update_target
from splam.method.sampling import generators, sample_consistency
from splam.networks.export import export_pipeline, published_unet, save_lora, write_card
from splam.networks.student import make_student, published_network, save_gamma, student_network
from splam.networks.teacher import Teacher, default_device, load_teacher

Source = CachedPaths | OnlinePaths
# May change while a run trains: how the global batch is divided matters only by rounding.
FREE = {"batch_size", "gradient_accumulation_steps", "processes", "checkpoint_seconds"}
PICTURES, PICTURE_STEPS = 4, 4  # drawn during training, and the sampling steps of each


class Distillation:
    """A run in training: student, target (its average), optimizer and losses."""

    def __init__(self, run: Run, teacher: Teacher, source: Source, facts: dict[str, Any] | None = None):
        """The state before step 1; every process calls it. facts: what else the result depends on, by name."""
        self.run, self.teacher, self.source, self.facts = run, teacher, source, facts or {}
        self.caption, self.card, self.losses = "", (), []  # caption: of the pictures drawn on the way
        training, device = run.training, teacher.device.type
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", dynamo_backend="no")
        set_determinism(training, device)
        torch.manual_seed(run.seed)  # a LoRA adapter's first values
        self.student = make_student(teacher.unet, run)
        self.target = copy.deepcopy(self.student).eval().requires_grad_(False)
        pairs = zip(self.student.parameters(), self.target.parameters(), strict=True)
        self.trained = [pair for pair in pairs if pair[0].requires_grad]  # each parameter with its average
        if training.gradient_checkpointing:
            self.student.enable_gradient_checkpointing()
        for network in (self.student, self.target, teacher.unet) if training.compile else ():
            network.compile()  # in place: modules keep their names and weights
        self.wrapped = self.accelerator.prepare_model(self.student)  # within DDP if there are several processes
        options = {"weight_decay": training.weight_decay, "fused": True}  # on a CPU, a quarter of the plain one's time
        self.optimizer = torch.optim.AdamW([p for p, _ in self.trained], training.learning_rate, **options)

    def step(self, iteration: int) -> Tensor:
        """One optimizer step, then the average's (Alg. 1); returns this process's mean loss."""
        draws = iteration_generator(self.run.seed, iteration)
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)) + self.accelerator.process_index)
        self.optimizer.param_groups[0]["lr"] = learning_rate(iteration, self.run)
        loss = self.gradients(iteration)
        self.accelerator.clip_grad_norm_([p for p, _ in self.trained], self.run.training.max_grad_norm)
        self.optimizer.step()
        update_target(self.target, self.student, self.run.training.ema_decay)
        return loss

    def gradients(self, iteration: int) -> Tensor:
        """Leave the gradient of one iteration's global batch in the student; returns this process's mean loss."""
        micro_batches, processes = self.run.training.gradient_accumulation_steps, self.accelerator.num_processes
        self.optimizer.zero_grad()
        losses = []
        for micro in range(micro_batches):
            share, last = micro * processes + self.accelerator.process_index, micro + 1 == micro_batches
            # Processes exchange their gradients once, with the last micro-batch.
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss = self.loss(iteration, share, micro_batches * processes)
                (loss / micro_batches).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def loss(self, iteration: int, share: int, shares: int) -> Tensor:
        """Eq. 17 on one share of an iteration's batch."""
        batch, training = self.source.batch(iteration, share, shares), self.run.training
        conditions = batch.captions, self.run, self.teacher, batch.guidance_scale
        student, target = (student_network(unet, *conditions) for unet in (self.wrapped, self.target))
        objective = Objective(self.teacher.schedule, training.sigma_form, training.loss, training.huber_c)
        return distillation_loss(student, target, batch.path, batch.gamma, objective)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the result depends on, by name."""
        training = self.run.training
        facts = self.run.model_dump(mode="json", exclude={"training", "variant", "ablation"})
        facts |= {f"training.{key}": value for key, value in training.model_dump(mode="json", exclude=FREE).items()}
        samples = training.batch_size * training.gradient_accumulation_steps * self.accelerator.num_processes
        return {**facts, "global_batch": samples, **self.facts}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        state = {"weights": self.trained, "optimizer": self.optimizer.state_dict(), "losses": self.losses}
        return state | {"parameters": self.parameters}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for pair, values in zip(self.trained, state["weights"], strict=True):
            for parameter, value in zip(pair, values, strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]

    def keep(self, folder: Path) -> None:
        """Write this iteration's snapshot (Fig. 2b) and picture, where they are due."""
        done, training = len(self.losses), self.run.training
        if done in training.snapshots:
            published_unet(self.target, self.run).save_pretrained(folder / f"snapshots/{done:06d}")
        if self.caption and done in {training.iterations * (i + 1) // PICTURES for i in range(PICTURES)}:
            self.picture().save(folder / f"pictures/{done:06d}.png")

    @torch.no_grad()
    def picture(self) -> Image.Image:
        """The target's picture of the caption, always from the same noise."""
        captions, shape, schedule = self.teacher.embed([self.caption]), self.teacher.latent_shape, self.teacher.schedule
        network = published_network(self.target, captions, self.run, self.teacher)
        latents = sample_consistency(network, generators([0]), shape, PICTURE_STEPS, schedule)
        return Image.fromarray(self.teacher.decode(latents)[0].numpy())

    def publish(self, out: Path) -> None:
        """Write pipeline/ (theta-, Eq. 19), SPLAM's gamma weights, a LoRA's lora/, and losses.csv."""
        export_pipeline(published_unet(self.target, self.run), self.teacher.folder, out / "pipeline")
        if self.card:
            write_card(out / "pipeline", self.run, *self.card)
        save_gamma(self.target, self.run, out)
        if self.run.adapter and self.run.method != "lcm_star":
            save_lora(self.target, out / "lora")
        rows = [f"{i + 1},{loss:.8g}" for i, loss in enumerate(self.losses)]
        (out / "losses.csv").write_text("\n".join(["iteration,loss", *rows]) + "\n")


def set_determinism(training: Training, device: str) -> None:
    """Have torch choose algorithms that give the same bits again: always on a CPU, on a GPU if it is asked for."""
    wanted = device == "cpu" or training.deterministic
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS goes its own way
    torch.use_deterministic_algorithms(wanted, warn_only=True)


def learning_rate(iteration: int, run: Run) -> float:
    """Linear warm-up, then constant."""
    training = run.training
    peak = training.lora_learning_rate if run.adapter else training.learning_rate
    return peak * min(1.0, (iteration + 1) / max(1, training.lr_warmup_steps))


def train(job: Distillation, scratch: Path, out: Path) -> Iterator[float]:
    """Train to the end and write `out`; yields the loss of every iteration.

    Checkpoints go to `scratch`, which all processes must see; a run that is started again resumes from the last one.
    Raises FloatingPointError if the loss is no longer finite, CheckpointError for one that it cannot resume from.
    """
    training, main = job.run.training, job.accelerator.is_main_process
    with checkpoints.locked(scratch) if main else contextlib.nullcontext():
        _resume(job, scratch)
        saved, first, last = time.monotonic(), len(job.losses), training.iterations
        bar = tqdm(range(first, last), job.run.name, last, initial=first, mininterval=2, disable=not main)
        for iteration in bar:
            loss = job.accelerator.reduce(job.step(iteration), "mean").item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"{job.run.name}: loss {loss} at iteration {iteration}; lower learning_rate")
            job.losses.append(loss)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if main:
                job.keep(scratch / "kept")
            if main and (time.monotonic() - saved > training.checkpoint_seconds or iteration + 1 == last):
                checkpoints.save(scratch, iteration + 1, job.state())
                saved = time.monotonic()
            yield loss
        if main:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(scratch / "kept", out)
            job.publish(out)
            shutil.rmtree(scratch)
    job.accelerator.wait_for_everyone()
    job.accelerator.end_training()


def _resume(job: Distillation, scratch: Path) -> None:
    """Resume from the last checkpoint, which one process looks for, or start with an empty `kept` folder."""
    main = job.accelerator.is_main_process
    (last,) = broadcast_object_list([checkpoints.last(scratch, job.parameters) if main else None])
    if last is not None:
        job.load(checkpoints.read(last))
    elif main:
        shutil.rmtree(scratch / "kept", ignore_errors=True)
        (scratch / "kept/pictures").mkdir(parents=True)


def open_distillation(params: Params, name: str, build: Path, data: Path) -> Distillation:
    """A run with its teacher and sub-paths; build: where earlier stages wrote, data: where the data stage did."""
    if name not in params.runs:
        raise ParamsError(f"there is no run {name!r}{suggestion(name, params.runs)}")
    run = params.runs[name]
    teacher = load_teacher(build / "teacher", run.training.bf16, default_device())
    source, facts = _open_source(params, run, teacher, build, data)
    job = Distillation(run, teacher, source, facts | {"teacher": params.teacher.source})
    job.caption = params.pictures.prompts[0]
    job.card = params.teacher.source, params.data.kind, params.teacher.licence
    return job


def _open_source(params: Params, run: Run, teacher: Teacher, build: Path, data: Path) -> tuple[Source, dict[str, Any]]:
    """Where a run's batches come from, and what they depend on."""
    settings = params.trajectories
    if run.training.source == "trajectories":
        scales = settings.guidance_scales  # one-step paths can use the cache of any w
        w = run.guidance_scale if run.guidance_scale in scales else scales[0]
        path = build / f"trajectories/w{w:g}.safetensors"
        return CachedPaths(TrajectoryCache.load(path), run, teacher), {"trajectories": digest(path)}
    facts = {"solver_skip": settings.solver_skip, "empty_captions": settings.empty_captions}
    if run.training.source == "latents":
        source = LatentStore(build / "scratch/latents")
        if source.plan != json.loads(built(build / "latents/summary.json", "latents").read_text())["plan"]:
            raise DataError(f"{source.folder} holds other latents than the stage's: run it (dvc repro --force latents)")
        facts["latents"] = digest(source.folder / "index.json")
    else:
        source = training_images(params.data, data)
        facts |= {f"data.{key}": value for key, value in training_facts(params.data).items()}
    stream = Stream(source, run.training.batch_size, run.seed, getattr(params.data, "workers", 0))
    return OnlinePaths(stream, run, teacher, settings), facts
