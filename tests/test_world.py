"""How the tiny world's models are trained: the loop's arithmetic, its exact resume, and the latents' scale."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from splam import world
from splam.params import Recipe, load_params, write_params

RECIPE = Recipe(
    channels=[4],
    iterations=40,
    batch_size=2,
    optimizer="adamw",
    learning_rate=0.1,
    warmup=4,
    weight_decay=0.0,
    gradient_norm=1.0,
    ema_decay=0.9,
    bf16=False,
    seed=3,
    checkpoint_seconds=60,
)


def distance_to_five(model: nn.Module):
    """A loss with a minimum at weight = 5, and a source of noise that the generator alone decides."""

    def loss(generator: torch.Generator) -> torch.Tensor:
        return (model.weight - 5 + 0.1 * torch.randn((), generator=generator)).square().sum()

    return loss


def one_weight() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [world.rate(i, RECIPE) for i in range(RECIPE.iterations)]
    assert rates[0] == pytest.approx(0.1 / 4) and rates[3] == pytest.approx(0.1 * (1 - 3 / 40))
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] == pytest.approx(0.1 / 40)


def test_fit_learns_and_returns_the_average(tmp_path):
    model = one_weight()
    recipe = RECIPE.model_copy(update={"iterations": 200})
    average = world.fit(model, distance_to_five(model), recipe, tmp_path / "scratch.pt", "test")
    assert abs(average.weight.item() - 5) < 0.5 and not average.training
    assert average.weight is not model.weight


@pytest.mark.parametrize("optimizer", world.OPTIMIZERS)
def test_a_killed_training_goes_on_with_the_same_bits(optimizer, tmp_path):
    recipe = RECIPE.model_copy(update={"optimizer": optimizer})
    whole = one_weight()
    expected = world.fit(whole, distance_to_five(whole), recipe, tmp_path / "whole.pt", "test")
    broken, calls = one_weight(), []

    def killed(generator: torch.Generator) -> torch.Tensor:
        calls.append(generator)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return distance_to_five(broken)(generator)

    often, scratch = recipe.model_copy(update={"checkpoint_seconds": 1e-9}), tmp_path / "broken.pt"
    with pytest.raises(KeyboardInterrupt):
        world.fit(broken, killed, often, scratch, "test")
    resumed = one_weight()
    average = world.fit(resumed, distance_to_five(resumed), recipe, scratch, "test")
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(average.weight, expected.weight)


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    model = one_weight()
    with pytest.raises(FloatingPointError, match="test: the loss is nan at iteration 0; lower its rate"):
        world.fit(model, lambda g: model.weight.sum() * torch.nan, RECIPE, tmp_path / "s.pt", "test")


def test_normalised_latents_have_unit_variance_and_decode_to_the_same(generator):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, sample_size=16).double().eval()
    with torch.no_grad():
        vae.quant_conv.weight *= 7
        vae.quant_conv.bias += 2
        x = torch.randn(40, 3, 16, 16, generator=generator, dtype=torch.float64)
        before = vae.encode(x).latent_dist
        rebuilt = vae.decode(before.mean).sample
        world.normalise_latents(vae, x)
        after = vae.encode(x).latent_dist
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(vae.decode(after.mean).sample, rebuilt, atol=1e-9)
    deviation = before.mean.std((0, 2, 3))[None, :, None, None]
    assert torch.allclose(after.std, before.std / deviation, rtol=1e-9)


def test_scratch_files_are_keyed_by_the_recipe(tmp_path):
    params = []
    for overrides in ([], ["world.vae.iterations=4201"]):
        write_params("tiny", overrides=overrides, out=tmp_path / "params.yaml")
        params.append(load_params(tmp_path / "params.yaml"))
    files = {name: [world.scratch_file(p, name) for p in params] for name in ("vae", "unet", "clip")}
    assert files["vae"][0] != files["vae"][1] and files["unet"][0] == files["unet"][1] != files["clip"][0]
