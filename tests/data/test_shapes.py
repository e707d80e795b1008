"""The tiny world's pictures: pure functions of their index, that show what their captions say, and leak nothing."""

import numpy as np
import pytest

from splam.data import shapes

FULL = "a striped red star on a blue background"


def test_a_picture_is_a_pure_function_of_split_seed_and_index():
    again = shapes.make("train", 3, 5)
    assert (shapes.render(shapes.scene("train", 3, 4)) == again.images[4]).all()
    others = [shapes.scene("train", 3, 5), shapes.scene("train", 4, 4), shapes.scene("seen", 3, 4)]
    assert all((shapes.render(other) != again.images[4]).any() for other in others)


@pytest.mark.parametrize("index", range(20))
def test_a_picture_shows_what_its_caption_says(index):
    scene = shapes.scene("unseen", 0, index)
    image = shapes.render(scene).astype(float)
    _, fill, colour, shape, *_, background, _ = shapes.caption(scene.parts).split()
    assert (shape, fill, colour, background) == scene.parts
    distance = {name: np.abs(image - rgb).sum(2) for name, (rgb, _) in shapes.COLOURS.items()}
    corner = min(((0, 0), (0, -1), (-1, 0), (-1, -1)), key=lambda at: distance[background][at])
    assert min(distance, key=lambda name: distance[name][corner]) == background
    across, down = np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5)
    off = np.hypot(across - scene.centre[0], down - scene.centre[1])
    assert (distance[background][off > 1.25 * scene.radius] < 3).all(), "something is drawn beside the shape"
    # Small patterns are blurred: each pixel of the shape is a mixture of its colour and the colour's second tone.
    first, tone = np.array(shapes.COLOURS[colour])
    towards = tone - first
    drawn = image[(distance[background] > 60) & (off < scene.radius)]
    share = ((drawn - first) @ towards / (towards @ towards)).clip(0, 1)
    assert np.quantile(np.abs(drawn - first - share[:, None] * towards).sum(1), 0.3) < 12, "another colour was drawn"


def test_fills_differ_in_how_much_of_the_second_tone_they_show():
    def share(fill: str) -> float:
        scene = shapes.Scene(("square", fill, "red", "white"), [16, 16], 14, 0, [0, 0])
        toned = np.abs(shapes.render(scene)[8:24, 8:24].astype(float) - shapes.COLOURS["red"][1]).sum(2) < 30
        return toned.mean()

    assert share("plain") == 0 and 0.1 < share("dotted") < 0.35 < share("striped") < 0.6 and share("checkered") > 0.35


def test_captions_name_parts_by_level():
    parts = ("star", "striped", "red", "blue")
    assert [shapes.caption(parts, level) for level in shapes.LEVELS] == [
        FULL,
        "a red star",
        "a star on a blue background",
    ]
    assert shapes.caption(("arrow", "plain", "orange", "orange"), "shape") == "an orange arrow"
    everything = shapes.full_captions()
    assert len(set(everything)) == len(everything) == 12 * 4 * 10 * 9 and FULL in everything


def test_no_caption_of_the_unseen_set_and_no_test_picture_is_trained_on():
    train, unseen = shapes.make("train", 0, 400), shapes.make("unseen", 0, 200)
    trained = {c for level in range(3) for c in train.captions(level)}
    assert trained.isdisjoint(unseen.captions())
    assert set(shapes.triples("unseen")).isdisjoint(shapes.triples("train"))
    assert shapes.triples("train") == shapes.triples("seen") and len(shapes.triples("unseen")) == 48
    known = {image.tobytes() for image in train.images}
    assert not any(
        image.tobytes() in known for split in (unseen, shapes.make("seen", 0, 200)) for image in split.images
    )


def test_levels_are_drawn_by_their_shares():
    split = np.zeros(1, shapes.RECORD).view(shapes.Split)
    captions = split.__getitems__([(0, f"0/{number}") for number in range(5000)])[1]
    shares = [captions.count(split.captions(level)[0]) / 5000 for level in range(3)]
    assert np.abs(np.array(shares) - shapes.LEVEL_SHARES).max() < 0.03
