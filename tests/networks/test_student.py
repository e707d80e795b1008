"""Students: the teacher at step 0, gamma's ways into the network, and back from what a run leaves."""

from types import SimpleNamespace

import pytest
import torch

from splam.networks.export import export_pipeline, published_unet
from splam.networks.student import load_student, make_student, published_network, save_gamma, student_network
from tests.networks.conftest import shaken
from tests.runs import small_run

RUNS = {
    method: small_run(method, input_scaling="raw") for method in ("lcm", "lcm_star", "lcm lora", "splam", "splam lora")
}
RUNS |= {"splam scaled": small_run(), "splam-tau": small_run(gamma_conditioning="equal_snr_time")}
T = torch.tensor([19, 499, 999])
W = torch.tensor([2.0, 8.0, 14.0])
Z, NOISE = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
CAPTIONS = torch.randn(3, 8, 384, generator=torch.Generator().manual_seed(1))


def epsilon(unet, run, teacher, gamma, sigma=None, z=Z):
    """A student's noise prediction at times T, at the noise level of T unless another is given."""
    sigma = teacher.schedule.sigma(T) if sigma is None else sigma
    with torch.no_grad():
        return student_network(unet, CAPTIONS, run, teacher, W)(z, sigma, T, gamma)


@pytest.mark.parametrize("name", RUNS)
def test_a_student_starts_as_its_teacher(teacher, name):
    student = make_student(teacher.unet, RUNS[name]).eval()
    gamma = torch.tensor([0.0, 0.4, 1.0])
    with torch.no_grad():
        expected = teacher.network(CAPTIONS)(Z, teacher.schedule.sigma(T), T, gamma)
    ours = epsilon(student, RUNS[name], teacher, gamma)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    trainable = sum(p.requires_grad for p in student.parameters())
    assert 0 < trainable and ("lora" in name) == (trainable < len(list(student.parameters())))
    assert not any(p.requires_grad for p in teacher.unet.parameters())


@pytest.mark.parametrize("name", ["splam scaled", "splam-tau"])
def test_input_scaling_is_the_identity_at_gamma_one_alone(teacher, name):
    run, one = RUNS[name], torch.ones(3)
    student = shaken(make_student(teacher.unet, run))
    plain = small_run(input_scaling="raw", gamma_conditioning=run.gamma_conditioning)
    raw = epsilon(student, plain, teacher, one)
    torch.testing.assert_close(epsilon(student, run, teacher, one), raw, rtol=1e-3, atol=1e-4)
    less = 0.8 * teacher.schedule.sigma(T)
    scaled, raw = (epsilon(student, r, teacher, one, less) for r in (run, plain))
    assert not torch.allclose(scaled, raw, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["splam", "splam scaled", "splam-tau"])
def test_a_perfect_network_gives_the_noise_of_the_point(teacher, name, prediction):
    """z = alpha x_0 + sigma epsilon with a sigma below sigma(t): whatever the network is fed, epsilon comes back."""
    alpha, sigma = teacher.schedule.alpha(T), 0.8 * teacher.schedule.sigma(T)
    norm = 1 if RUNS[name].input_scaling == "raw" else (alpha**2 + sigma**2).sqrt()
    point, seen = alpha * Z + sigma * NOISE, {}

    def perfect(fed, time, **_):
        seen.update(fed=fed, time=time)
        v = (alpha * NOISE - sigma * Z) / norm
        return ({"epsilon": NOISE, "v_prediction": v, "sample": Z}[prediction],)

    stub = SimpleNamespace(schedule=teacher.schedule, prediction_type=prediction, call=teacher.call)
    found = epsilon(perfect, RUNS[name], stub, torch.full((3,), 0.5), sigma, point)
    torch.testing.assert_close(found, NOISE, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen["fed"], point / norm)
    assert (seen["time"] < T).all() if name == "splam-tau" else torch.equal(seen["time"], T)


def test_gamma_reaches_a_trained_student_and_vanishes_at_one(teacher):
    """cond_proj is dropped on export, and the network at gamma = 1 is unchanged (after Eq. 19)."""
    run = RUNS["splam"]
    student = shaken(make_student(teacher.unet, run))
    published = published_unet(student, run)
    assert published.state_dict().keys() == teacher.unet.state_dict().keys()
    with torch.no_grad():
        plain = published_network(published, CAPTIONS, run, teacher)(Z, teacher.schedule.sigma(T), T, torch.ones(3))
    for gamma, same in ((1.0, True), (0.3, False)):
        fed = epsilon(student, run, teacher, torch.full((3,), gamma))
        assert torch.allclose(fed, plain, rtol=1e-3, atol=1e-4) == same


@pytest.mark.parametrize("name", ["splam", "splam-tau", "lcm_star", "lcm lora", "splam lora"])
def test_what_a_run_leaves_is_the_network_that_was_trained(teacher, tmp_path, name):
    run = RUNS[name]
    student = shaken(make_student(teacher.unet, run))
    export_pipeline(published_unet(student, run), teacher.folder, tmp_path / "pipeline")
    save_gamma(student, run, tmp_path)
    assert (tmp_path / "gamma.safetensors").exists() == (name in ("splam", "splam lora"))
    gamma = torch.tensor([0.0, 0.4, 1.0])
    loaded = load_student(tmp_path, teacher.unet, run)
    expected = epsilon(student, run, teacher, gamma)
    torch.testing.assert_close(epsilon(loaded, run, teacher, gamma), expected, rtol=1e-3, atol=1e-4)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_an_adapter_has_what_diffusers_script_trains(teacher):
    student = make_student(teacher.unet, RUNS["splam lora"])
    trained = {name.split(".lora_")[0] for name, weight in student.named_parameters() if weight.requires_grad}
    assert {"down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"} < trained
    assert {name for name in trained if name.startswith("time_embedding")} == {"time_embedding.cond_proj.weight"}


def test_a_run_that_is_not_there_is_named(teacher, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no student: distil it first .dvc repro distill@missing"):
        load_student(tmp_path / "missing", teacher.unet, RUNS["splam"])
