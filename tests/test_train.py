"""Training: the loss falls, a seed gives the same bits, an interrupted run gives them too, and ranks share a batch."""

import dataclasses
import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from splam import batches, train
from splam.data import emoji
from splam.params import Params, ResolvedRun, compose, load_params, resolve, write_params
from splam.solver import TrajectoryCache
from splam.trajectories import build_cache, half_precision_error, make_draws

OVERRIDES = [
    "teacher.dtype=float32",
    "trajectories.guidance_scales=[3]",
    "trajectories.draws=24",
    "trajectories.batch_size=12",
    "training.iterations=6",
    "training.batch_size=4",
    "training.bf16=false",
    "training.condition_width=16",
    "training.lora_rank=4",
    "world.text_tokens=8",
    "evaluation.batch_size=2",
    *(f"runs.{run}.guidance_scale=3" for run in ("lcm-star-w8-k20",)),
]


@cache
def small_params() -> Params:
    """The smoke profile, smaller still."""
    return Params.model_validate(compose("smoke", overrides=OVERRIDES))


def resolved_run(method: str) -> ResolvedRun:
    """The smoke profile's first run of a method."""
    params = small_params()
    return resolve(params, next(n for n in params.matrix.runs if resolve(params, n).run.method == method))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A handful of glyphs."""
    folder = tmp_path_factory.mktemp("data")
    emoji.build(folder, 0, 1, 1, every=130, workers=1)
    return folder


@pytest.fixture(scope="module")
def paths(tmp_path_factory, teacher, data) -> TrajectoryCache:
    draws = make_draws(small_params(), data, teacher.schedule.length)
    return build_cache(small_params(), teacher, draws, 3.0)


def trained(teacher, paths, resolved, folder: Path) -> list[float]:
    source = batches.CachedPaths(paths, resolved, teacher)
    return train.train(resolved, teacher, source, folder / "scratch", folder / "out")


def weights_hash(folder: Path) -> str:
    files = sorted((folder / "out").rglob("unet/*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_the_cache_holds_what_the_solver_gives(paths, teacher):
    assert paths.chain.shape == (24, 6, 4, 8, 8)
    # Float32 against float32 in another batch size; the v of an untrained network is nearly 0, so z moves little, and
    # the rounding is a larger share of it (3e-5) than a trained teacher's (under 1e-5).
    assert half_precision_error(teacher, paths, small_params().trajectories)["all_steps"] < 1e-4
    assert paths.embeddings.dtype == torch.float16


@pytest.mark.parametrize("method", ["lcm", "lcm_star", "lcm_lora", "splam"])
def test_the_loss_falls(teacher, paths, method, tmp_path):
    resolved = resolved_run(method)
    settings = {"iterations": 30, "batch_size": 8, "learning_rate": 3e-3, "lora_learning_rate": 1e-2, "snapshots": []}
    resolved = dataclasses.replace(resolved, training=resolved.training.model_copy(update=settings))
    losses = trained(teacher, paths, resolved, tmp_path)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    log = pd.read_csv(tmp_path / "out/log.csv")
    np.testing.assert_allclose(log.loss, losses, rtol=1e-6)


def test_a_seed_gives_the_same_bits_and_another_does_not(teacher, paths, tmp_path):
    resolved = resolved_run("splam")
    runs = {"a": resolved, "b": resolved, "c": dataclasses.replace(resolved, seed=1)}
    losses = {name: trained(teacher, paths, run, tmp_path / name) for name, run in runs.items()}
    hashes = {name: weights_hash(tmp_path / name) for name in runs}
    assert losses["a"] == losses["b"] != losses["c"]
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_an_interrupted_run_ends_with_the_same_bits(teacher, paths, tmp_path, monkeypatch):
    resolved = resolved_run("splam")
    resolved = dataclasses.replace(resolved, training=resolved.training.model_copy(update={"checkpoint_seconds": 1e-9}))
    whole = trained(teacher, paths, resolved, tmp_path / "whole")

    step, calls = train.train_step, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(train, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(teacher, paths, resolved, tmp_path / "cut")
    assert len(list((tmp_path / "cut/scratch").glob("checkpoint-*.pt"))) == resolved.training.keep_checkpoints
    assert not (tmp_path / "cut/out").exists()
    monkeypatch.setattr(train, "train_step", step)
    assert trained(teacher, paths, resolved, tmp_path / "cut") == whole
    assert weights_hash(tmp_path / "cut") == weights_hash(tmp_path / "whole")


def test_the_cache_holds_a_chain_of_second_order_where_it_is_asked_for(teacher, data):
    settings = small_params().trajectories.model_copy(update={"second_order": [3.0]})
    params = small_params().model_copy(update={"trajectories": settings})
    cache = build_cache(params, teacher, make_draws(params, data, teacher.schedule.length), 3.0)
    assert cache.second_order.shape == cache.chain.shape
    assert half_precision_error(teacher, cache, settings)["second_order"] < 1e-4  # as above
    assert torch.equal(cache.second_order[:, 1], cache.chain[:, 1])  # its first step is DDIM's
    resolved = resolve(params, next(n for n in params.matrix.runs if resolve(params, n).run.skip == 100))
    second = resolved.training.model_copy(update={"solver_order": 2})
    paths = batches.CachedPaths(cache, dataclasses.replace(resolved, training=second), teacher).batch(0, 0, 1).paths
    plain = batches.CachedPaths(cache, resolved, teacher).batch(0, 0, 1).paths
    assert torch.equal(paths.z_t, plain.z_t) and not torch.allclose(paths.z_s, plain.z_s)
    rows = [int((cache.chain[:, 0] == z).flatten(1).all(1).nonzero()) for z in paths.z_t]
    assert torch.equal(paths.z_s, cache.second_order[rows, 5])


def test_a_cache_without_second_order_says_what_to_set(paths):
    with pytest.raises(ValueError, match="cache of w = 3 has no chain of second order: .*trajectories.second_order"):
        paths.multiple_steps(torch.arange(2), 40, order=2)


def test_runs_share_their_draws(teacher, paths):
    """LCM and SPLAM of one seed see the same trajectories in the same order; gamma is 1 for LCM."""
    lcm, splam = (batches.CachedPaths(paths, resolved_run(m), teacher).batch(3, 0, 1) for m in ("lcm", "splam"))
    torch.testing.assert_close(lcm.paths.z_t, splam.paths.z_t, rtol=0, atol=0)
    assert (lcm.gamma == 1).all() and (splam.gamma < 1).all()


def test_ranks_split_one_global_batch(teacher, paths):
    """Two processes with batches of 4 see what one process with a batch of 8 sees, with two points of each path."""
    resolved, double = (
        dataclasses.replace(run, training=run.training.model_copy(update={"batch_size": size, "gammas_per_path": 2}))
        for run, size in ((resolved_run("splam"), 4), (resolved_run("splam"), 8))
    )
    whole = batches.CachedPaths(paths, double, teacher).batch(1, 0, 1)
    halves = [batches.CachedPaths(paths, resolved, teacher).batch(1, rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.cat([h.paths.z_t for h in halves]), whole.paths.z_t, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([h.gamma for h in halves]), whole.gamma, rtol=0, atol=0)
    assert len(whole.gamma.unique()) == 2 * len(whole.paths.t) == 16


def test_every_draw_is_used_before_one_is_used_again():
    rows = torch.cat([batches.batch_rows(i, 4, 10, seed=0) for i in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_learning_rate_warms_up_and_falls():
    resolved = resolved_run("splam")
    settings = {"iterations": 10, "warmup": 2, "learning_rate": 1.0, "schedule": "linear"}
    resolved = dataclasses.replace(resolved, training=resolved.training.model_copy(update=settings))
    rates = [train.learning_rate(i, resolved) for i in range(10)]
    assert rates[0] == 0.5 and rates[1] == pytest.approx(0.9) and rates[9] == pytest.approx(0.1)


def test_a_diverging_run_stops_and_says_so(teacher, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", lambda student, *_: next(student.parameters()).sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="at iteration 0; lower learning_rate"):
        trained(teacher, paths, resolved_run("splam"), tmp_path)
    assert not (tmp_path / "out").exists()


def test_two_trainings_of_one_run_keep_apart(tmp_path):
    with train.locked(tmp_path / "lock"), pytest.raises(SystemExit, match="trained by another process"):
        with train.locked(tmp_path / "lock"):
            pass


def test_command_line_on_two_processes_gives_the_losses_of_one(teacher_folder, paths, tmp_path):
    """torchrun with two gloo ranks of 2 samples trains as one rank of 4 does, to rounding."""
    losses = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        overrides = [*OVERRIDES, f"training.batch_size={4 // processes}", "runs.splam-w3-k20.training={snapshots: []}"]
        write_params("smoke", overrides=overrides, out=folder.with_suffix(".yaml"))
        paths.save(folder / "trajectories/w3.safetensors")
        arguments = ["splam-w3-k20-s0", "--params", folder.with_suffix(".yaml"), "--teacher", teacher_folder]
        arguments += ["--trajectories", folder / "trajectories", "--scratch", folder / "scratch"]
        arguments = [*map(str, arguments), "--out", str(folder / "out")]
        if processes == 1:
            assert train.main(arguments) == 0
        else:
            torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "splam.train"]
            subprocess.run([sys.executable, "-m", *torchrun, *arguments], check=True, capture_output=True, timeout=300)
        losses[processes] = pd.read_csv(folder / "out/log.csv").loss
        assert not list((folder / "scratch").iterdir())  # nothing is left of a finished run
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)


def test_command_line_takes_a_profile_and_names_what_is_wrong(teacher_folder, paths, tmp_path, capsys):
    run, flags = "splam-w3-k20-s0", ["--profile", "smoke", "--teacher", str(teacher_folder)]
    flags += ["--scratch", str(tmp_path / "scratch"), "--trajectories", str(tmp_path / "trajectories")]
    override = ["--set", *OVERRIDES, "runs.splam-w3-k20.training={snapshots: []}"]
    assert train.main([run, *flags, *override]) == 1
    assert "run the trajectories stage" in capsys.readouterr().err
    paths.save(tmp_path / "trajectories/w3.safetensors")
    assert train.main([run, *flags, "--out", str(tmp_path / "out"), *override]) == 0
    assert len(pd.read_csv(tmp_path / "out/log.csv")) == 6
    assert train.main(["splam-s9", "--profile", "smoke"]) == 1
    assert "there is no run 'splam-s9'; there are: lcm-" in capsys.readouterr().err
    assert train.main([run, "--profile", "smoke", "--teacher", str(tmp_path / "none")]) == 1
    assert "none is no diffusers pipeline" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "torchrun --nproc-per-node N" in capsys.readouterr().out


def test_an_empty_pool_is_named(teacher, paths):
    resolved = resolved_run("splam")
    strict = resolved.training.model_copy(update={"short_ends": "strict"})
    resolved = dataclasses.replace(
        resolved, training=strict, run=resolved.run.model_copy(update={"skip": 2000, "multiple_estimation": False})
    )
    with pytest.raises(ValueError, match="no cached draw starts at a time that short_ends = 'strict' allows"):
        batches.CachedPaths(paths, resolved, teacher)


def test_params_of_the_repository_are_the_composed_default():
    """params.yaml in git is a composition of one of the profiles, unedited."""
    active = load_params()
    assert yaml.safe_load(Path("params.yaml").read_text()) == compose(active.profile)
