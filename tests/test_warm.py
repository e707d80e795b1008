"""Modules run in forks of a warm server: as `python -m` runs them, and gone with whoever asked for them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from splam import warm

ROOT = Path(warm.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def server():
    """A warm server that belongs to this process; the variables that its clients need."""
    folder = warm.start_server(os.getpid(), {"PYTHONHASHSEED": "0"})
    deadline = time.monotonic() + 120
    while not (folder / "socket").exists():  # a client that comes before it runs its module by itself
        assert time.monotonic() < deadline, "the server does not listen"
        time.sleep(0.05)
    yield {**os.environ, warm.VARIABLE: str(folder), "PYTHONPATH": str(ROOT)}


def client(server: dict[str, str], module: str, *arguments: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE, "text": True}
    return subprocess.Popen(warm.command(module, *arguments), env=server, **pipes, **options)


def script(tmp_path: Path, code: str) -> str:
    (tmp_path / "script.py").write_text(code)
    return "script"


def test_streams_arguments_folder_and_environment_are_the_clients(server, tmp_path):
    module = script(
        tmp_path,
        "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['COLOUR'], input(), 'torch' in sys.modules)\n"
        "print('problem', file=sys.stderr)\nsys.exit(3)",
    )
    path = f"{tmp_path}:{ROOT}"
    process = client({**server, "COLOUR": "red", "PYTHONPATH": path}, module, "a b", "c", cwd=tmp_path)
    out, err = process.communicate("typed\n", timeout=120)
    assert out == f"['a b', 'c'] {tmp_path} red typed True\n"
    assert (err, process.returncode) == ("problem\n", 3)


@pytest.mark.parametrize("code, status", [("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", 128 + 9), ("", 0)])
def test_how_it_ended_is_told(server, tmp_path, code, status):
    process = client({**server, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, script(tmp_path, code), cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert ("ZeroDivisionError" in err) == (code == "1 / 0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_client(server, tmp_path, number):
    module = script(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(300)")
    process = client({**server, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, module, cwd=tmp_path)
    forked = psutil.Process(int(process.stdout.readline()))
    process.send_signal(number)
    assert psutil.wait_procs([forked], timeout=20)[1] == []
    process.wait(timeout=20)


def test_without_a_server_it_is_the_plain_command(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != warm.VARIABLE} | {"PYTHONPATH": str(ROOT)}
    for extra in ({}, {warm.VARIABLE: str(tmp_path / "nowhere")}):
        process = client(environment | extra, "timeit", "-n1", "-r1", "print('plain')")
        assert "plain" in process.communicate(timeout=60)[0]


def test_a_server_ends_with_its_owner(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    folder = warm.start_server(owner.pid, {})
    started = [p for p in psutil.Process().children() if str(folder) in " ".join(p.cmdline())]
    assert len(started) == 1 and oct(folder.stat().st_mode)[-3:] == "700"
    owner.kill()
    owner.wait()
    assert psutil.wait_procs(started, timeout=120)[1] == []
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
