"""Latents on disk: the same after an interruption, and refused or replaced if they are others."""

import itertools

import pytest
import torch

from splam.config import LatentsSettings
from splam.data import latents as module
from splam.data.images import DataError
from splam.data.latents import LatentShards, encode_shards
from splam.data.streams import LatentStream, epoch_order

SETTINGS = LatentsSettings(images=20, batch_size=3, batches_per_file=2)  # 7 batches, 4 files


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
    encode_shards(batches, encode, folder, SETTINGS.model_copy(update=changes), {"teacher": facts})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    run(tmp_path)
    kept = LatentShards(tmp_path)
    assert len(kept) == 21 and kept.starts == [0, 6, 12, 18, 21]
    assert kept.captions(3) == ["image 18", "image 19", "image 20"]
    latents, embeddings = kept.rows([20, 0, 7, 7])
    assert latents.shape == (4, 4, 2, 2) and embeddings.shape == (4, 5, 6)
    assert latents.dtype == embeddings.dtype == torch.float32
    assert latents[:, 0, 0, 0].tolist() == embeddings[:, 0, 0].tolist() == [20, 0, 7, 7]


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path, stop):
    def killed(start):
        yield from itertools.islice(source(start), stop)
        raise KeyboardInterrupt

    whole, resumed, started = tmp_path / "whole", tmp_path / "resumed", []
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(resumed, killed)
    with pytest.raises(DataError, match=f"no .*00000{stop // 2}.safetensors: run the latents stage again, it goes on"):
        len(LatentShards(resumed))
    run(resumed, lambda start: started.append(start) or source(start))
    assert started == [stop // 2 * 2] and contents(resumed) == contents(whole)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def cut(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(module, "save_file", cut)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path)
    assert len(LatentShards(tmp_path)) == 21


@pytest.mark.parametrize("change", [{"facts": "another"}, {"dtype": "float32"}, {"batches_per_file": 3}, {"images": 9}])
def test_latents_of_another_plan_are_taken_away(tmp_path, capsys, change):
    run(tmp_path)
    run(tmp_path)
    assert "removed" not in capsys.readouterr().err
    run(tmp_path, **change)
    name = {"images": "batches"}.get(next(iter(change)), next(iter(change)))
    assert f"holds latents with other {name}: they are removed" in capsys.readouterr().err
    run(tmp_path.parent / f"{tmp_path.name}-fresh", **change)
    assert contents(tmp_path) == contents(tmp_path.parent / f"{tmp_path.name}-fresh")


def test_a_folder_without_latents_or_their_plan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the latents stage first"):
        len(LatentShards(tmp_path))
    (tmp_path / "000000.safetensors").touch()
    with pytest.raises(DataError, match="holds latents but no index.json"):
        run(tmp_path)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    def large(pixels, captions, number):
        latents, embeddings = encode(pixels, captions, number)
        return latents + 1e6, embeddings

    with pytest.raises(DataError, match="torch.float16 cannot hold"):
        run(tmp_path, encode=large)


def test_a_stream_of_latents_gives_each_once_then_again_and_can_be_entered_anywhere(tmp_path, monkeypatch):
    """Each rank reads its own rows, and an epoch is permuted once."""
    run(tmp_path)
    stream, orders = LatentStream(LatentShards(tmp_path), 7, seed=0), []
    line = list(itertools.islice(stream.batches(), 4))
    first = torch.cat([latents[:, 0, 0, 0] for latents, _ in line[:3]])
    assert sorted(first.tolist()) == list(range(21)) != first.tolist()
    assert all((latents[:, 0, 0, 0] == embeddings[:, 0, 0]).all() for latents, embeddings in line)
    read, permute, rows_of = [], torch.randperm, LatentShards.rows
    monkeypatch.setattr(torch, "randperm", lambda *args, **more: orders.append(args) or permute(*args, **more))
    monkeypatch.setattr(LatentShards, "rows", lambda store, rows: read.extend([len(rows)]) or rows_of(store, rows))
    epoch_order.cache_clear()
    ranks = [LatentStream(LatentShards(tmp_path), 1, 0, rank, ranks=7).batches(2) for rank in range(7)]
    for whole in line[2:]:
        parts = [next(rank) for rank in ranks]
        assert all(
            torch.equal(torch.cat(part), value) for part, value in zip(zip(*parts, strict=True), whole, strict=True)
        )
    assert set(read) == {1} and len(orders) == 2
