"""Taking stock: the digits follow names, sizes and times of change, and nothing that is not a local file."""

import os

from splam.inventory import NOTHING, take_stock


def test_digits_follow_names_sizes_and_times(tmp_path):
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(b"12")
    patterns = [str(tmp_path / "{0..3}.tar")]
    first = take_stock(patterns)
    assert first == take_stock([str(tmp_path / "*.tar")]) == take_stock(patterns * 2) and len(first) == 16
    os.utime(tmp_path / "0.tar", (1, 1))
    touched = take_stock(patterns)
    (tmp_path / "1.tar").unlink()
    assert len({first, touched, take_stock(patterns)}) == 3


def test_what_is_no_local_file_is_left_out(tmp_path):
    away = ["https://example.org/{0..9}.tar", "pipe:cat x", str(tmp_path / "none/**"), "someone/a-hub-id/**"]
    assert take_stock(away) == take_stock([]) == NOTHING
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    assert take_stock([str(tmp_path / "*")]) == NOTHING
