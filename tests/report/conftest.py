"""Metrics of a made-up profile with three seeds, its report, and a profile without any metrics."""

from pathlib import Path

import pytest

from splam.config import Params, parse
from splam.profile import compose
from splam.report.metrics import Metrics, load_metrics
from splam.report.page import Report, build
from tests.report.synthetic import write_metrics


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
