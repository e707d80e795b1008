"""Run one notebook as one stage of the pipeline; the only `cmd` in dvc.yaml.

    python -m splam.stage notebooks/30_distill.ipynb run=lcm-w3-k20-s0

Identifiers are injected by papermill into the notebook's `parameters` cell, everything else it reads from
params.yaml. The executed notebook is byte-stable: what differs between two equal runs (times, random ids, progress
bars on stderr) is not kept. Nothing outlives the stage: the kernel and what `launch` starts die with it.

Every stage pays for importing this module, and so does every kernel: papermill is imported where it is used.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import yaml

from splam import warm

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = Path("build/executed")
KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
    "IPYTHONDIR": str(ROOT / "build/ipython"),  # not the user's own start-up files and history
    "DIFFUSERS_VERBOSITY": "error",  # the tiny text encoder is a BertModel, which diffusers warns of at every load
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # progress bars are text here, on purpose
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences the debugger's warning about frozen modules
}
KERNEL_OPTIONS = [
    "--IPKernelApp.capture_fd_output=False",  # what a process started by a cell prints: to the terminal alone
    "--IPKernelApp.extra_extensions=splam.stage",  # load_ipython_extension, below
    "--InteractiveShell.xmode=Plain",  # tracebacks as Python's own
    "--HistoryManager.enabled=False",
    "--log-level=CRITICAL",  # no "KeyboardInterrupt caught in kernel" where it is shut down
]
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}
START_TIMEOUT = 600  # seconds for a kernel to answer: 60, the default, are too few on a machine busy with other work
TAIL = 20  # lines of output or traceback quoted in an error
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class StageError(Exception):
    """A stage that cannot be run, or whose notebook failed; the message is for the person who runs it."""


def known_parameters(notebook: Path) -> list[str]:
    """Names assigned in the notebook's cell tagged `parameters`, in order; empty if there is no such cell."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        statements = ast.parse("\n".join(tagged)).body
    except (ValueError, SyntaxError) as error:
        raise StageError(f"{notebook.name} or its `parameters` cell cannot be read: {error}") from None
    names = []
    for statement in statements:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def parse_parameters(assignments: list[str], known: list[str]) -> dict[str, Any]:
    """`name=value` strings as a dict, values read as YAML scalars; a name that is not known is an error."""
    parameters = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise StageError(f"{assignment!r} is not name=value")
        if name not in known:
            raise StageError(f"unknown parameter {name!r}: the notebook's are {', '.join(known) or 'none'}")
        value = yaml.safe_load(text)
        if not isinstance(value, str | int | float | bool):
            raise StageError(f"{assignment!r}: the value must be a string, a number, true or false")
        parameters[name] = value
    return parameters


def run_notebook(notebook: Path, out: Path, parameters: dict[str, Any], terminal: TextIO) -> None:
    """Execute a notebook in a kernel of this interpreter at the repository's root and write it, normalised, to `out`.

    Until it has succeeded it lies, as far as it got, at `out` with the suffix .failed.ipynb. Raises StageError.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    partial_out = out.with_suffix(".failed.ipynb")
    out.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(terminal)
    kept = f"as far as it got: {partial_out}"
    try:
        executed = papermill.execute_notebook(
            notebook,
            partial_out,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=progress,
            stderr_file=progress,
            start_timeout=START_TIMEOUT,
            kernel_manager_class=_kernel_manager_class(),
            cwd=ROOT,
        )
    except PapermillExecutionError as error:
        lines = ANSI.sub("", "\n".join(error.traceback)).splitlines()[-TAIL:]
        where = f"{notebook.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        raise StageError("\n".join([where, *lines, kept])) from None
    except DeadKernelError:
        raise StageError(f"{notebook.name}: the kernel died (out of memory?)\n{kept}") from None
    partial_out.write_text(nbformat.writes(normalise(executed)) + "\n")
    os.replace(partial_out, out)


def normalise(executed: Any) -> Any:
    """Drop from an executed notebook (changed in place, and returned) all that differs between two equal runs."""
    executed.metadata.pop("papermill", None)
    executed.metadata.get("language_info", {}).pop("version", None)
    for index, cell in enumerate(executed.cells):
        cell.id = f"cell-{index}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _settled(cell.outputs)
    return executed


def _settled(outputs: list[Any]) -> list[Any]:
    """Outputs without stderr, with neighbouring pieces of stdout joined and overwritten (\\r) text dropped."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if kept and output.output_type == "stream" == kept[-1].output_type:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return kept


