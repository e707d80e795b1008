"""Run one notebook as one stage of the pipeline.

    python -m splam.stage notebooks/30_distill.ipynb run=lcm-w3-k20

Papermill puts identifiers into the notebook's `parameters` cell; the rest it reads from params.yaml. What differs
between two equal runs is not kept. Nothing outlives the stage: its kernel, and what `launch` starts there, die with it.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KERNEL_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),  # this checkout first
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as in a notebook that is opened by hand
    "IPYTHONDIR": str(ROOT / "build/ipython"),  # not the user's own start-up files and history
    "SPYDER_CONSOLE": "1",  # tqdm.auto's sign of a console: bars are text, not widgets with an id drawn at random
}
KERNEL_OPTIONS = [
    "--IPKernelApp.capture_fd_output=False",  # what a process started by a cell prints: to the terminal alone
    "--IPKernelApp.extra_extensions=splam.stage",  # load_ipython_extension, below
    "--InteractiveShell.xmode=Plain",  # tracebacks as Python's own
    "--log-level=CRITICAL",  # no "KeyboardInterrupt caught in kernel" where it is shut down
]


class StageError(Exception):
    """A stage that cannot be run, or whose notebook failed."""


def read_parameters(notebook: Path, assignments: list[str]) -> dict[str, Any]:
    """`name=value` strings as a dict, the values read as YAML scalars.

    Raises StageError for a name that the notebook's cell tagged `parameters` does not assign.
    """
    import papermill
    from omegaconf import OmegaConf

    try:
        known = papermill.inspect_notebook(notebook)
    except (OSError, ValueError) as error:
        raise StageError(f"{notebook} cannot be read: {error}") from None
    parameters = {}
    for assignment in assignments:
        name, equals, _ = assignment.partition("=")
        value = OmegaConf.from_dotlist([assignment]).get(name)  # YAML, with 1e-3 a number
        if not equals or not isinstance(value, str | int | float | bool):
            raise StageError(f"{assignment!r} is not name=value, with a string, a number, true or false")
        if name not in known:
            raise StageError(f"unknown parameter {name!r}: the notebook's are {', '.join(known) or 'none'}")
        parameters[name] = value
    return parameters


def run_notebook(notebook: Path, out: Path, parameters: dict[str, Any]) -> list[float]:
    """Execute a notebook in a kernel of this interpreter at the repository's root and write it, normalised, to `out`.

    Returns the seconds of its code cells. While it runs, and if it fails, it is at `out` with the suffix .failed.ipynb,
    as far as it got. Raises StageError.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    os.environ.update(KERNEL_ENVIRONMENT)
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = out.with_suffix(".failed.ipynb")
    try:
        executed = papermill.execute_notebook(
            notebook,
            failed,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            coalesce_streams=True,  # one piece of stdout a cell, without overwritten (\r) text
            stdout_file=sys.stdout,
            stderr_file=sys.stdout,
            start_timeout=600,  # seconds: 60, the default, are too few on a machine busy with other work
            extra_arguments=KERNEL_OPTIONS,
            config=Config(KernelManager={"transport_encryption": "auto"}),  # others on this machine can reach its ports
            cwd=ROOT,
        )
    except PapermillExecutionError as error:
        raise StageError(f"{notebook.name}: {error}as far as it got: {failed}") from None
    except DeadKernelError:
        raise StageError(f"{notebook.name}: the kernel died (out of memory?) after {failed}") from None
    cells = [cell.metadata.papermill.duration or 0.0 for cell in executed.cells if cell.cell_type == "code"]
    failed.write_text(nbformat.writes(normalise(executed)) + "\n")
    os.replace(failed, out)
    return cells


def normalise(executed: Any) -> Any:
    """Drop from an executed notebook (changed in place, and returned) all that differs between two equal runs."""
    executed.metadata.pop("papermill", None)
    executed.metadata.get("language_info", {}).pop("version", None)
    for index, cell in enumerate(executed.cells):
        cell.id = f"cell-{index}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return executed


def load_ipython_extension(shell: Any) -> None:
    """Called in the kernel: it ends with its stage at once, whatever holds up ipykernel's own watch for that."""
    _die_with_parent(signal.SIGKILL, int(os.environ["JPY_PARENT_PID"]))


def launch(module: str, *arguments: str, processes: int = 1) -> None:
    """Run `python -m module arguments` from a notebook, as `processes` ranks of torchrun where that is over 1.

    In a stage what it prints is seen, but not kept in the executed notebook. It is sent SIGTERM when this process ends,
    however it ends (on Linux). Raises CalledProcessError if it fails.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(torchrun if processes > 1 else []), module, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, preexec_fn=partial(_die_with_parent, signal.SIGTERM, os.getpid()))


def _die_with_parent(number: int, parent: int) -> None:
    """Have this process sent a signal when process `parent`, which started it, ends, even by SIGKILL (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _die_with_dvc() -> None:
    """Under DVC, end when DVC does: if it is killed, it leaves its shell and this stage behind."""
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    ours = [p for p in psutil.Process().parents() if os.getsid(p.pid) == os.getsid(0) and not p.name().endswith("sh")]

    def watch() -> None:
        if ours:  # else it has ended already
            ours[0].wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m splam.stage", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("assignments", nargs="*", metavar="name=value", help="identifiers for the `parameters` cell")
    parser.add_argument("--out", type=Path, help="default: build/executed/NOTEBOOK[-FIRST VALUE].ipynb")
    options = parser.parse_intermixed_args(arguments)
    _die_with_dvc()
    start = time.monotonic()
    label = " ".join([options.notebook.stem, *options.assignments])
    try:
        notebook = options.notebook.resolve()
        parameters = read_parameters(notebook, options.assignments)
        name = "-".join([notebook.stem, *[str(v) for v in parameters.values() if "/" not in str(v)][:1]])
        out = options.out.resolve() if options.out else ROOT / f"build/executed/{name}.ipynb"
        if out == notebook:
            raise StageError(f"--out {options.out} is the notebook itself")
        cells = run_notebook(notebook, out, parameters)
    except StageError as error:
        sys.exit(f"{label} failed: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{label} interrupted")
    seconds = time.monotonic() - start
    record = {"seconds": seconds, "imports": sum(cells[:1]), "computing": sum(cells[1:])}  # the first cell imports
    record["cpu"] = sum(os.times()[:4])  # this process and its children, user and system
    times = ROOT / "build/times"
    times.mkdir(parents=True, exist_ok=True)
    (times / f"{out.stem}.json").write_text(json.dumps({key: round(value, 1) for key, value in record.items()}) + "\n")
    print(f"{label}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
