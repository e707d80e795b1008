"""The tiny world: patterned shapes on coloured backgrounds, 32 x 32 pixels, with captions.

A picture shows one of 12 shapes with one of 4 fills, in one of 10 colours on one of the 9 others. Its centre, radius,
tilt and the phase of its pattern are free: what a caption leaves open, noise has to decide. Every picture is a pure
function of (split, seed, index), so there are as many as one likes.

A tenth of the (shape, fill, colour) triples is *unseen*: kept from the training of every model.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

SIZE = 32  # pixels
COLOURS = {
    "red": (222, 67, 56),
    "orange": (240, 146, 46),
    "yellow": (247, 213, 72),
    "green": (86, 171, 84),
    "blue": (63, 121, 208),
    "purple": (142, 84, 184),
    "pink": (243, 160, 193),
    "brown": (140, 98, 68),
    "gray": (150, 154, 160),
    "white": (250, 250, 250),
}
FILLS = ("plain", "striped", "dotted", "checkered")
SPLITS = ("train", "seen", "unseen")  # seen: new pictures of the triples that are trained on
UNSEEN_SHARE = 0.1
LEVELS = ("full", "shape", "background")  # what a caption tells
LEVEL_SHARES = (0.6, 0.2, 0.2)  # of the captions that models are trained on

RADII = (9.0, 15.0)  # pixels
MAX_TILT = 35.0  # degrees, each way
PERIOD = 7.0  # pixels from stripe to stripe and from dot to dot; a checkered cell is half of it
TONE = 0.55  # how far a pattern's second colour is from the first towards white, or black for light colours


def _polygon(points: Iterable[tuple[float, float]]) -> str:
    return f'<polygon points="{" ".join(f"{x:.4f},{y:.4f}" for x, y in points)}"/>'


def _corners(count: int, inner: float = 1.0) -> str:
    """A polygon of `count` corners, the first up, every other one on a circle of radius `inner`."""
    turns = [(2 * math.pi * i / count, inner if i % 2 else 1.0) for i in range(count)]
    return _polygon((r * math.sin(a), -r * math.cos(a)) for a, r in turns)


SHAPES = {  # as SVG, each within the unit circle
    "circle": '<circle r="0.95"/>',
    "square": '<rect x="-0.78" y="-0.78" width="1.56" height="1.56"/>',
    "triangle": _corners(3),
    "star": _corners(10, inner=0.45),
    "hexagon": _corners(6),
    "heart": '<path d="M0 .9C-.6 .45 -1 .1 -1 -.35C-1 -.95 -.2 -1 0 -.45C.2 -1 1 -.95 1 -.35C1 .1 .6 .45 0 .9Z"/>',
    "cross": '<path d="M-.33 -.95H.33V-.33H.95V.33H.33V.95H-.33V.33H-.95V-.33H-.33Z"/>',
    "ring": '<circle r="0.72" fill="none" stroke-width="0.5"/>',
    "moon": '<path d="M.35 -.95A1 1 0 1 0 .35 .95A1.08 1.08 0 0 1 .35 -.95Z"/>',
    "drop": '<path d="M0 -1C.2 -.5 .7 -.15 .7 .3A.7 .68 0 0 1 -.7 .3C-.7 -.15 -.2 -.5 0 -1Z"/>',
    "arrow": '<path d="M0 -1L.85 -.05H.36V.95H-.36V-.05H-.85Z"/>',
    "bolt": '<path d="M.35 -1L-.7 .2H-.1L-.35 1L.7 -.25H.1Z"/>',
}


@dataclass(frozen=True)
class Scene:
    """All that a picture shows. Centre, radius and phase are in pixels, tilt in degrees."""

    shape: str
    fill: str
    colour: str
    background: str
    centre: tuple[float, float]
    radius: float
    tilt: float
    phase: tuple[float, float]

    @property
    def triple(self) -> tuple[str, str, str]:
        """(shape, fill, colour), by which pictures are seen or unseen."""
        return self.shape, self.fill, self.colour

    def caption(self, level: str = "full") -> str:
        """'a striped red star on a blue background' (full), 'a red star' (shape) or 'a star on a blue background'."""
        background = f"{_article(self.background)} background"
        if level == "full":
            return f"a {self.fill} {self.colour} {self.shape} on {background}"
        if level == "shape":
            return f"{_article(self.colour)} {self.shape}"
        if level == "background":
            return f"{_article(self.shape)} on {background}"
        raise ValueError(f"level is {level!r}: choose {', '.join(LEVELS)}")


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


@cache
def triples(split: str) -> tuple[tuple[str, str, str], ...]:
    """The (shape, fill, colour) triples of a split: the tenth of them with the lowest hashes is unseen."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: choose {', '.join(SPLITS)}")
    everything = sorted(
        itertools.product(SHAPES, FILLS, COLOURS), key=lambda t: hashlib.sha256(repr(t).encode()).digest()
    )
    unseen = round(UNSEEN_SHARE * len(everything))
    return tuple(everything[:unseen] if split == "unseen" else everything[unseen:])


