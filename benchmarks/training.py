"""What training costs: a step against public scripts' and its floor, a sweep with and without sharing, and growth."""

import dataclasses
import itertools
import os
import statistics
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
from benchmarks.compare import FOLDER, SCRATCH, Cases, Row, Seconds, clock, in_turn, peak_megabytes, ratio
from benchmarks.rivals import Script
from splam.config import Params, Run
from splam.distill.loop import Distillation, set_determinism
from splam.distill.online import OnlinePaths
from splam.distill.paths import Batch, CachedPaths, TrajectoryCache
from splam.distill.trajectories import build_cache
from splam.method.loss import update_target
from splam.method.solver import sub_path
from splam.method.subpath import SubPath
from splam.networks.teacher import Teacher, call_unet

METHODS = {
    ("diffusers", 20): "lcm_star",
    ("diffusers", 100): "lcm",
    ("authors", 20): "splam",
    ("authors", 100): "splam",
}
RUNS = {(s, k): {"method": m, "skip": k, "multiple_estimation": k > 20} for (s, k), m in METHODS.items()}
ITERATIONS, BATCH, ROUNDS = 20, 8, 3  # of the sweep, and of growth


def a_run(params: Params, changes: Row) -> Run:
    """A run of the profile's training, with the authors' form of sigma."""
    training = params.training.model_dump() | {"sigma_form": "markov"}
    return Run(**{"name": "step", "seed": 0, "guidance_scale": 3.0, "training": training} | changes)


def random_cache(params: Params, teacher: Teacher, w: float = 3.0) -> TrajectoryCache:
    """Trajectories of noise images."""
    images = torch.randint(256, (params.trajectories.draws, teacher.image_size, teacher.image_size, 3)).byte().numpy()
    t = torch.randint(50, (len(images),)) * 20 + 19
    return build_cache(params, teacher, (images, [bench.CAPTION] * len(images), t), w)


def endless(batch: tuple) -> Any:
    """A stream of one batch, so that reading is not what is measured."""
    return SimpleNamespace(batches=lambda start=0: itertools.repeat(batch))


def stepping(job: Distillation, source: Any) -> Callable[[], float]:
    """The training's next step, with batches from a source."""

    def step() -> float:
        set_determinism(job.run.training, job.teacher.device.type)
        job.source = source
        return job.step(0).item()

    return step


def calling(job: Distillation, unet: torch.nn.Module) -> Callable[[], None]:
    """A network's forward on a batch, and backward if it is trained."""
    batch, width = job.source.batch(0, 0, 1), unet.config.time_cond_proj_dim
    condition = torch.ones(len(batch.gamma), width, device=batch.gamma.device) if width else None

    def call() -> None:
        with job.teacher.autocast():
            loss = call_unet(unet, batch.path.z_t, batch.path.t, batch.captions, condition).square().mean()
        if loss.requires_grad:
            loss.backward()

    return call