class Progress:
    """Passes what a notebook prints on to the terminal.

    Where there is no terminal but a log, a line that is being rewritten (a progress bar) is shown every
    `seconds` and once finished; other lines are all shown.
    """

    def __init__(self, terminal: TextIO, seconds: float = 10.0) -> None:
        self.terminal = terminal
        self.seconds = seconds
        self.line = ""
        self.shown = -seconds

    def write(self, text: str) -> None:
        """Show a piece of output, which may end anywhere in a line."""
        if self.terminal.isatty():
            self.terminal.write(text)
            return
        *ended, self.line = re.split(r"(?<=[\r\n])", self.line + text.replace("\r\n", "\n"))
        for line in ended:
            self._show(line)

    def _show(self, line: str) -> None:
        now = time.monotonic()
        content = ANSI.sub("", line).rstrip()
        rewritten = line.endswith("\r")
        if not content or (rewritten and now - self.shown < self.seconds):
            return
        self.terminal.write(content + "\n")
        if rewritten:
            self.shown = now

    def flush(self) -> None:
        self.terminal.flush()


def _kernel_manager_class() -> type:
    """A kernel manager that knows one kernel, this interpreter's, whatever kernels the user has installed.

    The two talk encrypted: other users of the machine can reach the kernel's ports.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from traitlets import default

    command = warm.command("ipykernel_launcher", "-f", "{connection_file}", *KERNEL_OPTIONS)
    spec = KernelSpec(**{**get_kernel_dict(), "argv": command, "env": KERNEL_ENVIRONMENT})

    class OwnKernelManager(AsyncKernelManager):
        kernel_spec = spec

        @default("transport_encryption")
        def _encrypt(self) -> str:
            return "auto"

    return OwnKernelManager


def load_ipython_extension(shell: Any) -> None:
    """Let a notebook show a matplotlib Figure, as the inline backend would, without importing matplotlib for it."""

    def png(figure: Any) -> str:
        from IPython.core.pylabtools import print_figure

        return print_figure(figure, fmt="png", base64=True)

    shell.display_formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", png)


def launch(module: str, *arguments: str, processes: int = 1) -> None:
    """Run `python -m module arguments` from a notebook, as `processes` ranks of torchrun where that is over 1.

    Its output goes to this process's stderr, so that it is seen but not kept in the executed notebook, and it is
    sent SIGTERM when this process ends, however it ends (on Linux). Raises RuntimeError with the command and its
    last lines if it fails.
    """
    command = warm.command(module, *arguments)
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, "-m", *torchrun, "-m", module, *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=partial(warm.die_with_parent, signal.SIGTERM, os.getpid()),
    )
    try:
        tail = ""
        for text in _pieces(process.stdout):
            sys.stderr.write(text)
            sys.stderr.flush()
            tail = (tail + text)[-10_000:]
        code = process.wait()
    finally:
        _end(process)
    if code:
        lines = [line for line in re.split(r"[\r\n]+", tail) if line.strip()][-TAIL:]
        shown = " ".join(["python", "-m", *command[command.index(module) :]])
        raise RuntimeError("\n".join([f"`{shown}` exited with {code}; its last lines:", *lines]))


def _pieces(stream: Any) -> Iterator[str]:
    """What a pipe holds as soon as it holds it: a progress bar has no line ends to wait for."""
    while data := stream.read1():
        yield data.decode(errors="replace")


def _end(process: subprocess.Popen) -> None:
    """See a child off that an interrupt left running: politely first, since it may want to save a checkpoint."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()


def _belong_to_dvc() -> None:
    """Under DVC, end when it ends: killed, it would leave its stages (its children, or its shell's) running.

    All stages of one dvc process share a warm server.
    """
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    stage = psutil.Process()
    line = [stage, *stage.parents()[:2]]
    if line[1].name() not in SHELLS:  # the shell has replaced itself by the stage: dvc is the parent
        line = line[:2]
    parents = [process.pid for process in line[1:]]

    def watch() -> None:
        try:
            while [process.ppid() for process in line[:-1]] == parents:
                time.sleep(0.5)
        finally:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":
        os.environ[warm.VARIABLE] = str(warm.start_server(parents[-1], KERNEL_ENVIRONMENT))


def default_out(notebook: Path, parameters: dict[str, Any]) -> Path:
    """build/executed/<notebook>[-<value of the first parameter that is not a path>].ipynb."""
    names = [str(value) for value in parameters.values() if "/" not in str(value)]
    return ROOT / EXECUTED / ("-".join([notebook.stem, *names[:1]]) + ".ipynb")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m splam.stage", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("assignments", nargs="*", metavar="name=value", help="identifiers for the `parameters` cell")
    parser.add_argument("--out", type=Path, help="default: build/executed/NOTEBOOK[-VALUE].ipynb")
    options = parser.parse_intermixed_args(arguments)
    _belong_to_dvc()
    start = time.monotonic()
    label = " ".join([options.notebook.stem, *options.assignments])
    try:
        if not options.notebook.is_file():
            raise StageError(f"there is no notebook {options.notebook}")
        notebook = options.notebook.resolve()
        parameters = parse_parameters(options.assignments, known_parameters(notebook))
        out = options.out.resolve() if options.out else default_out(notebook, parameters)
        if out == notebook:
            raise StageError(f"--out {options.out} is the notebook itself")
        run_notebook(notebook, out, parameters, sys.stdout)
    except StageError as error:
        print(f"{label} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{label} interrupted", file=sys.stderr)
        return 130
    print(f"{label}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
