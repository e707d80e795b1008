"""What images cost: drawing them in stock pipelines, and measuring them against clean-fid and torchmetrics."""

import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cleanfid.fid import frechet_distance, get_folder_features
from cleanfid.resize import make_resizer
from PIL import Image

from benchmarks.compare import CAPTION, SCRATCH, Row, clock, in_turn, ratio, spread, tiny_teacher, write
from splam.data import shapes
from splam.measure.clip import TINY_CLIP, clip_score, load_clip
from splam.measure.fid import BATCH, FeatureStatistics, _efficientnet_lite0, fid, load_features
from splam.networks.export import export_pipeline
from splam.networks.pipelines import open_any

STUDENT, STEPS, TEACHER_STEPS, SCALE = SCRATCH / "student", (1, 2, 4), 50, 3.0
NETWORKS = ("unet", "text_encoder", "vae")
COUNT, REFERENCES, ROUNDS = 300, 1000, 3


def watched(pipeline: Any, seconds: Counter) -> Any:
    """The pipeline, which adds up what its networks take."""
    for name in NETWORKS:
        network = getattr(pipeline, name) if name != "vae" else pipeline.vae.decoder
        network.register_forward_pre_hook(lambda *_, name=name: seconds.subtract({name: clock()}))
        network.register_forward_hook(lambda *_, name=name: seconds.update({name: clock()}))
    return pipeline


def draw(batch: int, rounds: int) -> list[Row]:
    """The rows of one batch size. A student's weights do not matter: they are the teacher's, exported as its are."""
    seconds, parts, rows = Counter(), {}, []
    student, teacher = (watched(open_any(folder), seconds) for folder in (STUDENT, SCRATCH / "teacher"))

    def drawing(pipeline: Any, steps: int, scale: float) -> Callable[[], None]:
        def call() -> None:
            seconds.clear()
            start = clock()
            pipeline([CAPTION] * batch, num_inference_steps=steps, guidance_scale=scale)
            parts.setdefault(steps, []).append({"whole": clock() - start, **seconds})

        return call

    cases = {steps: drawing(student, steps, 1.0) for steps in STEPS}
    in_turn(cases | {TEACHER_STEPS: drawing(teacher, TEACHER_STEPS, SCALE)}, rounds)
    slow = parts[TEACHER_STEPS][1:]  # the first round is not counted
    for steps in STEPS:
        found, label = parts[steps][1:], f"{steps} step{'s' * (steps > 1)}, batch {batch}"
        calls = TEACHER_STEPS * 2 / steps  # guidance doubles the teacher's batch
        unets = [a["unet"] / b["unet"] for a, b in zip(slow, found, strict=True)]
        outside = [1 - sum(part[name] for name in NETWORKS) / part["whole"] for part in found]
        middle = statistics.median(part["whole"] * share for part, share in zip(found, outside, strict=True))
        rows.append(ratio(f"teacher / student: {label}", [a["whole"] for a in slow], [b["whole"] for b in found]))
        rows.append(spread(f"their UNets alone, over {calls:g}: {label}", [u / calls for u in unets], ">= 0.9"))
        rows.append(spread(f"share outside the networks: {label}", outside, "<= 0.05", milliseconds=1000 * middle))
    return rows


def sampling() -> None:
    """Write sampling.csv."""
    export_pipeline(tiny_teacher().unet, SCRATCH / "teacher", STUDENT)
    write("sampling", [row for batch, rounds in ((1, 5), (16, 3)) for row in draw(batch, rounds)])


@torch.no_grad()
def evaluation() -> None:
    """Write evaluation.csv. Raises AssertionError if the three differ by more than 1e-3.

    clean-fid itself reads a folder of PNGs, in this process, with our feature network in place of Inception.
    torchmetrics, no dependency of ours, is written anew: sums of features and of their products in double precision,
    eigenvalues, and CLIP score batch by batch, which stands beside clean-fid too. The reference's statistics are ready.
    """
    drawn, reference, folder = shapes.make("seen", 0, COUNT), shapes.make("train", 0, REFERENCES), SCRATCH / "images"
    images, captions, rows_of = drawn.images, drawn.captions(), [slice(i, i + BATCH) for i in range(0, COUNT, BATCH)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    extract, network, clip = load_features("efficientnet_lite0"), _efficientnet_lite0("cpu"), load_clip(TINY_CLIP)
    resize, seen = make_resizer("PIL", False, "bicubic", (64, 64)), extract(reference.images).astype(np.float64)
    text, mean, covariance = clip.text_features(captions), seen.mean(0), np.cov(seen, rowvar=False)
    statistics_of_reference = FeatureStatistics.of(seen)

    def ours() -> tuple[float, float]:
        score = clip_score(clip.image_features(images), text)
        return fid(statistics_of_reference, FeatureStatistics.of(extract(images))), score

    def resized(chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([resize(image) for image in chosen])).permute(0, 3, 1, 2)

    def prepared(chosen: np.ndarray) -> torch.Tensor:
        return torch.stack([clip.preprocess(Image.fromarray(image)) for image in chosen])

    def batched_score() -> float:
        total = 0.0
        for rows in rows_of:
            shown = clip.model.encode_image(prepared(images[rows]), normalize=True)
            total += float((shown * clip.model.encode_text(clip.tokenize(captions[rows]), normalize=True)).sum())
        return 100 * total / COUNT

    def clean_fid() -> tuple[float, float]:
        how = {"num_workers": 0, "batch_size": BATCH, "device": "cpu", "custom_fn_resize": resize, "verbose": False}
        found = get_folder_features(str(folder), network, **how)
        return frechet_distance(mean, covariance, found.mean(0), np.cov(found, rowvar=False)), batched_score()

    def torchmetrics() -> tuple[float, float]:
        total, products = 0, 0
        for rows in rows_of:
            features = network(resized(images[rows])).double()
            total, products = total + features.sum(0), products + features.T @ features
        found, other = total / COUNT, torch.from_numpy(covariance)
        own = (products - COUNT * torch.outer(found, found)) / (COUNT - 1)
        root = torch.linalg.eigvals(other @ own).sqrt().real.sum()
        gap = (torch.from_numpy(mean) - found).square().sum()
        return float(gap + other.trace() + own.trace() - 2 * root), batched_score()

    ready = [(resized(images[rows]), prepared(images[rows])) for rows in rows_of]

    def networks() -> None:
        for pixels, shown in ready:
            network(pixels), clip.model.encode_image(shown, normalize=True)

    for theirs in (clean_fid(), torchmetrics()):
        np.testing.assert_allclose(theirs, ours(), rtol=1e-3)
    cases = {"clean-fid's folder mode": clean_fid, "torchmetrics' way": torchmetrics, "splam": ours, "net": networks}
    cases |= {"clean-fid's resize": lambda: resized(images), "open_clip's preprocessing": lambda: prepared(images)}
    seconds = in_turn(cases, ROUNDS)
    facts = {"images": COUNT, "images_per_second": round(COUNT / sorted(seconds["splam"])[ROUNDS // 2], 1)}
    rows = [ratio(f"{who} / splam", seconds[who], seconds["splam"], **facts) for who in list(cases)[:2]]
    rows.append(ratio("splam / its networks alone", seconds["splam"], seconds["net"], "<= 1.1", **facts))
    write(
        "evaluation", rows + [ratio(f"{who} / the networks", seconds[who], seconds["net"]) for who in list(cases)[4:]]
    )