def compare(key: tuple[str, int], params: Params, teacher: Teacher, rounds: int, adapter: Any = None) -> list[Row]:
    """The rows of one script and k. Raises AssertionError if its loss differs from ours on equal draws.

    The teacher's output is read as the noise, whatever it is: the authors' script knows nothing else.
    """
    config = teacher.scheduler_config | {"prediction_type": "epsilon"}
    teacher = dataclasses.replace(teacher, scheduler_config=config)
    run, settings, script = a_run(params, RUNS[key] | {"adapter": adapter}), params.trajectories, key[0]
    size, kind = run.training.batch_size, f"k = {run.skip}{', ME' * run.multiple_estimation}{', LoRA' * bool(adapter)}"
    images, captions = torch.rand(size, 3, teacher.image_size, teacher.image_size) * 2 - 1, [bench.CAPTION] * size
    streams = {"images": (images, captions), "latents": (teacher.encode(images), teacher.embed(captions))}
    sources: dict[str, Any] = {n: OnlinePaths(endless(batch), run, teacher, settings) for n, batch in streams.items()}
    sources["trajectories"] = CachedPaths(random_cache(params, teacher), run, teacher)
    job = Distillation(run, teacher, sources["trajectories"])
    rival = Script(run, teacher, settings.solver_skip if run.multiple_estimation else run.skip)
    batch = job.source.batch(0, 0, 1)
    theirs = rival.loss(batch.path.z_t, batch.path.t, batch.captions, batch.gamma, batch.guidance_scale)
    rounding = 0.1 if teacher.bf16 else 1e-4  # of one sample in bfloat16, some per cent
    torch.testing.assert_close(theirs, job.loss(0, 0, 1), rtol=rounding, atol=0)

    def scripts_step() -> float:
        torch.use_deterministic_algorithms(False)
        return rival.step(images, captions)

    cases = {name: stepping(job, source) for name, source in sources.items()}
    cases |= {"script": scripts_step, "floor": calling(job, job.student)}
    seconds, peaks = in_turn(cases, rounds), {name: peak_megabytes(case) for name, case in cases.items()}
    rows = []
    for name in sources:
        facts = {"images_per_second": round(size / sorted(seconds[name])[rounds // 2], 1), "peak_mb": peaks[name]}
        facts |= {"rival_peak_mb": peaks["script"], "batch": size}
        what, aim = f"{script}' script / splam from {name}: {kind}", ">= 2" if script == "diffusers" else ""
        rows.append(ratio(what, seconds["script"], seconds[name], aim, **facts))
    what = f"splam from {name} / the student's forward and backward: {kind}"
    return [*rows, ratio(what, seconds[name], seconds["floor"], peak_mb=peaks["floor"])]


def profile(params: Params, teacher: Teacher, rounds: int) -> list[Row]:
    """What lies between a step from the cache and the floor: shares of the step."""
    run = a_run(params, RUNS["authors", 20])
    job = Distillation(run, teacher, CachedPaths(random_cache(params, teacher), run, teacher))
    parts = {  # gradients stay from the last step
        "the student's forward and backward": calling(job, job.student),
        "the target's forward": calling(job, job.target),
        "AdamW": job.optimizer.step,
        "the average": lambda: update_target(job.target, job.student, 0.95),
        "the gradient's norm": lambda: job.accelerator.clip_grad_norm_([p for p, _ in job.trained], 1.0),
        "the batch from the cache": lambda: job.source.batch(0, 0, 1),
    }
    seconds = in_turn({**parts, "step": stepping(job, job.source)}, rounds)
    return [ratio(f"share of a step: {name}", seconds[name], seconds["step"]) for name in parts]


def step() -> None:
    """Write step.csv: the tiny teacher on the CPU."""
    torch.manual_seed(0)
    settings = ["trajectories.draws=64", "trajectories.batch_size=64", "training.batch_size=16"]
    params, teacher = bench.tiny_params(*settings), bench.tiny_teacher()
    bench.write("step", [row for key in RUNS for row in compare(key, params, teacher, 6)] + profile(params, teacher, 9))


class FreshPaths(CachedPaths):
    """The cache's draws, solved by the teacher when they are asked for; seconds: what its calls took, one a batch."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.seconds: list[float] = []

    def batch(self, iteration: int, share: int, shares: int) -> Batch:
        """As the cache gives it, with its ends computed anew."""
        batch, run, k_phi = super().batch(iteration, share, shares), self.run, int(self.cache.solver_skip)
        step, start = k_phi if run.multiple_estimation and run.skip > k_phi else run.skip, clock()
        guided = self.teacher.guided(batch.captions, batch.guidance_scale.view(-1, 1, 1, 1))
        path = sub_path(guided, batch.path.z_t, batch.path.t, run.skip, step, self.teacher.schedule)
        self.seconds.append(clock() - start)
        return dataclasses.replace(batch, path=path)


def both_ways(run: Run, cache: TrajectoryCache, teacher: Teacher) -> Seconds:
    """Seconds of every iteration: fresh, of it the teacher's, and cached. Raises AssertionError if losses differ."""
    kinds = {"fresh": FreshPaths, "cached": CachedPaths}
    jobs = {name: Distillation(run, teacher, kind(cache, run, teacher)) for name, kind in kinds.items()}
    seconds: Seconds = {name: [] for name in jobs}
    for i in range(ITERATIONS):
        losses = {}
        for name in list(jobs)[:: 1 if i % 2 else -1]:
            start = clock()
            losses[name] = jobs[name].step(i).item()
            seconds[name].append(clock() - start)
        # Rounding grows with the steps: both are within 1e-4 at first.
        torch.testing.assert_close(losses["fresh"], losses["cached"], rtol=3e-2 if i else 1e-4, atol=1e-4)
    return seconds | {"teacher": jobs["fresh"].source.seconds}


def sweep_rows(kind: str, measured: list[Seconds]) -> list[Row]:
    """Gain, bound (a fresh step over itself less the teacher's calls) and their quotient, over some runs."""
    fresh, cached, teacher = (sum((m[name] for m in measured), []) for name in ("fresh", "cached", "teacher"))
    free, facts = [a - b for a, b in zip(fresh, teacher, strict=True)], {"runs": len(measured)}
    shares = [a / b for a, b in zip(free, cached, strict=True)]
    return [
        ratio(f"fresh teacher calls / shared trajectories: {kind}", fresh, cached, **facts),
        ratio(f"the bound of that, where teacher calls cost nothing: {kind}", fresh, free, **facts),
        bench.spread(f"share of the bound: {kind}", shares, ">= 0.9", **facts),
    ]


def sweep() -> None:
    """Write sweep.csv: all runs of the profile, whose tables and figures share trajectories, on equal draws."""
    torch.manual_seed(0)
    full, teacher, start = bench.tiny_params(), bench.tiny_teacher(), clock()
    params = bench.tiny_params("trajectories.draws=160", "trajectories.batch_size=80", f"training.batch_size={BATCH}")
    caches = {w: random_cache(params, teacher, w) for w in params.trajectories.guidance_scales}
    making = (clock() - start) / params.trajectories.draws * full.trajectories.draws
    every = {n: both_ways(run, caches.get(run.guidance_scale, caches[3]), teacher) for n, run in params.runs.items()}
    several = [name for name, run in params.runs.items() if run.multiple_estimation and run.skip == 100]
    rows = sweep_rows("one solver step", [m for name, m in every.items() if name not in several])
    rows += sweep_rows("k = 100, ME", [every[name] for name in several]) + sweep_rows("all", list(every.values()))
    steps = {name: run.training.iterations * run.training.batch_size / BATCH for name, run in full.runs.items()}
    fresh, cached = (sum(n * statistics.median(every[run][w]) for run, n in steps.items()) for w in ("fresh", "cached"))
    what = "the profile's runs at full length, making the trajectories included (from the medians)"
    bench.write("sweep", [*rows, {"what": what, "median": round(fresh / (cached + making), 3), "rounds": ITERATIONS}])


def on_random_paths(batch: int, size: int) -> Distillation:
    """A training on one batch of random sub-paths, of latents of size x size."""
    t, latents = torch.randint(50, (batch,)) * 20 + 19, torch.randn(2, batch, 4, size, size)
    path, captions = SubPath(latents[0], t, latents[1], (t - 20).clamp(min=0)), bench.tiny_teacher().empty
    made = Batch(path, captions.expand(batch, -1, -1), torch.rand(batch), torch.full((batch,), 3.0))
    return Distillation(
        a_run(bench.tiny_params(), RUNS["authors", 20]), bench.tiny_teacher(), SimpleNamespace(batch=lambda *_: made)
    )


def points(along: str, cases: Cases, line: Callable[[Any, float], float], seconds: Seconds | None = None) -> list:
    """A row for each point, and, in a list of its own, the last one over the line through the first."""
    seconds, rows, start = seconds or in_turn(cases, ROUNDS), [], next(iter(cases))
    for at, case in cases.items():
        low, middle, high = statistics.quantiles(seconds[at], n=4, method="inclusive")
        facts = {"along": along, "at": at, "seconds": middle, "q1": low, "q3": high, "megabytes": peak_megabytes(case)}
        rows.append(facts | {"line": line(at, statistics.median(seconds[start]))})
    promised = [line(at, first) for first in seconds[start]]
    return [rows, [ratio(f"{along}: {at} / the line through {start}", seconds[at], promised)]]


def worker(rank: int, results: Any) -> None:
    """One of four processes, of which some at a time train with a global batch of 32, or each by itself."""
    jobs = {name: on_random_paths(32 // n, 8) for name, n in {"1": 1, "2": 2, "4": 4}.items()}
    dist.init_process_group("gloo", f"file://{SCRATCH}/rendezvous", rank=rank, world_size=4)
    groups = {name: dist.new_group(range(int(name))) for name in jobs}
    for name in [name for name in jobs if rank < int(name) > 1]:
        jobs[name].wrapped = torch.nn.parallel.DistributedDataParallel(jobs[name].student, process_group=groups[name])
    ways = {name: (int(name), 1, job) for name, job in jobs.items()}
    ways |= {"two threads": (1, 2, jobs["1"]), "two runs": (2, 1, jobs["1"])}
    for i, name in itertools.product(range(ROUNDS + 1), ways):
        ranks, threads, job = ways[name]
        torch.set_num_threads(threads)
        dist.barrier()
        start = time.perf_counter()
        for _ in range(2 if rank < ranks else 0):
            job.step(0)
        dist.barrier()
        if rank == 0 and i:
            results.put((name, time.perf_counter() - start))
    dist.destroy_process_group()


def growth() -> None:
    """Write growth.csv, growth-points.csv and growth.png."""
    torch.manual_seed(0)
    teacher, draws = bench.tiny_teacher(), ["trajectories.draws=16", "trajectories.batch_size=16"]
    params = bench.tiny_params(*draws, f"training.batch_size={BATCH}")
    cache, paths = random_cache(params, teacher), {}
    for k in (20, 40, 60, 80, 100):
        paths[k] = FreshPaths(cache, a_run(params, RUNS["authors", 100] | {"skip": k}), teacher)

    def runs(count: int) -> None:
        shared, run = random_cache(params, teacher), a_run(params, RUNS["authors", 100])
        for job in (Distillation(run, teacher, CachedPaths(shared, run, teacher)) for _ in range(count)):
            job.step(0), job.step(1)

    fresh = {k: partial(Distillation(path.run, teacher, path).step, 0) for k, path in paths.items()}
    batches = {n: partial(on_random_paths(n, 8).step, 0) for n in (4, 8, 16, 32)}
    sizes = {8 * n: partial(on_random_paths(8, n).step, 0) for n in (4, 8, 16)}
    several = {n: partial(runs, n) for n in (1, 2, 4)}
    found = [
        points("k", fresh, lambda k, first: first + (k / 20 - 1) * statistics.median(paths[20].seconds)),
        points("batch", batches, lambda n, first: first * n / 4),
        points("pixels a side", sizes, lambda n, first: first * (n / 32) ** 2),
        points("runs and their cache", several, lambda n, first: first * n),
    ]
    (SCRATCH / "rendezvous").unlink(missing_ok=True)
    results, seconds = torch.multiprocessing.get_context("spawn").SimpleQueue(), {}
    torch.multiprocessing.spawn(worker, (results,), nprocs=4)
    while not results.empty():
        name, took = results.get()
        seconds.setdefault(name, []).append(took)
    steps = {n: partial(on_random_paths(32 // int(n), 8).step, 0) for n in ("1", "2", "4")}
    cores, half = os.cpu_count() or 1, [took / 2 for took in seconds["two runs"]]
    found.append(points("processes", steps, lambda n, first: first / min(int(n), cores), seconds))
    found[-1][1].append(ratio("two threads a run / two runs at a time", seconds["two threads"], half))
    rows, table = (sum(part, []) for part in zip(*found, strict=True))
    for row in table[-2:] + rows[-3:]:
        row["timed"] = "wall time"  # what more processes gain is not CPU time
    draw(rows)
    pd.DataFrame([bench.provenance() | row for row in rows]).round(4).to_csv(FOLDER / "growth-points.csv", index=False)
    bench.write("growth", table)


def draw(rows: list[Row]) -> None:
    """growth.png: a column for each direction, seconds above, memory of one process below."""
    groups = list(pd.DataFrame(rows).groupby("along", sort=False))
    figure = Figure(figsize=(3 * len(groups), 5), layout="constrained")
    for (along, group), (above, below) in zip(groups, figure.subplots(2, len(groups)).T, strict=True):
        group = group.assign(at=group["at"].astype(str))
        above.fill_between(group["at"], group["q1"], group["q3"], alpha=0.2)
        group.plot("at", ["seconds", "line"], ax=above, style=["C0o-", "k--"], title=along, ylim=(0, None), xlabel="")
        group.plot("at", "megabytes", ax=below, style="C0o-", ylim=(0, None), xlabel="", legend=False, ylabel="MB")
    figure.savefig(FOLDER / "growth.png", dpi=100)
