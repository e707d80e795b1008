"""Latents on disk: the same after an interruption, refused where they are others, and their size as stated."""

import itertools

import pytest
import torch

from splam.data import latents as module
from splam.data.laion import DataError
from splam.data.latents import LatentShards, bytes_per_image, encode_shards

BATCH, FACTS = 3, {"teacher": "abc"}


def source(start: int):
    """Endless batches of 3 images, of which each value is its number."""
    for number in itertools.count(start):
        values = torch.arange(number * BATCH, (number + 1) * BATCH).float()
        yield values[:, None, None, None].expand(-1, 3, 8, 8), [f"image {int(v)}" for v in values]


def encode(pixels, number):
    assert (pixels[:, 0, 0, 0] // BATCH == number).all()
    return pixels[:, :1, ::4, ::4].repeat(1, 4, 1, 1)


def embed(captions):
    return torch.tensor([float(c.split()[1]) for c in captions])[:, None, None].expand(-1, 5, 6)


def run(folder, count=7, **changes):
    settings = {"facts": FACTS, "per_shard": 2, **changes}
    encode_shards(settings.pop("source", source), encode, embed, folder, count, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_come_back_with_their_captions(tmp_path):
    run(tmp_path)
    kept = LatentShards(tmp_path)
    assert len(kept) == 21 and kept.sizes == [6, 6, 6, 3] and kept.captions(3) == ["image 18", "image 19", "image 20"]
    latents, embeddings = kept.rows([20, 0, 7, 7])
    assert latents.shape == (4, 4, 2, 2) and embeddings.shape == (4, 5, 6)
    assert latents.dtype == embeddings.dtype == torch.float32
    assert latents[:, 0, 0, 0].tolist() == embeddings[:, 0, 0].tolist() == [20, 0, 7, 7]
    with pytest.raises(IndexError, match="row 21 of 21"):
        kept.rows([1, 21])


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path, stop):
    def killed(start):
        yield from itertools.islice(source(start), stop)
        raise KeyboardInterrupt

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(resumed, source=killed)
    with pytest.raises(DataError, match=f"has {stop // 2} of 4 files: run the latents stage again, it goes on"):
        len(LatentShards(resumed))
    started = []
    run(resumed, source=lambda start: started.append(start) or source(start))
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


@pytest.mark.parametrize("change", [{"facts": {"teacher": "x"}}, {"dtype": "float32"}, {"per_shard": 3}, {"count": 8}])
def test_other_latents_are_not_mixed_in(tmp_path, change):
    run(tmp_path)
    name = {"count": "batches"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(DataError, match=f"holds latents with other {name}: delete it"):
        run(tmp_path, **change)


def test_other_latents_are_taken_away_where_that_is_asked_for(tmp_path, capsys):
    run(tmp_path)
    run(tmp_path, replace=True)
    assert "removed" not in capsys.readouterr().err
    run(tmp_path, count=2, facts={"teacher": "x"}, replace=True)
    assert "holds latents with other batches, facts: they are removed" in capsys.readouterr().err
    assert len(LatentShards(tmp_path)) == 6 and LatentShards(tmp_path).plan["facts"] == {"teacher": "x"}


def test_folders_in_disorder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the latents stage first"):
        len(LatentShards(tmp_path))
    run(tmp_path)
    (tmp_path / "000001.safetensors").unlink()
    with pytest.raises(DataError, match="lacks 000001.safetensors: delete the files from 000002.safetensors on"):
        run(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match="lacks 000001"):
        run(tmp_path)


def test_the_disk_trade_is_as_stated(tmp_path):
    assert bytes_per_image((4, 64, 64), 77, 768) == 151_040
    run(tmp_path, count=40, per_shard=40)
    written = (tmp_path / "000000.safetensors").stat().st_size
    assert 0 < written - 40 * BATCH * bytes_per_image((4, 2, 2), 5, 6) < 5_000  # the header, with the captions
    assert bytes_per_image((4, 64, 64), 77, 768, torch.float32) == 302_080


def test_too_small_a_disk_is_told_before_it_is_full(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"92 bytes an image\) do not fit"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    with pytest.raises(DataError, match="torch.float16 cannot hold"):
        encode_shards(source, lambda p, n: encode(p, n) + 1e6, embed, tmp_path, 2, FACTS)
