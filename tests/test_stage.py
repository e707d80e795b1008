"""The stage wrapper: what it refuses, what it keeps, what it shows, and that it leaves nothing running."""

import io
import os
import shlex
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
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


def test_unknown_parameter_is_named_with_the_known_ones(notebook, tmp_path, capsys):
    assert stage.main([str(notebook()), "runs=b", "--out", str(tmp_path / "out.ipynb")]) == 1
    assert "unknown parameter 'runs': the notebook's are run, scale" in capsys.readouterr().err
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("assignment, complaint", [("run", "not name=value"), ("run=[1, 2]", "must be a string")])
def test_malformed_parameter(assignment, complaint):
    with pytest.raises(stage.StageError, match=complaint):
        stage.parse_parameters([assignment], ["run"])


def test_values_are_yaml_scalars():
    parsed = stage.parse_parameters(["run=lcm-w3-k20-s0", "scale=3", "fast=true"], ["run", "scale", "fast"])
    assert parsed == {"run": "lcm-w3-k20-s0", "scale": 3, "fast": True}


def test_missing_and_unreadable_notebooks_are_named(tmp_path, capsys):
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    assert [stage.main([str(tmp_path / "none.ipynb")]), stage.main([str(broken)])] == [1, 1]
    error = capsys.readouterr().err
    assert f"there is no notebook {tmp_path / 'none.ipynb'}" in error and "broken.ipynb" in error


@pytest.mark.parametrize(
    "parameters, name",
    [
        ({"metrics": "a/b", "run": "lcm-s0", "c": 1}, "30_distill-lcm-s0"),
        ({"metrics": "a/b"}, "30_distill"),
        ({"w": 7.5}, "30_distill-7.5"),
    ],
)
def test_default_output_carries_the_first_value_that_is_no_path(parameters, name):
    expected = stage.ROOT / f"build/executed/{name}.ipynb"
    assert stage.default_out(Path("notebooks/30_distill.ipynb"), parameters) == expected


def test_two_executions_give_the_same_bytes_and_progress_is_seen(notebook, tmp_path, capsys):
    path = notebook(
        "import os, sys, time\nfrom tqdm import tqdm\n"
        "print(run, scale, os.getcwd(), os.environ['PYTHONHASHSEED'], sys.executable)\n"
        "for _ in tqdm(range(2), desc='in the cell'):\n    time.sleep(0.01)",
        "from matplotlib.figure import Figure\nfrom splam.stage import launch\n"
        "launch('timeit', '-n1', '-r1', 'import tqdm; list(tqdm.tqdm(range(2), desc=\"in a process\"))')\n"
        "figure = Figure()\nfigure.add_subplot()\nfigure",
    )
    outs = [tmp_path / "made" / f"{i}.ipynb" for i in range(2)]
    for out in outs:
        assert stage.main([str(path), "--out", str(out), "run=b"]) == 0
    first, second = (out.read_bytes() for out in outs)
    assert first == second
    assert sorted(outs[0].parent.iterdir()) == outs  # neither temporary nor failed files
    assert f"b 3 {stage.ROOT} 0 {sys.executable}" in first.decode()
    assert b"image/png" in first and b"100%" not in first and b"papermill" not in first
    seen = capsys.readouterr().out
    assert "in the cell: 100%" in seen and "in a process: 100%" in seen


def test_failing_cell_keeps_what_was_done_and_tells_where(notebook, tmp_path, capsys):
    path = notebook("print('so far')", "def half(x):\n    return x / 0\n\n\nhalf(3)")
    assert stage.main([str(path), "--out", str(tmp_path / "out.ipynb")]) == 1
    error = capsys.readouterr().err
    assert "cell [3]: ZeroDivisionError: division by zero" in error and "return x / 0" in error
    assert len(error.splitlines()) < 20
    assert not (tmp_path / "out.ipynb").exists()
    assert "so far" in (tmp_path / "out.failed.ipynb").read_text()


def is_fork(process: psutil.Process) -> bool:
    """Whether a process was forked by the warm server; it bears the server's command line."""
    return "--serve" in process.cmdline() and "--serve" in process.parent().cmdline()


@pytest.mark.parametrize("victim", ["stage", "dvc"])
def test_killed_leaves_no_process_behind(notebook, tmp_path, victim):
    asleep = tmp_path / "asleep"
    sleep = SLEEP.format(str(asleep))
    path = notebook(f"from splam.stage import launch\nlaunch('timeit', '-n1', '-r1', {sleep!r})")
    command = [sys.executable, "-m", "splam.stage", str(path), "--out", str(tmp_path / "out.ipynb")]
    dvc = f"import os; os.system({shlex.join(command) + '; true'!r})"  # it runs its stages through a shell
    started = subprocess.Popen([sys.executable, "-c", dvc], cwd=stage.ROOT, env={**os.environ, "DVC_STAGE": "distill"})
    deadline = time.monotonic() + 120
    while not asleep.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    family = [p for p in psutil.Process(started.pid).children(recursive=True) if p.status() != "zombie"]
    assert asleep.exists() and sum(is_fork(process) for process in family) == 2, "kernel and trainer were not started"
    stages = [process for process in family if "splam.stage" in process.cmdline()]  # in the shell's it is a part
    (started if victim == "dvc" else stages[0]).kill()
    started.wait(timeout=60)
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_launch_names_the_command_and_its_last_lines():
    with pytest.raises(RuntimeError, match=r"-m timeit 1/0` exited with 1; its last lines:\n(.|\n)*ZeroDivisionError"):
        stage.launch("timeit", "1/0")


def test_log_shows_finished_lines_and_thins_bars_out():
    log = io.StringIO()
    progress = stage.Progress(log)
    for i in range(50):
        progress.write(f"\r{2 * i:3d}%|##")
    progress.write("\rdone\nne")
    progress.write("xt\n")
    assert log.getvalue() == "  0%|##\ndone\nnext\n"


def test_terminal_gets_every_refresh_of_a_bar():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    stage.Progress(terminal).write("\r 1%\r 2%")
    assert terminal.getvalue() == "\r 1%\r 2%"


def test_stdout_is_joined_and_overwritten_text_dropped():
    stream = [nbformat.v4.new_output("stream", name=n, text=t) for n, t in [("stdout", "a\rb"), ("stdout", "c\nd")]]
    noise = nbformat.v4.new_output("stream", name="stderr", text="12:30 warning")
    cell = nbformat.v4.new_code_cell("", outputs=[stream[0], noise, stream[1]])
    executed = stage.normalise(nbformat.v4.new_notebook(cells=[cell]))
    assert [output.text for output in executed.cells[0].outputs] == ["bc\nd"]


def test_importing_the_wrapper_is_light():
    code = "import sys, splam.stage; print([m for m in ('torch', 'papermill', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=stage.ROOT, text=True).strip() == "[]"
