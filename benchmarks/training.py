"""What training costs: a step against public scripts' and its floor, a sweep with and without sharing, and growth."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.figure import Figure

from benchmarks import compare as bench
from benchmarks.compare import SCRATCH, Cases, Row, cpu_clock, in_turn, profile, spread
from benchmarks.rivals import Script
from splam.config import Run
from splam.distill.loop import Distillation, set_determinism
from splam.distill.paths import Batch, CachedPaths, OnlinePaths, TrajectoryCache
from splam.distill.trajectories import build_cache
from splam.method.loss import update_target
from splam.method.solver import sub_path
from splam.networks.student import student_network
from splam.networks.teacher import Teacher

# Whose script, its method, and k.
RIVALS = [("diffusers", "lcm_star", 20), ("diffusers", "lcm", 100), ("authors", "splam", 20), ("authors", "splam", 100)]
ITERATIONS, BATCH, ROUNDS = 20, 8, 3  # of the sweep, and of growth


def a_run(method: str, skip: int, adapter: str | None = None, **training: Any) -> Run:
    """A run with the training of the profile tiny, changed, and with the authors' form of sigma."""
    training = profile("tiny").training.model_dump() | {"sigma_form": "markov"} | training
    named = {"name": "step", "seed": 0, "method": method, "adapter": adapter, "guidance_scale": 3.0, "skip": skip}
    return Run(**named, multiple_estimation=skip > 20, training=training)


def online(batch: tuple, run: Run, teacher: Teacher) -> OnlinePaths:
    """Paths of one batch again and again, so that reading is not what is measured."""
    stream: Any = SimpleNamespace(batches=lambda *_: itertools.repeat(batch))
    return OnlinePaths(stream, run, teacher, profile("tiny").trajectories)


def random_cache(teacher: Teacher, draws: int, w: float = 3.0, pixels: int | None = None) -> TrajectoryCache:
    """Trajectories of noise images, of the teacher's size unless another is given."""
    size = pixels or teacher.image_size
    images, t = torch.randint(256, (draws, size, size, 3)), torch.randint(50, (draws,)) * 20 + 19
    return build_cache(profile("tiny"), teacher, (images.byte().numpy(), [bench.CAPTION] * draws, t), w)


def cached(run: Run, teacher: Teacher, cache: TrajectoryCache | None = None) -> Distillation:
    """A training on trajectories, by default those of one batch of noise images."""
    cache = cache or random_cache(teacher, run.training.batch_size)
    return Distillation(run, teacher, CachedPaths(cache, run, teacher))


def call(job: Distillation, unet: torch.nn.Module, batch: Batch) -> None:
    """A network's forward on a batch, and backward if it is trained."""
    network = student_network(unet, batch.captions, job.run, job.teacher, batch.guidance_scale)
    sigma = job.teacher.schedule.sigma(batch.path.t)
    loss = network(batch.path.z_t, sigma, batch.path.t, batch.gamma).square().mean()
    if loss.requires_grad:
        loss.backward()


def step_rows(whose: str, run: Run, teacher: Teacher, rounds: int) -> list[Row]:
    """The rows of one script and run. Raises AssertionError if its loss differs from ours on equal draws.

    The teacher's output is read as the noise, whatever it is: the authors' script knows nothing else.
    """
    config, size = teacher.scheduler_config | {"prediction_type": "epsilon"}, run.training.batch_size
    teacher = dataclasses.replace(teacher, scheduler_config=config)
    images, captions = torch.rand(size, 3, teacher.image_size, teacher.image_size) * 2 - 1, [bench.CAPTION] * size
    job, rival = cached(run, teacher), Script(run, teacher)
    streams = {"images": (images, captions), "latents": (teacher.encode(images), teacher.embed(captions))}
    sources = {name: online(batch, run, teacher) for name, batch in streams.items()} | {"trajectories": job.source}
    batch = job.source.batch(0, 0, 1)
    theirs = rival.loss(batch.path.z_t, batch.path.t, batch.captions, batch.gamma, batch.guidance_scale)
    rounding = 0.1 if teacher.bf16 else 1e-4  # of one sample in bfloat16, some per cent
    torch.testing.assert_close(theirs, job.loss(0, 0, 1), rtol=rounding, atol=0)

    def our_step(source: Any) -> None:
        set_determinism(run.training, teacher.device.type)  # the script undoes it
        job.source = source
        job.step(0)

    cases: Cases = {name: partial(our_step, source) for name, source in sources.items()}
    cases |= {"script": partial(rival.step, images, captions), "floor": partial(call, job, job.student, batch)}
    seconds, peaks = in_turn(cases, rounds), {name: bench.peak_megabytes(case) for name, case in cases.items()}
    kind, rows = f"k = {run.skip}{', ME' * run.multiple_estimation}{', LoRA' * bool(run.adapter)}", []
    for name in sources:
        facts = {"images_per_second": size / seconds[name].median(), "peak_mb": peaks[name]}
        facts |= {"rival_peak_mb": peaks["script"], "batch": size}
        what, aim = f"{whose}' script / splam from {name}: {kind}", ">= 2" if whose == "diffusers" else ""
        rows.append(spread(what, seconds["script"] / seconds[name], aim, **facts))
    what = f"splam from {name} / the student's forward and backward: {kind}"
    return [*rows, spread(what, seconds[name] / seconds["floor"], peak_mb=peaks["floor"])]


