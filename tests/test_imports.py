"""Imports run one way, as the design of the package has it."""

import subprocess
import sys

import pytest

from splam.config import ROOT
from tests.closure import imports, room

# What the modules of a room may import, beside the room itself.
ALLOWED = {
    "method": set(),
    "config": set(),
    "profile": {"config"},
    "networks": {"method", "config"},
    "data": {"method", "config"},
    "distill": {"method", "networks", "data", "config"},
    "measure": {"method", "networks", "data", "config"},
    "report": {"config", "profile"},
}
HEAVY = ("diffusers", "transformers", "open_clip", "cleanfid", "peft", "matplotlib", "papermill", "dvc")
MODULES = sorted((ROOT / "splam").rglob("*.py"))


def name(place: str) -> str:
    return place.removeprefix("splam/").removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_what_its_room_may(path):
    own = name("/".join(path.relative_to(ROOT).parts[:2]))
    used = {name(room(module)) for module in imports(path)} - {own}
    assert used <= ALLOWED.get(own, {*ALLOWED, "stage"})


def test_the_package_is_six_rooms_and_at_most_five_files():
    entries = [entry for entry in (ROOT / "splam").iterdir() if entry.name != "__pycache__"]
    assert {entry.name for entry in entries if entry.is_dir()} == set(ALLOWED) - {"config", "profile"}
    assert sum(entry.is_file() for entry in entries) <= 5


def test_no_module_is_longer_than_350_lines():
    assert [path for path in MODULES if len(path.read_text().splitlines()) > 350] == []


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (["splam.profile", "splam.stage", "splam.report"], (*HEAVY, "torch")),
        (["splam.measure.evaluate", "splam.distill.trajectories", "splam.data.testsets"], HEAVY),
    ],
)
def test_packages_that_a_stage_may_not_need_are_not_imported_for_it(modules, without):
    code = f"import sys, {', '.join(modules)}; print([module for module in {without} if module in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"
