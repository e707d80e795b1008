"""The CLIP score: a folder in open_clip's format, names of its models, and the cosine."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from splam.config import Evaluation
from splam.measure.clip import clip_score, load_clip, load_scorers

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).half()  # as it is on disk
    return model.float().eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> str:
    """An untrained model in the format of models/tiny/clip: half precision, and its own preprocessing."""
    folder = tmp_path_factory.mktemp("clip")
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    whole = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return str(folder)


def test_a_folders_model_is_fed_pixels_as_its_configuration_says(model, folder):
    scorer = load_clip(folder)
    features = scorer.image_features(IMAGES)  # over more than one batch
    with torch.no_grad():
        pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 127.5 - 1
        expected = model.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert features.dtype == np.float32 and not {p.dtype for p in scorer.model.parameters()} - {torch.float32}


def test_captions_are_cut_to_the_models_length_and_prefixed(model, folder):
    captions = ["red apple on a blue background", "cat " * 40]
    tokens = open_clip.SimpleTokenizer(context_length=24)([f"A photo depicts {caption}" for caption in captions])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(load_clip(folder, "A photo depicts ").text_features(captions), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "quick"), [("ViT-L-14/openai", True), ("ViT-g-14/laion2b_s12b_b42k", False)])
def test_a_clip_model_gets_the_activation_that_its_weights_were_trained_with(monkeypatch, name, quick):
    def create(architecture, weights, force_quick_gelu, **_):
        assert f"{architecture}/{weights}" == name and force_quick_gelu is quick
        return torch.nn.Identity(), None, lambda image: torch.zeros(3)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    scorer = load_clip(name, prefix="A photo depicts ")
    assert scorer.name == f"CLIP score ({name}, 'A photo depicts' before captions)"


def test_every_score_has_its_column_and_the_tiny_models_says_so(params, folder):
    assert load_scorers(params.evaluation)["clip_score"].name == "CLIP score (tiny, in-domain)"
    two = Evaluation.model_validate(params.evaluation.model_dump() | {"clip_beside": folder})
    assert list(load_scorers(two)) == ["clip_score", "clip_score_beside"]


def test_clip_score_is_the_mean_cosine_of_matches():
    images, texts = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [3.0, 4.0], [-5.0, -5.0]])
    assert clip_score(images, texts) == pytest.approx(100 * (1 + 0.8 - 1) / 3)