def full_captions() -> list[str]:
    """Every full caption there is, 4,320 of them."""
    scenes = (
        Scene(*parts, (0, 0), 1, 0, (0, 0))
        for parts in itertools.product(SHAPES, FILLS, COLOURS, COLOURS)
        if parts[2] != parts[3]
    )
    return [scene.caption() for scene in scenes]


def scene(split: str, seed: int, index: int) -> Scene:
    """The scene of one picture, a pure function of its arguments."""
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    known = triples(split)
    shape, fill, colour = known[rng.integers(len(known))]
    background = [c for c in COLOURS if c != colour][rng.integers(len(COLOURS) - 1)]
    radius = float(rng.uniform(*RADII))
    centre = rng.uniform(radius, SIZE - radius, 2).tolist()
    tilt = float(rng.uniform(-MAX_TILT, MAX_TILT))
    return Scene(
        shape, fill, colour, background, tuple(centre), radius, tilt, tuple(rng.uniform(0, PERIOD, 2).tolist())
    )


def caption_level(split: str, seed: int, index: int) -> str:
    """The level of the caption that a picture of a training is shown with, by LEVEL_SHARES; test prompts are full."""
    if split != "train":
        return "full"
    return LEVELS[np.random.default_rng((len(SPLITS), seed, index)).choice(len(LEVELS), p=LEVEL_SHARES)]


def tone(colour: str) -> str:
    """The second colour of a pattern, as CSS: a lighter one, or of light colours a darker one."""
    rgb = np.array(COLOURS[colour], float)
    towards = 0.0 if rgb @ (0.299, 0.587, 0.114) > 140 else 255.0
    return "rgb({:.0f},{:.0f},{:.0f})".format(*(rgb + TONE * (towards - rgb)))


def _pattern(scene: Scene) -> str:
    """The fill as SVG: a pattern of the colour and its tone, in pixels along the shape's own axes."""
    base, other = "rgb({},{},{})".format(*COLOURS[scene.colour]), tone(scene.colour)
    half = PERIOD / 2
    marks = {
        "plain": "",
        "striped": f'<rect width="{PERIOD}" height="{half}" fill="{other}"/>',
        "dotted": f'<circle cx="{half}" cy="{half}" r="{0.3 * PERIOD}" fill="{other}"/>',
        "checkered": f'<path d="M0 0H{half}V{PERIOD}H{PERIOD}V{half}H0Z" fill="{other}"/>',
    }
    return (
        f'<pattern id="fill" patternUnits="userSpaceOnUse" width="{PERIOD}" height="{PERIOD}" patternTransform='
        f'"scale({1 / scene.radius}) translate({scene.phase[0]} {scene.phase[1]})">'
        f'<rect width="{PERIOD}" height="{PERIOD}" fill="{base}"/>{marks[scene.fill]}</pattern>'
    )


def svg(scene: Scene) -> str:
    """The picture as an SVG document."""
    place = f"translate({scene.centre[0]} {scene.centre[1]}) rotate({scene.tilt}) scale({scene.radius})"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}"><defs>{_pattern(scene)}</defs>'
        f'<rect width="{SIZE}" height="{SIZE}" fill="rgb{COLOURS[scene.background]}"/>'
        f'<g transform="{place}" fill="url(#fill)" stroke="url(#fill)" stroke-width="0">{SHAPES[scene.shape]}</g></svg>'
    )


def render(scene: Scene) -> np.ndarray:
    """The picture: uint8 (32, 32, 3)."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg(scene), width=SIZE, height=SIZE, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
