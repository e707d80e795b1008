"""Variables of the environment change no result: each is without effect, or an error that says what to do."""

import os
import shutil
import subprocess
import sys

import pytest

from splam.config import ROOT

PROCESSES = "import splam; from accelerate import Accelerator; print(Accelerator(cpu=True).num_processes)"


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in this checkout, with these variables of the environment."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("prefix", ["", "PMI_", "OMPI_COMM_WORLD_"])
def test_nobody_waits_for_the_ranks_of_another_launcher(prefix):
    size = "WORLD_SIZE" if not prefix else f"{prefix}SIZE"
    left = {f"{prefix}RANK": "0", size: "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    assert python(PROCESSES, **left).stdout == "1\n"


def test_nobody_waits_for_the_machines_or_takes_the_precision_of_another_job():
    """Kubernetes sets torchrun's options so, NVIDIA's containers torch's."""
    set_there = {"PET_NNODES": "2", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "PYTHONSTARTUP": "none.py"}
    code = f"import splam, os, torch; print({set(set_there)} & {{*os.environ}}, torch.backends.cuda.matmul.allow_tf32)"
    assert python(code, **set_there).stdout == "set() False\n"
    ranks = {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "2"}  # of a shell that torchrun started
    shown = "import sys, os; sys.orig_argv[1:1] = ['-m', {!r}]; import splam; print('RANK' in os.environ)"
    assert [python(shown.format(f"splam.{m}"), **ranks).stdout for m in ("stage", "distill")] == ["False\n", "True\n"]


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"PYTHONOPTIMIZE": "1"}, "(PYTHONOPTIMIZE) skips the checks in the notebooks: unset it"),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            "the locale's encoding is ANSI_X3.4-1968: set PYTHONUTF8=1",
        ),
    ],
)
def test_what_would_skip_checks_or_garble_captions_is_refused(variables, error):
    assert error in python("import splam", **variables).stderr


def test_another_checkout_is_not_imported_for_this_one(tmp_path):
    shutil.copytree(ROOT / "splam", tmp_path / "splam", ignore=shutil.ignore_patterns("*.csv", "__pycache__"))
    code = "from splam import stage; print(stage.__file__, stage.KERNEL_ENVIRONMENT['PYTHONPATH'].split(':')[0])"
    assert python(code, PYTHONPATH=str(tmp_path)).stdout.split() == [str(ROOT / "splam/stage.py"), str(ROOT)]
    other = python("import splam", PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")
    assert f"you are in {ROOT}, but {tmp_path / 'splam'} is imported: set PYTHONPATH={ROOT}" in other.stderr


def test_output_in_another_encoding_shows_what_it_can():
    assert python(r"import splam; print('caf\xe9 \u2713')", PYTHONIOENCODING="ascii").stdout == "caf\\xe9 \\u2713\n"
