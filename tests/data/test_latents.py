"""Latents on disk: whole or not there, and replaced if they are others."""

import pytest
import torch

from splam.data.images import DataError
from splam.data.latents import LatentStore, open_folder, save_batch
from splam.data.streams import Stream
from tests.runs import contents

PLAN = {"images": 21, "batch_size": 3, "dtype": "float16", "facts": {"teacher": "one"}}


def write(folder, plan=PLAN, stop=7) -> list[int]:
    """Go on to write latents that are their numbers, up to a batch; the numbers of the batches that were lacking."""
    numbers = range(open_folder(folder, plan), stop)
    for number in numbers:
        values = torch.arange(3.0 * number, 3.0 * number + 3)
        latents, embeddings = values.view(3, 1, 1, 1).expand(3, 4, 2, 2), values.view(3, 1, 1).expand(3, 5, 6)
        save_batch(folder, number, latents, embeddings, getattr(torch, plan["dtype"]))
    return list(numbers)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_come_back_in_the_order_asked_for(tmp_path, dtype):
    write(tmp_path, PLAN | {"dtype": dtype})
    kept = LatentStore(tmp_path)
    latents, embeddings = kept.__getitems__([(row, "") for row in (20, 0, 7, 7)])
    assert len(kept) == 21 and latents.shape == (4, 4, 2, 2) and embeddings.shape == (4, 5, 6)
    assert latents.dtype == embeddings.dtype == torch.float32
    assert latents[:, 0, 0, 0].tolist() == embeddings[:, 0, 0].tolist() == [20, 0, 7, 7]


def test_a_stopped_stage_goes_on_after_its_last_whole_batch(tmp_path):
    write(tmp_path, stop=2)
    (tmp_path / "part").write_bytes(b"of a batch that was being written")
    with pytest.raises(DataError, match="is not whole: run the latents stage again, it goes on"):
        LatentStore(tmp_path)
    assert write(tmp_path) == [2, 3, 4, 5, 6] and write(tmp_path) == []
    assert len(LatentStore(tmp_path)) == 21


def test_latents_of_another_plan_are_taken_away(tmp_path, capsys):
    write(tmp_path / "a")
    other = PLAN | {"dtype": "float32", "facts": {"teacher": "two"}}
    assert write(tmp_path / "a", other) == list(range(7))
    assert "holds latents with other dtype, facts: they are removed" in capsys.readouterr().err
    write(tmp_path / "b", other)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and not capsys.readouterr().err


def test_a_folder_without_latents_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*index.json: run the latents stage \(dvc repro latents\) first"):
        LatentStore(tmp_path)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    with pytest.raises(DataError, match="torch.float16 cannot hold"):
        save_batch(tmp_path, 0, torch.full((3, 4, 2, 2), 1e6), torch.zeros(3, 5, 6), torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_worker_reads_the_same_rows(tmp_path):
    write(tmp_path)
    here, ahead = (next(Stream(LatentStore(tmp_path), 7, seed=0, workers=workers).batches(3)) for workers in (0, 1))
    assert all(map(torch.equal, here, ahead))
