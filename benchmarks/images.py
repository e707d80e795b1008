"""What images cost: drawing them in stock pipelines, and measuring them against clean-fid and torchmetrics."""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from cleanfid.fid import frechet_distance, get_folder_features
from cleanfid.resize import make_resizer
from PIL import Image

from benchmarks.compare import CAPTION, SCRATCH, Row, cpu_clock, in_turn, spread, tiny_teacher, write
from splam.data import shapes
from splam.measure.clip import TINY_CLIP, clip_score, load_clip
from splam.measure.fid import BATCH, FeatureStatistics, _efficientnet_lite0, fid, load_features
from splam.networks.pipelines import open_any

STEPS, TEACHER_STEPS, SCALE = (1, 2, 4), 50, 3.0
BATCHES = {1: 5, 16: 3}  # images of a call, and rounds
COUNT, REFERENCES, ROUNDS = 300, 1000, 3


def watched(pipeline: Any, seconds: Counter) -> Any:
    """The pipeline, which adds up what its networks take."""
    for name, network in {"unet": pipeline.unet, "text": pipeline.text_encoder, "vae": pipeline.vae.decoder}.items():
        network.register_forward_pre_hook(lambda *_, name=name: seconds.subtract({name: cpu_clock()}))
        network.register_forward_hook(lambda *_, name=name: seconds.update({name: cpu_clock()}))
    return pipeline


def sampling() -> None:
    """Write sampling.csv. A student's weights do not matter: it is the teacher with a student's scheduler."""
    seconds, rows, folder = Counter(), [], tiny_teacher().folder
    student, teacher = (watched(open_any(folder, scheduler), seconds) for scheduler in ("LCMScheduler", None))
    cases = {steps: (student, 1.0) for steps in STEPS} | {TEACHER_STEPS: (teacher, SCALE)}

    def draw(batch: int, steps: int, parts: list[Row]) -> None:
        seconds.clear()
        start, (pipeline, scale) = cpu_clock(), cases[steps]
        pipeline([CAPTION] * batch, num_inference_steps=steps, guidance_scale=scale)
        parts.append({"whole": cpu_clock() - start, **seconds})

    for batch, rounds in BATCHES.items():
        parts: dict[int, list[Row]] = {steps: [] for steps in cases}
        in_turn({steps: partial(draw, batch, steps, parts[steps]) for steps in cases}, rounds)
        *found, slow = (pd.DataFrame(parts[steps][1:]) for steps in cases)  # as in_turn counts them
        for steps, fast in zip(STEPS, found, strict=True):
            label = f"{steps} step{'s' * (steps > 1)}, batch {batch}"
            calls = TEACHER_STEPS * 2 / steps  # guidance doubles the teacher's batch
            outside = fast.whole - fast.drop(columns="whole").sum(axis=1)
            facts = {"milliseconds": 1000 * outside.median()}
            rows.append(spread(f"teacher / student: {label}", slow.whole / fast.whole))
            rows.append(spread(f"their UNets alone, over {calls:g}: {label}", slow.unet / fast.unet / calls, ">= 0.9"))
            rows.append(spread(f"share outside the networks: {label}", outside / fast.whole, "<= 0.05", **facts))
    write("sampling", rows)


@torch.no_grad()
def evaluation() -> None:
    """Write evaluation.csv. Raises AssertionError if the three differ by more than 1e-3.

    clean-fid itself reads a folder of PNGs, in this process, with our feature network in place of Inception.
    torchmetrics, no dependency of ours, is written anew: statistics in double precision, eigenvalues of a product, and
    CLIP score batch by batch, which stands beside clean-fid too. The reference's statistics are ready.
    """
    drawn, reference, folder = shapes.make("seen", 0, COUNT), shapes.make("train", 0, REFERENCES), SCRATCH / "images"
    images, captions, rows_of = drawn.images, drawn.captions(), [slice(i, i + BATCH) for i in range(0, COUNT, BATCH)]
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    extract, network, clip = load_features("efficientnet_lite0"), _efficientnet_lite0("cpu"), load_clip(TINY_CLIP)
    resize, seen = make_resizer("PIL", False, "bicubic", (64, 64)), extract(reference.images).astype(np.float64)
    text, known = clip.text_features(captions), FeatureStatistics.of(seen)
    mean, covariance = seen.mean(0), np.cov(seen, rowvar=False)

    def ours() -> tuple[float, float]:
        return fid(known, FeatureStatistics.of(extract(images))), clip_score(clip.image_features(images), text)

    def resized(chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([resize(image) for image in chosen])).permute(0, 3, 1, 2)

    def prepared(chosen: np.ndarray) -> torch.Tensor:
        return torch.stack([clip.preprocess(Image.fromarray(image)) for image in chosen])

    def batched_score() -> float:
        model, parts = clip.model, []
        for rows in rows_of:
            shown = model.encode_image(prepared(images[rows]), normalize=True)
            parts.append(shown * model.encode_text(clip.tokenize(captions[rows]), normalize=True))
        return float(100 * torch.cat(parts).sum(1).mean())

    def clean_fid() -> tuple[float, float]:
        how = {"num_workers": 0, "batch_size": BATCH, "device": "cpu", "custom_fn_resize": resize, "verbose": False}
        found = get_folder_features(str(folder), network, **how)
        return frechet_distance(mean, covariance, found.mean(0), np.cov(found, rowvar=False)), batched_score()

    def torchmetrics() -> tuple[float, float]:
        features = torch.cat([network(resized(images[rows])) for rows in rows_of]).double()
        found, other, own = features.mean(0), torch.from_numpy(covariance), torch.cov(features.T)
        root = torch.linalg.eigvals(other @ own).sqrt().real.sum()
        gap = (torch.from_numpy(mean) - found).square().sum()
        return float(gap + other.trace() + own.trace() - 2 * root), batched_score()

    ready = [(resized(images[rows]), prepared(images[rows])) for rows in rows_of]

    def networks() -> None:
        for pixels, shown in ready:
            network(pixels), clip.model.encode_image(shown, normalize=True)

    rivals = {"clean-fid's folder mode": clean_fid, "torchmetrics' way": torchmetrics}
    for theirs in rivals.values():
        np.testing.assert_allclose(theirs(), ours(), rtol=1e-3)
    within = {"clean-fid's resize": partial(resized, images), "open_clip's preprocessing": partial(prepared, images)}
    seconds = in_turn(rivals | within | {"splam": ours, "net": networks}, ROUNDS)
    facts = {"images": COUNT, "images_per_second": COUNT / seconds["splam"].median()}
    rows = [spread(f"{who} / splam", seconds[who] / seconds["splam"], **facts) for who in rivals]
    rows.append(spread("splam / its networks alone", seconds["splam"] / seconds["net"], "<= 1.1", **facts))
    write("evaluation", rows + [spread(f"{who} / the networks", seconds[who] / seconds["net"]) for who in within])
