"""The test sets: one interface over the tiny world, COCO and LAION's held-out split, and what the data stage writes."""

import numpy as np
import pytest

from splam.config import CocoData, ShapesData, parse
from splam.data import shapes, testsets
from splam.data.images import DataError
from splam.data.streams import preview
from splam.data.testsets import dataset_sizes, held_out_set
from splam.profile import compose
from tests.data.conftest import laion_settings

SHAPES = ShapesData(kind="shapes", train_images=6, test_images=9, reference_images=5)


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    testsets.build(SHAPES, folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def settings(laion_folder, coco_folder):
    coco = CocoData(folder=str(coco_folder), image_size=32)
    return laion_settings(laion_folder / "*.tar", resolution=64, held_out_share=0.3, test_images=6, coco=coco)


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory):
    """What the data stage writes for LAION and COCO."""
    folder = tmp_path_factory.mktemp("built") / "data"
    testsets.build(settings, folder, seed=0)
    return folder


def stacked(batches) -> np.ndarray:
    return np.concatenate(list(batches))


def test_shapes_are_drawn_from_the_first_pictures_and_measured_by_the_others(shapes_folder):
    split = shapes.Split.load(shapes_folder / "unseen.npy")
    held = held_out_set(SHAPES, shapes_folder, "unseen", 7)
    assert (held.protocol, held.size, held.independent) == ("shapes-unseen", 32, True)
    assert (stacked(held.real(32)) == split.images[:7]).all() and stacked(held.real(64)).shape == (7, 64, 64, 3)
    assert (stacked(held.references()) == split.images[9:]).all() and len(held.compared) == 5
    assert held.prompts == split.captions()[:7] and all(" background" in prompt for prompt in held.prompts)
    with pytest.raises(DataError, match="shapes-unseen has 9 prompts and 5 references, 10 prompts are asked for"):
        held_out_set(SHAPES, shapes_folder, "unseen", 10)


def test_coco_sets_have_all_images_as_references(settings, folder):
    for dataset, protocol, count in (("unseen", "coco30k", 40), ("unseen-small", "coco5k", 20)):
        held = held_out_set(settings, folder, dataset, 8)
        assert held.protocol == f"{protocol}-seeded-draw-at-32" and len(held.compared) == count
        references, real = stacked(held.references()), stacked(held.real(32))
        assert references.shape == (count, 32, 32, 3) and real.shape == (8, 32, 32, 3) and not held.independent
        assert all((references == image).all((1, 2, 3)).any() for image in real)
        assert stacked(held.real(64)).shape == (8, 64, 64, 3)
    usual = settings.model_copy(update={"coco": settings.coco.model_copy(update={"image_size": 256})})
    assert held_out_set(usual, folder, "unseen", 8).protocol == "coco30k-seeded-draw"
    with pytest.raises(DataError, match="has 20 prompts and 20 references, 21 prompts are asked for"):
        held_out_set(settings, folder, "unseen-small", 21)


def test_laion_set_is_held_out_and_its_references_are_others(settings, folder):
    held = held_out_set(settings, folder, "seen", 5)
    references, real = stacked(held.references()), stacked(held.real(32))
    assert (held.protocol, held.independent, len(held.compared)) == ("laion-held-out", True, 6)
    assert references.shape == (6, 32, 32, 3) and real.shape == (5, 32, 32, 3) and len(held.prompts) == 5
    assert not any((references == image).all((1, 2, 3)).any() for image in real)
    with pytest.raises(DataError, match="laion-held-out has 6 prompts and 6 references, 7 prompts"):
        held_out_set(settings, folder, "seen", 7)


def test_datasets_of_pictures_with_coco_and_without():
    names = [" ".join(dataset_sizes(parse(compose(profile), profile))) for profile in ("sd15-w3", "sd15-night")]
    assert names == ["unseen unseen-small seen", "unseen seen"]


def test_data_stage_says_what_is_used_and_gives_the_same_bytes_again(settings, folder, tmp_path):
    read, used, *lacking = testsets.build(settings, tmp_path / "data", seed=0)
    assert read.startswith("72 samples, 1 broken images, 1 missing captions")
    assert sum(int(word) for word in used.split() if word.isdigit()) == 70
    assert len(lacking) == 2 and sorted(line.split(": ")[1] for line in lacking)[1] == "missing captions, 1 times"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["coco30k.json", "coco5k.json", "manifest.json", "samples.db"]
    assert all((folder / name).read_bytes() == (tmp_path / "data" / name).read_bytes() for name in names)
    images, captions = preview(settings, folder, 6, seed=0)
    assert images.shape == (6, 64, 64, 3) and images.dtype == np.uint8 and len(captions) == 6


def test_what_is_not_there_is_named(settings, tmp_path):
    for dataset, file in (("seen", "samples.db"), ("unseen", "coco30k.json")):
        with pytest.raises(FileNotFoundError, match=f"{file}: run the data stage"):
            held_out_set(settings, tmp_path, dataset, 1)
