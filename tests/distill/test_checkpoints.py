"""Checkpoints: whole or not there, few, and passed over when broken."""

import pytest
import torch

from splam.distill.checkpoints import CheckpointError, load_last_checkpoint, locked, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of iterations 1 to 4, of which two are kept, and what a kill while writing leaves."""
    for iteration in range(1, 5):
        save_checkpoint(tmp_path, iteration, {"weights": torch.full((5000,), float(iteration))}, keep=2)
    (tmp_path / "checkpoint-00000005.part").write_bytes(b"half")
    return tmp_path


def test_the_last_few_are_kept_and_the_newest_is_read(folder):
    assert [p.name for p in sorted(folder.glob("*.pt"))] == ["checkpoint-00000003.pt", "checkpoint-00000004.pt"]
    assert load_last_checkpoint(folder)["weights"][0] == 4
    assert load_last_checkpoint(folder / "none") is None


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda content: b"", lambda content: b"\0" * len(content)])
def test_a_broken_one_is_named_and_passed_over(folder, damage):
    newest = folder / "checkpoint-00000004.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(
        RuntimeWarning, match="checkpoint-00000004.pt cannot be read .*; trying the checkpoint before it"
    ):
        assert load_last_checkpoint(folder)["weights"][0] == 3


@pytest.mark.filterwarnings("ignore:.*checkpoint-")
def test_all_broken_is_an_error_not_a_new_start(folder):
    for path in folder.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read: delete that folder"):
        load_last_checkpoint(folder)


def test_a_kill_while_writing_leaves_the_ones_before(folder, monkeypatch):
    def killed(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, 6, {}, keep=2)
    assert load_last_checkpoint(folder)["weights"][0] == 4


def test_two_trainings_of_one_run_keep_apart(tmp_path):
    with locked(tmp_path), pytest.raises(CheckpointError, match="is being trained by another process"):
        with locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
