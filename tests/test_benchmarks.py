"""The benchmark runs, and claims nothing of a CPU."""

import torch

from benchmarks import train_throughput


def test_the_throughput_table_on_shrunk_networks(tmp_path, capsys):
    out = tmp_path / "table.md"
    arguments = ["--tiny-cpu", "--batch-size", "1", "--steps", "1", "--warm-up", "0", "--out", str(out)]
    with torch._dynamo.config.patch(disable=True):  # which main sets for good
        assert train_throughput.main(arguments) == 0
    rows = [line for line in out.read_text().splitlines() if line.startswith("| full") or line.startswith("| LoRA")]
    assert len(rows) == 16 and all("not measured on a CPU" in row for row in rows)
    assert "| sd15-night, splam-lora | 100, ME | 4 |" in out.read_text()
    assert "a CPU, with shrunk networks" in out.read_text()