def step() -> None:
    """Write step.csv: the tiny teacher on the CPU, and what lies between a step from the cache and the floor."""
    teacher, rows = bench.tiny_teacher(), []
    for whose, method, k in RIVALS:
        rows += step_rows(whose, a_run(method, k, batch_size=16), teacher, 6)
    job = cached(a_run("splam", 20, batch_size=16), teacher)
    batch = job.source.batch(0, 0, 1)
    parts = {  # gradients stay from the last step
        "the student's forward and backward": partial(call, job, job.student, batch),
        "the target's forward": partial(call, job, job.target, batch),
        "AdamW": job.optimizer.step,
        "the average": lambda: update_target(job.target, job.student, 0.95),
        "the gradient's norm": lambda: job.accelerator.clip_grad_norm_([p for p, _ in job.trained], 1.0),
        "the batch from the cache": lambda: job.source.batch(0, 0, 1),
    }
    seconds = in_turn({**parts, "step": partial(job.step, 0)}, 9)
    rows += [spread(f"share of a step: {name}", seconds[name] / seconds["step"]) for name in parts]
    bench.write("step", rows)


class FreshPaths(CachedPaths):
    """The cache's draws, solved by the teacher when they are asked for."""

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """As the cache gives it, with its ends computed anew."""
        return self.solve(super().batch(iteration, share, shares))

    def solve(self, batch: Batch) -> Batch:
        """The part that is the teacher's."""
        guided, run = self.teacher.guided(batch.captions, batch.guidance_scale.view(-1, 1, 1, 1)), self.run
        step = 20 if run.multiple_estimation else run.skip
        path = sub_path(guided, batch.path.z_t, batch.path.t, run.skip, step, self.teacher.schedule)
        return dataclasses.replace(batch, path=path)


def both_ways(run: Run, cache: TrajectoryCache, teacher: Teacher) -> pd.DataFrame:
    """Seconds of a step, fresh and cached, and of the teacher's calls. Raises AssertionError if the losses differ."""
    paths = FreshPaths(cache, run, teacher)
    fresh, shared = Distillation(run, teacher, paths), cached(run, teacher, cache)
    torch.testing.assert_close(fresh.loss(0, 0, 1), shared.loss(0, 0, 1), rtol=1e-4, atol=1e-4)
    cases: Cases = {"fresh": partial(fresh.step, 0), "cached": partial(shared.step, 0)}
    cases["teacher"] = partial(paths.solve, paths.batch(0, 0, 1))
    seconds = in_turn(cases, ITERATIONS)  # in which rounding grows
    torch.testing.assert_close(fresh.loss(0, 0, 1), shared.loss(0, 0, 1), rtol=3e-2, atol=1e-4)
    return seconds


def sweep() -> None:
    """Write sweep.csv: the gain of sharing, its bound (a fresh step over one without the teacher), their quotient."""
    full, short, teacher = profile("tiny"), profile("tiny", f"training.batch_size={BATCH}"), bench.tiny_teacher()
    draws, start, rows = BATCH * ITERATIONS, cpu_clock(), []
    caches = {w: random_cache(teacher, draws, w) for w in full.trajectories.guidance_scales}
    making = (cpu_clock() - start) / draws * full.trajectories.draws
    every = {n: both_ways(run, caches.get(run.guidance_scale, caches[3]), teacher) for n, run in short.runs.items()}
    several = {name for name, run in full.runs.items() if run.multiple_estimation and run.skip == 100}
    for kind, names in {"one solver step": every.keys() - several, "k = 100, ME": several, "all": every}.items():
        some, facts = pd.concat([every[name] for name in names]), {"runs": len(names)}
        free, what = some.fresh - some.teacher, "the bound of that, where teacher calls cost nothing"
        rows.append(spread(f"fresh teacher calls / shared trajectories: {kind}", some.fresh / some.cached, **facts))
        rows.append(spread(f"{what}: {kind}", some.fresh / free, **facts))
        rows.append(spread(f"share of the bound: {kind}", free / some.cached, ">= 0.9", **facts))
    steps = {name: run.training.iterations * run.training.batch_size / BATCH for name, run in full.runs.items()}
    whole = sum(count * every[name].median() for name, count in steps.items())
    what = "the profile's runs at full length, making the trajectories included (from the medians)"
    rows.append({"what": what, "median": round(whole.fresh / (whole.cached + making), 3), "rounds": ITERATIONS})
    bench.write("sweep", rows)


