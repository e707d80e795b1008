"""A folder of one's own pictures: captions of every layout, what is missing is counted, what is ambiguous refused."""

import json
import shutil

import numpy as np
import pytest

from splam.config import PictureData
from splam.data import testsets
from splam.data.folder import read_folder
from splam.data.images import DataError
from splam.data.samples import is_held_out
from splam.data.streams import Stream, preview, training_images
from tests.data.conftest import encoded, take


@pytest.fixture
def folder(tmp_path):
    """Six pictures in two folders, one of them with a name in capitals, and what is no picture."""
    for number, name in enumerate(["0.png", "1.PNG", "b c/2.png", "b c/3.png", "b c/4.x.png", "b c/5.png"]):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    for name in (".DS_Store", "b c/._2.png", "b c/notes.json"):
        (tmp_path / "mine" / name).write_text("{}")
    return tmp_path / "mine"


def read(folder) -> tuple[dict[str, str], tuple[int, int, int]]:
    """The captions of the pictures that have both, by path; the samples, those without picture, without caption."""
    samples = list(read_folder(str(folder)))
    kept = {s.file.removeprefix(f"{folder}/"): s.caption for s in samples if s.size and s.caption}
    return kept, (len(samples), sum(not s.size for s in samples), sum(not s.caption for s in samples if s.size))


def describe(folder) -> None:
    """A .txt beside each picture."""
    for path in [*folder.rglob("[0-9]*.png"), *folder.rglob("*.PNG")]:
        path.with_suffix(".txt").write_text(f"\ufeffpicture\n{path.name[0]} ", encoding="utf-8")


EXPECTED = {"0.png": 0, "1.PNG": 1, "b c/2.png": 2, "b c/3.png": 3, "b c/4.x.png": 4, "b c/5.png": 5}
EXPECTED = {name: f"picture {number}" for name, number in EXPECTED.items()}


def test_captions_beside_the_pictures(folder):
    describe(folder)
    assert read(folder) == (EXPECTED, (6, 0, 0))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("nested", [False, True])
def test_captions_of_the_imagefolder_layout(folder, kind, nested):
    """One table for all, or one in each folder, whose names are relative to it."""
    for place in ("", "b c/") if nested else ("",):
        here = [name for name in EXPECTED if not nested or name.startswith("b c/") == bool(place)]
        rows = [(name.removeprefix(place), EXPECTED[name]) for name in here]
        lines = [f'"./{name}","{text}"' for name, text in rows]
        if kind == "jsonl":
            lines = [json.dumps({"file_name": name, "text": text, "seed": 1}) for name, text in rows]
        head = ["file_name,caption"] if kind == "csv" else []
        (folder / place / f"metadata.{kind}").write_text("\n".join([*head, *lines]) + "\n")
    assert read(folder) == (EXPECTED, (6, 0, 0))


def test_what_is_missing_is_counted(folder):
    """A picture of a form that PIL does not read, one without caption, an empty caption, an empty file."""
    describe(folder)
    (folder / "photo.heic").write_bytes(b"1")
    (folder / "photo.txt").write_text("a photo")
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text(" \n")
    (folder / "b c/2.png").write_bytes(b"")
    kept, counts = read(folder)
    assert sorted(kept) == ["b c/3.png", "b c/4.x.png", "b c/5.png"]
    assert counts == (7, 2, 2)
    for path in folder.rglob("*.txt"):
        path.unlink()
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a\n1.PNG,\ngone.png,b\n")
    assert read(folder)[1] == (7, 2, 4)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"metadata.csv": "file_name,text\n0.png,a\n", "0.txt": "b"}, "0.png has a .txt, and metadata.csv is there"),
        ({"metadata.csv": "file_name,text\n0.png,a\n0.png,b\n"}, "metadata.csv lists 0.png twice"),
        ({"metadata.csv": "name,text\n0.png,a\n"}, "name, text: there must be exactly one of file_name"),
        ({"metadata.csv": "file_name,label\n0.png,a\n"}, "file_name, label: there must be exactly one of caption"),
        ({"metadata.parquet": "PAR1"}, "metadata.parquet holds no rows .*it must be a .csv with a header or a .jsonl"),
    ],
)
def test_what_is_ambiguous_is_refused(folder, files, message):
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_folder(str(folder)))


def test_a_link_to_a_folder_is_refused(folder):
    """Path.rglob passes over it."""
    (folder / "more").symlink_to(folder / "b c")
    with pytest.raises(DataError, match="mine/more is a link, which is not followed"):
        list(read_folder(str(folder)))


def test_a_folder_without_pictures_is_named(tmp_path):
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=f"data.folder = {name} holds no pictures: correct it"):
            list(read_folder(str(name)))


@pytest.fixture
def settings(tmp_path) -> PictureData:
    """Sixty pictures, one of them broken."""
    (tmp_path / "mine").mkdir()
    for number in range(60):
        (tmp_path / f"mine/{number}.png").write_bytes(encoded(4 * number) if number != 7 else b"none")
        (tmp_path / f"mine/{number}.txt").write_text(f"picture {number}")
    facts = {"resolution": 16, "workers": 0, "smallest_side": 8, "max_broken_share": 0.1}
    return PictureData(kind="folder", folder=str(tmp_path / "mine"), held_out_share=0.4, test_images=8, **facts)


def test_a_folder_is_trained_on_and_tested_with(settings, tmp_path):
    """Unseen are pictures that are held out, by their names' hashes; seen are pictures that are trained on."""
    out = tmp_path / "data"
    assert "to train on" in testsets.build(settings, out, seed=0)[1]
    stream = Stream(training_images(settings, out), 4, seed=0)
    trained = {caption for _, batch in take(stream, 60) for caption in batch}
    names = {f"picture {number}" for number in range(60) if number != 7 and not is_held_out(f"{number}.png", 0.4)}
    assert trained == names
    for dataset, protocol in (("unseen", "folder-held-out"), ("seen", "folder-training")):
        held = testsets.held_out_set(settings, out, dataset, 6)
        assert (held.protocol, len(held.compared), held.size, held.independent) == (protocol, 8, 256, True)
        assert len(set(held.prompts) & trained) == (6 if dataset == "seen" else 0)
        real, references = (np.concatenate(list(images)) for images in (held.real(16), held.references()))
        assert real[:, 0, 0, 0].tolist() == [4 * int(prompt.split()[1]) for prompt in held.prompts]
        assert references.shape == (8, 256, 256, 3) and not set(references[:, 0, 0, 0]) & set(real[:, 0, 0, 0])
    assert preview(settings, out, 5, seed=0)[0].shape == (5, 16, 16, 3)


def test_a_picture_has_the_key_of_its_name_wherever_its_folder_lies(folder, tmp_path):
    """By which it is held out, or is not."""
    keys = [sample.key for sample in read_folder(str(folder))]
    shutil.move(folder, tmp_path / "theirs/deep")
    assert sorted(keys) == sorted(sample.key for sample in read_folder(str(tmp_path / "theirs"))) and len(keys) == 6
