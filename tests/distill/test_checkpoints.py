"""Checkpoints: whole or not there, few, and refused when broken."""

from pathlib import Path

import pytest
import torch

from splam.distill.checkpoints import CheckpointError, last, locked, read, save

OURS = {"rate": 1.0}


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of iterations 1 to 4, of which two are kept, and what a kill while writing leaves."""
    for iteration in range(1, 5):
        save(tmp_path, iteration, {"weights": torch.full((5000,), float(iteration)), "parameters": OURS})
    (tmp_path / "checkpoint-00000005.part").write_bytes(b"half")
    return tmp_path


def test_the_last_few_are_kept_and_the_newest_is_read(folder):
    assert [p.name for p in sorted(folder.glob("*.pt"))] == ["checkpoint-00000003.pt", "checkpoint-00000004.pt"]
    assert read(last(folder, OURS))["weights"][0] == 4
    assert last(folder / "none", OURS) is None


def test_what_is_read_is_the_file_and_not_a_copy(folder):
    """Each of eight ranks would otherwise hold 14 GB of its own; what one changes is its own."""
    path = folder / "checkpoint-00000004.pt"
    mapped = [read(path)["weights"] for _ in range(2)]
    assert str(path) in Path("/proc/self/maps").read_text()
    mapped[0].zero_()
    assert (mapped[1] == 4).all() and (read(path)["weights"] == 4).all()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda content: b"", lambda content: b"\0" * len(content)])
def test_a_broken_one_is_named_and_the_one_before_it_is_there(folder, damage):
    newest = folder / "checkpoint-00000004.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(CheckpointError, match="checkpoint-00000004.pt is broken .*: delete it, to go on from the one"):
        last(folder, OURS)
    newest.unlink()
    assert read(last(folder, OURS))["weights"][0] == 3


def test_a_kill_while_writing_leaves_the_ones_before(folder, monkeypatch):
    def killed(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 6, {})
    assert last(folder, OURS).name == "checkpoint-00000004.pt"


def test_two_trainings_of_one_run_keep_apart(tmp_path):
    with locked(tmp_path), pytest.raises(CheckpointError, match="is being trained by another process"):
        with locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
