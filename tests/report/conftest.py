"""Metrics of a made-up profile with three seeds, its report, and a profile without any metrics."""

from pathlib import Path

import pytest

from splam.config import Params, parse
from splam.profile import compose
from splam.report.metrics import Metrics, load_metrics
from splam.report.page import Report, build, write_files, write_page
from tests.report.synthetic import write_metrics, write_samples


@pytest.fixture(scope="session")
def metrics(tmp_path_factory) -> Metrics:
    return load_metrics(write_metrics(tmp_path_factory.mktemp("reports") / "tiny") / "metrics")


@pytest.fixture(scope="session")
def empty() -> Metrics:
    """Nothing measured."""
    return load_metrics(Path("nowhere"))


@pytest.fixture(scope="session")
def params() -> Params:
    return parse(compose("tiny"), "tiny")


@pytest.fixture(scope="session")
def report(params, metrics) -> Report:
    return build(params, metrics)


@pytest.fixture(scope="session")
def written(report, tmp_path_factory) -> Path:
    """All of the report, as notebooks/60_report.ipynb writes it."""
    folder = tmp_path_factory.mktemp("written")
    write_page(report, folder, write_files(report, folder, write_samples(folder / "build")))
    return folder
