"""The shipped teacher, by the card that `make teacher` writes: there is something to distil, and room to see it.

And the loop that trains it, which takes hours when it is run.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.tiny import world
from splam.config import ROOT

MODELS = ROOT / "models/tiny"
CARD = json.loads((MODELS / "card.json").read_text())


def fid(method: str, steps: int | None = None, w: float | None = None, dataset: str = "unseen") -> float:
    """Of one row of the card; the floors have no steps and no w."""
    wanted = {"method": method, "steps": steps, "guidance_scale": w, "dataset": dataset}
    found = [row["fid"] for row in CARD["rows"] + CARD["floors"] if all(row.get(k) == v for k, v in wanted.items())]
    assert len(found) == 1, wanted
    return found[0]


REAL, RECONSTRUCTED, TEACHER = fid("Real images"), fid("VAE reconstruction"), fid("Teacher", 50, 3)


def test_the_teacher_is_near_what_its_autoencoder_allows():
    assert RECONSTRUCTED < 1.45 * REAL
    assert TEACHER < 1.5 * RECONSTRUCTED


def test_unseen_triples_are_drawn_as_well_as_seen_ones():
    assert abs(fid("Teacher", 50, 3, "seen") / TEACHER - 1) < 0.08


def test_fewer_steps_are_worse():
    by_steps = [fid("Teacher", steps, 3) for steps in (8, 4, 2, 1)]
    assert by_steps == sorted(by_steps) and by_steps[0] > TEACHER
    assert by_steps[1] > 1.1 * TEACHER and by_steps[2] > 1.6 * TEACHER
    assert fid("Teacher", 4, 8) > 1.5 * fid("Teacher", 50, 8)


def test_the_undistilled_network_is_behind_its_teacher():
    assert fid("Undistilled", 4, 1) > 1.09 * TEACHER and fid("Undistilled", 1, 1) > 1.7 * TEACHER


def test_the_clip_model_names_what_is_drawn():
    assert CARD["caption_accuracy"]["real"] > 0.95 and CARD["caption_accuracy"]["teacher"] > 0.85


def test_the_readme_has_the_card():
    assert (MODELS / "card.md").read_text() in (MODELS / "README.md").read_text()


def test_a_stopped_training_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    recipe = {"learning_rate": 0.1, "lr_warmup_steps": 2, "weight_decay": 0.0, "max_grad_norm": 1.0, "ema_decay": 0.9}
    recipe = world.Recipe(**recipe, iterations=6, seed=0, checkpoint_seconds=-1)  # a checkpoint after every iteration

    def trained(folder: Path, stop: int) -> Tensor:
        module, draws = nn.Linear(3, 1, bias=False), iter(range(stop))
        nn.init.ones_(module.weight)

        def loss(generator: torch.Generator) -> Tensor:
            next(draws)
            return module(torch.randn(4, 3, generator=generator)).square().mean()

        monkeypatch.setattr(world, "SCRATCH", folder)
        return world.fit(module, loss, recipe, "linear").weight

    whole = trained(tmp_path / "whole", 6)
    with pytest.raises(StopIteration):
        trained(tmp_path / "cut", 4)
    assert torch.equal(trained(tmp_path / "cut", 2), whole) and not whole.allclose(torch.ones(3))
