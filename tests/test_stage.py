"""The stage wrapper: what it refuses, what it keeps, what it shows, and that it leaves nothing running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from splam import stage

SLEEP = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(300)"


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook of a `parameters` cell and the given cells, and returns its path."""

    def write(*sources: str) -> Path:
        cells = [nbformat.v4.new_code_cell(source) for source in ('run = "a"\nscale: float = 3', *sources)]
        cells[0].metadata.tags = ["parameters"]
        path = tmp_path / "notebook.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
        return path

    return write


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("runs=b", "unknown parameter 'runs': the notebook's are run, scale"),
        ("run", "'run' is not name=value"),
        ("run=[1, 2]", "is not name=value, with a string, a number, true or false"),
    ],
)
def test_a_wrong_parameter_is_named_and_nothing_runs(notebook, tmp_path, assignment, complaint):
    with pytest.raises(SystemExit, match=re.escape(complaint)):
        stage.main([str(notebook()), assignment, "--out", str(tmp_path / "out.ipynb")])
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["none.ipynb", "broken.ipynb"])
def test_a_notebook_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(SystemExit, match=f"{name} cannot be read"):
        stage.main([str(tmp_path / name)])


def test_two_executions_give_the_same_bytes_and_progress_is_seen(notebook, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    path = notebook(
        "import os, sys, time\nfrom tqdm.auto import tqdm\n"
        "print(run, scale, os.getcwd(), os.environ['PYTHONHASHSEED'], sys.executable)\n"
        "for _ in tqdm(range(2), desc='in the cell'):\n    time.sleep(0.01)",
        "print('a\\rb')",
        "import matplotlib.pyplot as plt\nfrom splam.stage import launch\n"
        "launch('timeit', '-n1', '-r1', 'import tqdm; list(tqdm.tqdm(range(2), desc=\"in a process\"))')\n"
        "plt.subplots()",
    )
    outs = [tmp_path / "made" / f"{i}.ipynb" for i in range(2)]
    for out in outs:
        stage.main([str(path), "--out", str(out), "run=b", "scale=25e-1"])
    first, second = (out.read_bytes() for out in outs)
    assert first == second
    assert sorted(outs[0].parent.iterdir()) == outs  # neither temporary nor failed files
    stdout = [cell.outputs[0].text for cell in nbformat.reads(first.decode(), 4).cells[-3:-1]]
    assert stdout == [f"b 2.5 {tmp_path} 0 {sys.executable}\n", "b\n"]
    assert b"image/png" in first and b"100%" not in first and b"papermill" not in first
    seen = capfd.readouterr()
    assert "in the cell: 100%" in seen.out and "in a process: 100%" in seen.err
    times = json.loads((tmp_path / "build/times/1.json").read_text())
    assert 0 < times["imports"] + times["computing"] <= times["seconds"] and times["cpu"] > 0


def test_the_first_value_that_is_no_path_names_the_output(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    written = []
    monkeypatch.setattr(stage, "run_notebook", lambda notebook, out, *_: written.append(out.name) or [])
    for assignments in (["run=a/b", "scale=7.5"], ["run=lcm", "scale=3"], []):
        stage.main([str(notebook()), *assignments])
    assert written == ["notebook-7.5.ipynb", "notebook-lcm.ipynb", "notebook.ipynb"]


def test_failing_cell_keeps_what_was_done_and_tells_where(notebook, tmp_path):
    path = notebook("print('so far')", "def half(x):\n    return x / 0\n\n\nhalf(3)")
    with pytest.raises(SystemExit) as stopped:
        stage.main([str(path), "--out", str(tmp_path / "out.ipynb")])
    assert re.search('(?s)In \\[3\\]".*return x / 0\n\nZeroDivisionError: division by zero\n', stopped.value.code)
    assert not (tmp_path / "out.ipynb").exists()
    assert "so far" in (tmp_path / "out.failed.ipynb").read_text()


@pytest.mark.parametrize(("victim", "shell"), [("stage", "/bin/sh"), ("dvc", "/bin/sh"), ("group", "/bin/bash")])
def test_killed_leaves_no_process_behind(notebook, tmp_path, victim, shell):
    asleep, git = tmp_path / "asleep", tmp_path / "git"
    sleep = SLEEP.format(str(asleep))
    path = notebook(f"from splam.stage import launch\nlaunch('timeit', '-n1', '-r1', {sleep!r})")
    git.mkdir()
    (git / "dvc.yaml").write_text(
        f"stages:\n  a:\n    cmd: {sys.executable} -m splam.stage {path} --out ../out.ipynb\n"
    )
    environment = os.environ | {"PYTHONPATH": str(stage.ROOT), "SHELL": shell}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=git, check=True)
    started = subprocess.Popen([*dvc, "repro"], cwd=git, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not asleep.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    family = [p for p in psutil.Process(started.pid).children(recursive=True) if p.status() != "zombie"]
    (stage_process,) = [p for p in family if "splam.stage" in p.cmdline()]
    assert any("ipykernel_launcher" in p.cmdline() for p in family) and any("timeit" in p.cmdline() for p in family)
    if victim == "group":
        os.killpg(started.pid, signal.SIGKILL)
    else:
        (stage_process if victim == "stage" else started).kill()
    started.wait(timeout=60)
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_launch_names_the_command_that_failed(capfd):
    with pytest.raises(subprocess.CalledProcessError, match="'timeit', '1/0'.* non-zero exit status 1"):
        stage.launch("timeit", "1/0")
    assert "ZeroDivisionError" in capfd.readouterr().err
