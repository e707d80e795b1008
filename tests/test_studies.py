"""The studies of the metrics: what each damage does to pixels, and that every metric goes the right way under it."""

import warnings

import numpy as np
import pandas as pd
import pytest

from splam import figures, studies
from splam.data import emoji
from splam.evaluate import TINY_CLIP, Measure, References
from splam.metrics import load_clip, load_features, neighbour_distances

COLOURS = list(emoji.COLOURS)
# As few images as there are here do not show a CLIP score the mildest blur and noise of STRENGTHS.
STRENGTHS = {
    "blur": (0.0, 1.5, 3.0),
    "noise": (0.0, 16.0, 40.0),
    "swapped captions": (0.0, 0.5, 1.0),
    "dropped modes": (0.0, 0.3, 0.6),
}


def drawings(draws: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Random images of 5 glyphs on every colour, some draws of each: images, colours, captions."""
    table, images, colours, captions = emoji.glyphs(), [], [], []
    for glyph in (table[i] for i in range(0, len(table), len(table) // 5 + 1)):
        drawn = emoji.render(glyph.code)
        for draw in draws:
            for number, colour in enumerate(COLOURS):
                images.append(emoji.draw(glyph, drawn, colour, (draw,)))
                colours.append(number)
                captions.append(glyph.caption(colour, "name"))
    return np.stack(images), np.array(colours), captions


@pytest.fixture(scope="module")
def measured():
    return drawings((0,))


@pytest.fixture(scope="module")
def damage_rows(measured) -> pd.DataFrame:
    """The damage study of 50 images, by the real networks."""
    extract, clips = load_features("efficientnet_lite0"), {"clip_score": load_clip(TINY_CLIP)}
    images, colours, captions = measured
    spare, spare_colours, _ = drawings((1, 2, 3))
    real = extract(drawings((4, 5, 6))[0])
    hashes, none = {}, np.empty(0, np.float32)
    text = {"clip_score": clips["clip_score"].text_features(captions)}
    references = References("a-set", 32, captions, none, real, neighbour_distances(real), text, hashes)
    damage = studies.known_damage(images, colours, spare, spare_colours)
    warnings.simplefilter("ignore")  # pytest puts it back: there are fewer images than features
    return studies.damage_study(Measure.against(references, extract, clips), images, damage, STRENGTHS)


@pytest.mark.parametrize("damage", studies.EXPECTED)
def test_every_metric_goes_the_right_way_at_every_strength(damage_rows, damage):
    moves = studies.directions(damage_rows[damage_rows["damage"] == damage])
    asked = moves[moves["expected"] != "open"].set_index("metric")
    assert set(asked.index) == set(studies.EXPECTED[damage])
    if damage == "dropped modes":  # its own test below
        asked = asked.drop("recall")
    assert dict(asked["moved"]) == dict(asked["expected"])
    assert asked["as_expected"].all()


def test_recall_falls_when_modes_are_dropped(damage_rows):
    """Not at every strength: the neighbours of as few images as are left here lie far apart, and their balls grow."""
    whole, *dropped = damage_rows.loc[damage_rows["damage"] == "dropped modes", "recall"]
    assert max(dropped) < whole


def test_undamaged_images_are_measured_alike(damage_rows):
    start = damage_rows[damage_rows["strength"] == 0][list(studies.METRICS)]
    assert len(start) == 4 and np.ptp(start.to_numpy(), axis=0).max() < 1e-9
    assert start["paired_distance"].eq(0).all()


def test_the_damage_is_shown_with_its_verdicts(damage_rows):
    figure = figures.damage_study(damage_rows, studies.directions(damage_rows), studies.UNITS)
    assert len(figure.axes) == len(studies.METRICS) * len(studies.UNITS)
    assert [axis.get_ylabel() for axis in figure.axes[::4]] == list(figures.METRIC_NAMES.values())


def test_no_strength_is_no_damage(measured):
    images, colours, _ = measured
    for damaged in studies.known_damage(images, colours, images, colours).values():
        assert np.array_equal(damaged(0.0), images)


def test_blur_and_noise_are_of_the_strength_they_say():
    point = np.zeros((1, 31, 31, 3), np.uint8)
    point[:, 15, 15] = 255
    blurred = studies.blur(point, 1.0)[0, :, :, 0].astype(float)
    assert blurred[15, 15] == pytest.approx(255 / (2 * np.pi), abs=3) and abs(blurred.sum() - 255) < 20
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    assert studies.add_noise(grey, 10.0).std() == pytest.approx(10, rel=0.02)
    assert np.corrcoef(*(studies.add_noise(grey, d).ravel() for d in (10.0, 20.0)))[0, 1] > 0.99


def test_swapping_moves_images_and_loses_none():
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] + np.zeros((40, 2, 2, 3), np.uint8)
    half, all_ = (studies.swap(images, share)[:, 0, 0, 0] for share in (0.5, 1.0))
    assert sorted(half) == sorted(all_) == list(range(40))
    assert (half != np.arange(40)).sum() == 20 and (all_ != np.arange(40)).all()


def test_dropped_modes_are_replaced_by_images_of_the_others():
    modes, spare_modes = np.array([0, 1, 2, 3, 0]), np.array([0, 3, 2, 1, 3])
    images = np.zeros((5, 2, 2, 3), np.uint8)
    spare = 100 + np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros_like(images)
    dropped = studies.drop_modes(images, modes, spare, spare_modes, 0.5)[:, 0, 0, 0]
    assert list(dropped) == [101, 102, 0, 0, 104]
    with pytest.raises(ValueError, match="4 images are dropped, 2 spare ones"):
        studies.drop_modes(images, modes, spare, spare_modes, 0.75)


@pytest.mark.parametrize(
    ("values", "moved"),
    [([1, 2, 3], "rises"), ([3, 2, 1], "falls"), ([1, 1, 1 + 1e-4], "stays"), ([1, 3, 2], "turns"), ([0, 0], "stays")],
)
def test_movement(values, moved):
    assert studies.movement(np.array(values, float)) == moved


@pytest.fixture(scope="module")
def counted() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return studies.count_study(rng.normal(size=(4000, 8)), rng.normal(size=(4000, 8)), [50, 200, 1000], 10)


def test_fid_is_biased_by_the_number_of_images_and_kid_is_not(counted):
    spread = studies.spread(counted.assign(set="a")).set_index("images")
    assert list(spread["draws"]) == [10, 10, 4]
    assert list(spread["fid"]) == sorted(spread["fid"], reverse=True)
    assert spread.loc[50, "fid"] > 3 * spread.loc[200, "fid"]
    assert (spread["kid"].abs() < 3 * spread["kid_sd"]).all()


def test_a_difference_is_of_the_same_draws(counted):
    both = pd.concat([counted.assign(set="a"), counted.assign(set="b", fid=counted["fid"] + counted["draw"])])
    found = studies.differences(both).set_index("images")
    assert list(found["draws"]) == [10, 10, 4]
    assert found.loc[50, "fid"] == pytest.approx(4.5) and found.loc[1000, "fid"] == pytest.approx(1.5)
    assert found.loc[1000, "fid_sd"] == pytest.approx(np.std([0, 1, 2, 3], ddof=1))


def test_draws_are_disjoint_and_enough():
    features = np.random.default_rng(0).normal(size=(100, 4))
    assert len(studies.count_study(features, features, [30], 8)) == 3
    with pytest.raises(ValueError, match="100 images are too few for two disjoint draws of 60"):
        studies.count_study(features, features, [60], 8)


def test_the_summary_says_what_went_another_way(counted):
    values = {metric: [1.0, 2.0] for metric in studies.METRICS}
    rows = pd.DataFrame({"damage": name, "strength": [0, 1], **values} for name in studies.EXPECTED)
    rows = rows.explode(["strength", *studies.METRICS])
    both = pd.concat([counted.assign(set="real"), counted.assign(set="other")])
    text = studies.summary(both, studies.directions(rows), 4000, "FID (x)")
    assert "FID of other less that of real" in text
    assert "FID (x) and KID of real images against 4,000 other real ones" in text
    assert "rises (falls)" in text and "rises (stays)" in text
    right = sum(sign == 1 for signs in studies.EXPECTED.values() for sign in signs.values())
    asked = sum(map(len, studies.EXPECTED.values()))
    assert f"{right} of {asked} directions are as expected" in text
    figure = figures.count_study(both, "FID (x)")
    assert [axis.get_ylabel() for axis in figure.axes] == ["FID (x)", "KID (x)"]
