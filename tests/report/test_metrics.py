"""Saved numbers are read as they were written, and those that cannot be compared are refused."""

import pandas as pd
import pytest

from splam.report.metrics import by_seed, check_comparable, load_metrics
from tests.report.synthetic import QUOTE, write_metrics

ROWS = pd.DataFrame({"dataset": "unseen", "seed": 0, "system": ["a", "b"], **QUOTE})


def test_ablations_are_kept_apart_and_a_hash_stays_a_text(tmp_path):
    folder = write_metrics(tmp_path / "tiny", seeds=1) / "metrics"
    rows = pd.read_csv(folder / "evaluate/students.csv", dtype=str)
    rows.assign(run="other", ablation=True).to_csv(folder / "evaluate/ablated.csv", index=False)
    metrics = load_metrics(folder)
    assert len(metrics.evaluations) == len(metrics.rows) + len(rows)
    assert "other" not in set(metrics.rows["run"])
    assert set(metrics.rows["references"]) == {"0123"} and set(metrics.rows["captions"]) == {"45e67"}
    assert metrics.fact("fid_name") == "FID (EfficientNet-Lite0)"
    assert len(metrics.world) and len(metrics.latency) and len(metrics.delta)


def test_a_file_of_a_header_alone_adds_nothing(tmp_path):
    folder = write_metrics(tmp_path / "tiny", seeds=1) / "metrics"
    known = load_metrics(folder).delta
    (folder / "delta").mkdir()
    known.iloc[:0].to_csv(folder / "delta/none.csv", index=False)
    pd.testing.assert_frame_equal(load_metrics(folder).delta, known)


@pytest.mark.parametrize("column", ["fid_name", "clip_name", "references", "captions"])
def test_rows_of_one_dataset_that_differ_in_kind_are_named(column):
    mixed = ROWS.assign(**{column: ["this", "that"]})
    with pytest.raises(ValueError, match=f"unseen differ in {column}.*'that': 'b'"):
        check_comparable(mixed)
    check_comparable(mixed.assign(dataset=["unseen", "seen"]))
    check_comparable(mixed.assign(seed=[0, 1]))
    check_comparable(ROWS.assign(**{column: ["this", ""]}))


def test_two_runs_for_one_seed_are_an_error_that_names_them():
    rows = pd.DataFrame({"run": ["a", "again"], "seed": [0, 0], "skip": [20, 100], "fid": [1.0, 2.0]})
    with pytest.raises(ValueError, match="among the runs a, again"):
        by_seed(rows, "fid")
    assert by_seed(rows, "fid", "skip").to_numpy().tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="several rows for one seed"):
        by_seed(rows.assign(skip=20), "fid", "skip")
