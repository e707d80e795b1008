"""From images to the columns of a row: what a test set's samples are measured against, and every metric of them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from tqdm import tqdm

from splam.data.images import built
from splam.data.testsets import HeldOut
from splam.measure import fid
from splam.measure.clip import ClipScorer, caption_accuracy, clip_score
from splam.networks.teacher import Teacher


@dataclass(frozen=True)
class References:
    """What one dataset's samples are measured against; `prompts` says what is drawn.

    quote: the columns that a number is quoted with (protocol, fid_name, clip_name, references, captions); size: pixels
    at which images are measured; features (m, d) of the reference images, with their neighbour_distances, radii (m,);
    clip_text: features (n, e) of the prompts by every CLIP score's column. Where a prompt is one of a list, `choices`
    are the list's features (m, e) by the first CLIP model, and `right` (n,) the prompts' places in it.
    """

    quote: dict[str, str]
    size: int
    prompts: list[str]
    features: np.ndarray
    radii: np.ndarray
    clip_text: dict[str, np.ndarray]
    choices: np.ndarray
    right: np.ndarray

    def save(self, path: Path) -> None:
        """Write as one .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = json.dumps({"quote": self.quote, "size": self.size, "prompts": self.prompts})
        arrays = {name: getattr(self, name) for name in ("features", "radii", "choices", "right")}
        np.savez(path, facts=facts, **arrays, **self.clip_text)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what the references stage wrote. Raises FileNotFoundError."""
        with np.load(built(path, "references")) as file:
            arrays = {key: file[key] for key in file if key != "facts"}
            text = {key: arrays.pop(key) for key in [*arrays] if key.startswith("clip_score")}
            return cls(**json.loads(str(file["facts"])), **arrays, clip_text=text)


def make_references(teacher: Teacher, held_out: HeldOut, clips: dict[str, ClipScorer], features: str) -> References:
    """What samples of one test set are measured against; features: a name that load_features knows."""
    extract, shown, parts = fid.load_features(features, teacher.device), hashlib.sha256(), []
    for images in tqdm(held_out.references(), desc=f"references of {held_out.protocol}", mininterval=2):
        shown.update(images.tobytes())
        parts.append(extract(images))
    found, prompts = np.concatenate(parts), held_out.prompts
    quote = {"protocol": held_out.protocol, "fid_name": fid.FID_NAMES[features]}
    quote |= {column.replace("score", "name"): clip.name for column, clip in clips.items()}
    asked = hashlib.sha256(json.dumps(prompts).encode())
    quote |= {"references": shown.hexdigest()[:16], "captions": asked.hexdigest()[:16]}
    text = {column: clip.text_features(prompts) for column, clip in clips.items()}
    listed = list(held_out.choices)
    choices = clips["clip_score"].text_features(listed) if listed else np.empty((0, 0), np.float32)
    right = np.array([listed.index(prompt) for prompt in prompts if listed], int)
    return References(quote, held_out.size, prompts, found, fid.neighbour_distances(found), text, choices, right)


def rmse(images_a: np.ndarray, images_b: np.ndarray) -> float:
    """The RMS difference, pixels in [0, 1], of images of one noise and caption, averaged over uint8 (n, h, w, 3).

    FID compares sets, so it cannot tell apart two models that draw the same set from different noise; this can.
    """
    pairs = zip(images_a, images_b, strict=True)  # one at a time: 30,000 in single precision are 24 GB
    return float(np.mean([np.sqrt(np.square((a.astype(np.float32) - b) / 255).mean()) for a, b in pairs]))


class Paired(NamedTuple):
    """The teacher's images, uint8 (n, h, w, 3), that others of the same captions and noise are compared with."""

    images: np.ndarray
    features: np.ndarray


class Measure:
    """Turns images of a dataset's prompts into columns, by the networks that its references were measured by."""

    def __init__(self, references: References, extract: fid.Features, clips: dict[str, ClipScorer]):
        self.references, self.extract, self.clips = references, extract, clips
        self.statistics = fid.FeatureStatistics.of(references.features)
        self.kernel = fid.mean_kernel(references.features)

    def __call__(self, images: np.ndarray) -> Callable[..., dict[str, Any]]:
        """Features of images uint8 (n, h, w, 3), once; then row(count, teacher=None) measures the first `count`.

        fid_teacher is the FID to the teacher's images in place of real ones ("FID-SD" in Wang et al., 2024,
        arXiv:2405.18407): what a distillation brings nearer, whether or not those are like real ones.
        """
        features = self.extract(images)
        clip_features = {column: clip.image_features(images) for column, clip in self.clips.items()}
        reference, radii, right = self.references.features, self.references.radii, self.references.right

        def row(count: int, teacher: Paired | None = None) -> dict[str, Any]:
            found, drawn = features[:count], fid.FeatureStatistics.of(features[:count])
            columns = {"images": len(found), "fid": fid.fid(self.statistics, drawn)}
            columns["kid"] = fid.kid(reference, found, self.kernel)
            columns["precision"] = fid.share_within(found, reference, radii)
            columns["recall"] = fid.share_within(reference, found, fid.neighbour_distances(found))
            for column, text in self.references.clip_text.items():
                columns[column] = clip_score(clip_features[column][:count], text[:count])
            if len(right):
                named = clip_features["clip_score"][:count], self.references.choices, right[:count]
                columns["caption_accuracy"] = caption_accuracy(*named)
            if teacher is not None:
                columns["fid_teacher"] = fid.fid(fid.FeatureStatistics.of(teacher.features[:count]), drawn)
                columns["rmse_teacher"] = rmse(images[:count], teacher.images[:count])
            return columns

        return row