def points(along: str, cases: Cases, line: Callable, seconds: Any = None, **facts: Any) -> list[Row]:
    """A row for each point: its time over that of the line through the first, and its memory."""
    seconds, rows, start = in_turn(cases, ROUNDS) if seconds is None else seconds, [], next(iter(cases))
    for at, case in cases.items():
        promised = line(at, seconds[start])
        facts |= {"along": along, "at": at, "seconds": seconds[at].median(), "line": promised.median()}
        what, megabytes = f"{along}: {at} / the line through {start}", bench.peak_megabytes(case)
        rows.append(spread(what, seconds[at] / promised, megabytes=megabytes, **facts))
    return rows


def worker(number: int) -> None:
    """One of four processes, of which some at a time train with a global batch of 32, or each by itself."""
    jobs = {n: cached(a_run("splam", 20, batch_size=32 // n), bench.tiny_teacher()) for n in (1, 2, 4)}
    dist.init_process_group("gloo", f"file://{SCRATCH}/rendezvous", rank=number, world_size=4)
    for n in (2, 4):
        group = dist.new_group(range(n))
        if number < n:
            jobs[n].wrapped = torch.nn.parallel.DistributedDataParallel(jobs[n].student, process_group=group)

    def train(processes: int, threads: int, job: Distillation) -> None:
        torch.set_num_threads(threads)
        for _ in range(2 if number < processes else 0):
            job.step(0)
        dist.barrier()

    cases: Cases = {n: partial(train, n, 1, job) for n, job in jobs.items()}
    cases |= {"two threads": partial(train, 1, 2, jobs[1]), "two runs": partial(train, 2, 1, jobs[1])}
    seconds = in_turn(cases, ROUNDS, time.perf_counter)
    seconds.to_pickle(SCRATCH / f"process-{number}.pickle")
    dist.destroy_process_group()


def growth() -> None:
    """Write growth.csv, growth-points.csv and growth.png."""
    teacher, cores, run = bench.tiny_teacher(), os.cpu_count() or 1, a_run("splam", 20, batch_size=BATCH)
    cache = random_cache(teacher, BATCH)
    paths = {k: FreshPaths(cache, a_run("splam", k, batch_size=BATCH), teacher) for k in (20, 40, 60, 80, 100)}
    solver_step = in_turn({1: partial(paths[20].solve, paths[20].batch(0, 0, 1))}, ROUNDS)[1].median()

    def runs(count: int) -> None:
        shared = random_cache(teacher, 2 * BATCH)
        for job in (cached(run, teacher, shared) for _ in range(count)):
            job.step(0), job.step(1)

    fresh = {k: partial(Distillation(path.run, teacher, path).step, 0) for k, path in paths.items()}
    batches = {n: partial(cached(a_run("splam", 20, batch_size=n), teacher).step, 0) for n in (4, 8, 16, 32)}
    sizes = {n: partial(cached(run, teacher, random_cache(teacher, BATCH, pixels=n)).step, 0) for n in (32, 64, 128)}
    (SCRATCH / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(worker, nprocs=4)
    seconds, steps = pd.read_pickle(SCRATCH / "process-0.pickle"), {n: batches[32 // n] for n in (1, 2, 4)}
    wall = {"timed": "wall time"}  # what more processes gain is not CPU time
    found = [
        points("k", fresh, lambda k, first: first + (k / 20 - 1) * solver_step),
        points("batch", batches, lambda n, first: first * n / 4),
        points("pixels a side", sizes, lambda n, first: first * (n / 32) ** 2),
        points("runs and their cache", {n: partial(runs, n) for n in (1, 2, 4)}, lambda n, first: first * n),
        points("processes", steps, lambda n, first: first / min(n, cores), seconds, **wall),
    ]
    two = spread("two threads a run / two runs at a time", 2 * seconds["two threads"] / seconds["two runs"], **wall)
    bench.write("growth", [*(rows[-1] for rows in found), two])
    bench.write("growth-points", sum(found, []))
    draw(pd.DataFrame(sum(found, [])))


def draw(rows: pd.DataFrame) -> None:
    """growth.png: a column for each direction, seconds above, memory of one process below."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    for (along, group), axes in zip(rows.groupby("along", sort=False), figure.subplots(2, 5).T, strict=True):
        group.plot("at", ["seconds", "line"], ax=axes[0], style=["C0o-", "k--"], title=along, ylim=(0, None), xlabel="")
        group.plot("at", "megabytes", ax=axes[1], style="C0o-", ylim=(0, None), xlabel="", legend=False, ylabel="MB")
    figure.savefig(bench.FOLDER / "growth.png", dpi=100)
