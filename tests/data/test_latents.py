"""Latents on disk: the same after an interruption, and refused or replaced if they are others."""

import itertools

import pytest
import torch

from splam.config import LatentsSettings
from splam.data.images import DataError
from splam.data.latents import LatentStore, encode_store
from splam.data.streams import Stream
from tests.runs import contents

SETTINGS = LatentsSettings(images=20, batch_size=3)  # 7 batches


def source(start: int):
    """Endless batches of 3 images, of which each value is its number."""
    for number in itertools.count(start):
        values = torch.arange(number * 3, (number + 1) * 3).float()
        yield values[:, None, None, None].expand(-1, 3, 8, 8), [f"image {int(v)}" for v in values]


def encode(pixels, captions, number):
    assert (pixels[:, 0, 0, 0] // 3 == number).all()
    numbers = torch.tensor([float(caption.split()[1]) for caption in captions])
    return pixels[:, :1, ::4, ::4].repeat(1, 4, 1, 1), numbers[:, None, None].expand(-1, 5, 6)


def run(folder, batches=source, facts="a teacher", encode=encode, **changes):
    encode_store(batches, encode, folder, SETTINGS.model_copy(update=changes), {"teacher": facts})


def picks(*rows: int):
    return [(row, "") for row in rows]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_come_back_in_the_order_asked_for(tmp_path, dtype):
    run(tmp_path, dtype=dtype)
    kept = LatentStore(tmp_path)
    latents, embeddings = kept.__getitems__(picks(20, 0, 7, 7))
    assert len(kept) == 21 and latents.shape == (4, 4, 2, 2) and embeddings.shape == (4, 5, 6)
    assert latents.dtype == embeddings.dtype == torch.float32
    assert latents[:, 0, 0, 0].tolist() == embeddings[:, 0, 0].tolist() == [20, 0, 7, 7]


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path, stop):
    """Killed between two files of one batch, too."""

    def killed(start):
        yield from itertools.islice(source(start), stop + 1)  # one of them tells the shapes
        raise KeyboardInterrupt

    whole, resumed, started = tmp_path / "whole", tmp_path / "resumed", []
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(resumed, killed)
    with pytest.raises(DataError, match="latents.bin is not whole: run the latents stage again, it goes on"):
        LatentStore(resumed).__getitems__(picks(0))
    with (resumed / "latents.bin").open("ab") as file:
        file.write(b"a part of a batch")
    run(resumed, lambda start: started.append(start) or source(start))
    assert started == [0, stop + 1] and contents(resumed) == contents(whole)


@pytest.mark.parametrize("change", [{"facts": "another"}, {"dtype": "float32"}, {"images": 9}])
def test_latents_of_another_plan_are_taken_away(tmp_path, capsys, change):
    run(tmp_path)
    run(tmp_path)
    assert "removed" not in capsys.readouterr().err
    run(tmp_path, **change)
    assert f"holds latents with other {next(iter(change))}: they are removed" in capsys.readouterr().err
    run(tmp_path.parent / f"{tmp_path.name}-fresh", **change)
    assert contents(tmp_path) == contents(tmp_path.parent / f"{tmp_path.name}-fresh")


def test_a_folder_without_latents_or_their_plan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the latents stage first"):
        len(LatentStore(tmp_path))
    (tmp_path / "latents.bin").touch()
    with pytest.raises(DataError, match="holds latents but no index.json"):
        run(tmp_path)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    def large(pixels, captions, number):
        latents, embeddings = encode(pixels, captions, number)
        return latents + 1e6, embeddings

    with pytest.raises(DataError, match="torch.float16 cannot hold"):
        run(tmp_path, encode=large)


def test_a_worker_reads_the_same_rows(tmp_path):
    run(tmp_path)
    here, ahead = (next(Stream(LatentStore(tmp_path), 7, seed=0, workers=workers).batches(3)) for workers in (0, 1))
    assert all(map(torch.equal, here, ahead))
