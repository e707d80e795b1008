"""Training: the loss falls, a seed gives the same bits, an interrupted run gives them too, and nothing else does."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from splam.config import ParamsError
from splam.distill.checkpoints import CheckpointError
from splam.distill.loop import Distillation, learning_rate, open_distillation, set_determinism, train
from splam.networks.student import load_student
from tests.distill.builders import RUN, cached, cached_run, online, profile, trained, weights
from tests.runs import contents, small_run

ALWAYS = {"checkpoint_seconds": 1e-9}  # a checkpoint after every iteration


def interrupted(job: Distillation, folder, iterations: int) -> None:
    """Train for some iterations, and stop as Ctrl-C does."""
    steps = train(job, folder / "scratch", folder / "out")
    for _ in range(iterations):
        next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("method", ["lcm", "lcm_star", "lcm lora", "splam", "splam lora"])
def test_the_loss_falls(teacher, cache, method, tmp_path):
    training = {"iterations": 30, "batch_size": 8, "lora_learning_rate": 1e-2}
    losses = trained(cached(cache, cached_run(method, training), teacher), tmp_path)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    log = pd.read_csv(tmp_path / "out/losses.csv", index_col="iteration")
    np.testing.assert_allclose(log.loss, losses, rtol=1e-6)


def test_a_seed_gives_the_same_bits_and_another_does_not(teacher, cache, tmp_path):
    jobs = {name: cached(cache, cached_run(seed=seed), teacher) for name, seed in (("a", 5), ("b", 5), ("c", 6))}
    losses = {name: trained(job, tmp_path / name) for name, job in jobs.items()}
    assert losses["a"] == losses["b"] != losses["c"]
    a, b, c = (weights(job.target) for job in jobs.values())
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("method", ["splam", "lcm lora", "splam lora"])
def test_an_interrupted_run_ends_with_the_same_bits(teacher, cache, method, tmp_path):
    """Network, snapshots, pictures and losses, whatever was written before it was stopped."""
    run = cached_run(method, ALWAYS | {"snapshots": [1, 3, 6]})

    def started() -> Distillation:
        job = cached(cache, run, teacher)
        job.caption = "a caption"
        return job

    trained(started(), tmp_path / "whole")
    interrupted(started(), tmp_path / "cut", 4)
    assert len(list((tmp_path / "cut/scratch").glob("checkpoint-*.pt"))) == 2
    trained(started(), tmp_path / "cut")
    whole = contents(tmp_path / "whole/out")
    assert contents(tmp_path / "cut/out") == whole and not (tmp_path / "cut/scratch").exists()
    assert {name for name in whole if "pictures" in name} == {f"pictures/{i:06d}.png" for i in (1, 3, 4, 6)}
    assert sum(name.startswith("snapshots") and name.endswith(".safetensors") for name in whole) == 3
    assert ("gamma.safetensors" in whole) == ("splam" in method)
    assert ("lora/pytorch_lora_weights.safetensors" in whole) == ("lora" in method)


def test_what_is_published_is_the_average_of_every_steps_weights(teacher, cache, tmp_path):
    """Computed here from the student as each step leaves it."""
    job = cached(cache, cached_run(), teacher)
    average = weights(job.student)
    for _ in train(job, tmp_path / "scratch", tmp_path / "out"):
        average = 0.9 * average + 0.1 * weights(job.student)
    published = weights(load_student(tmp_path / "out", teacher.unet, job.run))
    torch.testing.assert_close(published, average, rtol=0, atol=1e-5)


def test_the_same_noise_gives_the_same_picture_and_training_moves_it(teacher, cache):
    job = cached(cache, cached_run("lcm_star"), teacher)
    job.caption = "a caption"
    before, state = np.array(job.picture()), torch.get_rng_state()
    assert np.array_equal(before, job.picture()) and torch.equal(state, torch.get_rng_state())
    for iteration in range(3):
        job.step(iteration)
    assert not np.array_equal(before, job.picture())


def test_a_killed_run_without_a_checkpoint_leaves_nothing_to_the_next(teacher, cache, tmp_path):
    interrupted(cached(cache, cached_run(training={"snapshots": [1]}), teacher), tmp_path, 2)
    trained(cached(cache, cached_run(training={"snapshots": [6]}), teacher), tmp_path)
    assert [path.name for path in (tmp_path / "out/snapshots").iterdir()] == ["000006"]
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("training", "facts", "named"),
    [
        ({"learning_rate": 1e-4}, {}, "training.learning_rate was 0.003, is 0.0001"),
        ({"iterations": 5}, {}, "training.iterations was 6, is 5"),
        ({"batch_size": 2}, {}, "global_batch was 4, is 2"),
        ({}, {"trajectories": "0123"}, "trajectories was f00d, is 0123"),
    ],
)
def test_checkpoints_of_other_parameters_are_refused_by_name(teacher, cache, tmp_path, training, facts, named):
    first = {"trajectories": "f00d"}
    interrupted(cached(cache, cached_run(training=ALWAYS), teacher, **first), tmp_path, 2)
    with pytest.raises(CheckpointError, match=rf"scratch is of another training \({named}\): set them back to finish"):
        trained(cached(cache, cached_run(training=ALWAYS | training), teacher, **first | facts), tmp_path)
    again = cached(cache, cached_run(training=ALWAYS), teacher, **first)
    assert len([*train(again, tmp_path / "scratch", tmp_path / "out")]) == 6 - 2


def test_a_diverging_run_stops_and_says_so(teacher, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(Distillation, "loss", lambda self, *_: next(self.student.parameters()).sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="run: loss nan at iteration 0; lower learning_rate"):
        trained(cached(cache, cached_run(), teacher), tmp_path)
    assert not (tmp_path / "out").exists()


def test_learning_rate_warms_up():
    training = {"iterations": 10, "lr_warmup_steps": 2, "learning_rate": 1.0}
    assert [learning_rate(i, small_run(training=training)) for i in range(4)] == [0.5, 1, 1, 1]
    assert learning_rate(5, small_run("splam lora", training={"lora_learning_rate": 0.25})) == 0.25


def started(teacher, **training) -> Distillation:
    run = {"training": training}
    return Distillation(small_run(**run), teacher, online(teacher, **run))


@pytest.mark.parametrize("how", [{"gradient_checkpointing": True}, {"batch_size": 2, "gradient_accumulation_steps": 2}])
def test_a_gradient_does_not_depend_on_how_it_is_computed(teacher, how):
    jobs = started(teacher), started(teacher, **how)
    losses = [job.gradients(0) for job in jobs]
    plain, other = ([parameter.grad for parameter, _ in job.trained] for job in jobs)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=2e-5)


def test_the_fused_optimizer_takes_the_plain_ones_step(teacher):
    job = started(teacher, weight_decay=0.1)
    job.gradients(0)
    plain = [torch.nn.Parameter(parameter.detach().clone()) for parameter, _ in job.trained]
    for twin, (parameter, _) in zip(plain, job.trained, strict=True):
        twin.grad = parameter.grad.clone()
    torch.optim.AdamW(plain, job.run.training.learning_rate, weight_decay=0.1).step()
    job.optimizer.step()
    torch.testing.assert_close(plain, [parameter for parameter, _ in job.trained], rtol=0, atol=1e-6)


def test_determinism_is_a_parameter_of_gpus_alone(monkeypatch):
    """There it picks slow convolutions and fills memory."""
    usual, asked = small_run().training, small_run(training={"deterministic": True}).training
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for training, device, wanted in ((usual, "cuda", False), (asked, "cuda", True), (usual, "cpu", True)):
        set_determinism(training, device)
        assert torch.are_deterministic_algorithms_enabled() == ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == wanted


def test_all_three_networks_are_compiled(teacher, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    job = started(teacher, compile=True)
    assert {*map(id, compiled)} == {id(network) for network in (job.student, job.target, teacher.unet)}


@pytest.fixture
def built(teacher_folder, cache, tmp_path):
    """A build folder as the stages before a training leave it."""
    (tmp_path / "teacher").symlink_to(teacher_folder)
    for w in (3, 8):
        cache.save(tmp_path / f"trajectories/w{w}.safetensors")
    return tmp_path


def test_a_run_is_opened_with_all_that_its_bits_depend_on(built, data):
    params = profile()
    job = open_distillation(params, RUN, built, data)
    facts = job.parameters
    assert (facts["seed"], facts["teacher"], facts["method"], facts["global_batch"]) == (0, "tiny", "splam", 4)
    assert (
        facts["training.learning_rate"] == params.runs[RUN].training.learning_rate
        and job.caption == params.pictures.prompts[0]
    )
    path = built / "trajectories/w3.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    other = open_distillation(params, RUN, built, data).parameters
    assert [key for key in facts if facts[key] != other[key]] == ["trajectories"]


def test_one_step_paths_of_any_w_come_from_any_cache(built, data):
    (built / "trajectories/w8.safetensors").unlink()
    params = profile("runs.lcm-w3-k20.guidance_scale=5")
    job = open_distillation(params, "lcm-w3-k20", built, data)
    assert (job.source.batch(0, 0, 1).guidance_scale == 5).all()
    with pytest.raises(FileNotFoundError, match="w8.safetensors: run the trajectories stage"):
        open_distillation(profile("runs.lcm-w3-k20.guidance_scale=8"), "lcm-w3-k20", built, data)
    with pytest.raises(ParamsError, match="there is no run 'splam-w3'; did you mean 'splam-w3-"):
        open_distillation(params, "splam-w3", built, data)
