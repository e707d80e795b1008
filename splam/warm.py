"""A process that has imported the heavy packages, from which the stages of one `dvc repro` fork theirs.

torch, diffusers and transformers take some 15 seconds to import on 2 slow cores, and the tiny profile starts 60
processes. The first stage starts one server for the dvc process that it belongs to; the server ends with it.

    python -m splam.warm MODULE ARGUMENTS

runs a module as `python -m MODULE ARGUMENTS` does, in a fork of the server that SPLAM_WARM names. Where there is none
(a notebook opened by hand, a GPU, an operating system other than Linux) it becomes that plain command.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

VARIABLE = "SPLAM_WARM"  # the folder of the server's socket
HEADER = struct.Struct("!q")  # a length, a process id or an exit status
LIBC = ctypes.CDLL(None)


def preload() -> None:
    """What most stages import. Not the project's own modules: they may be edited while a pipeline runs."""
    import accelerate  # noqa: F401
    import cleanfid.fid  # noqa: F401
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import open_clip  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import BertModel, BertTokenizerFast  # noqa: F401


def die_with_parent(signal_number: int, parent: int | None = None) -> None:
    """Ask the kernel to send this process a signal when its parent ends, even by SIGKILL (Linux only).

    parent: the process id that the parent had; if it is gone already, this process exits at once.
    """
    if sys.platform == "linux":
        LIBC.prctl(1, int(signal_number))  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a fork of the server."""
    return [sys.executable, "-m", "splam.warm", module, *arguments]


def start_server(owner: int, environment: dict[str, str]) -> Path:
    """The socket folder of the server of process `owner`, which is started if it does not run yet."""
    folder = Path(tempfile.gettempdir()) / f"splam-{os.getuid()}-{owner}"
    if not _answers(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)  # nobody else may have code run
        server = subprocess.Popen(
            [sys.executable, "-m", "splam.warm", "--serve", str(folder), str(owner)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while server.poll() is None and not _answers(folder):  # it listens before it imports: a moment
            time.sleep(0.02)
    return folder


def _answers(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(folder / "socket"))
        except OSError:
            return False
        return True


# The server


def serve(folder: Path, owner: int) -> None:
    """Fork a process for every request, until process `owner` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener, contextlib.suppress(ProcessLookupError):
        selector.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
        listener.bind(str(folder / "socket"))
        listener.listen(16)
        preload()
        if _has_gpu():  # a GPU that was looked at cannot be used after a fork
            return
        gc.freeze()
        selector.register(listener, selectors.EVENT_READ, "request")
        while True:
            for key, _ in selector.select():
                if key.data == "owner":
                    return
                if key.data == "request":
                    _answer(listener.accept()[0], selector, listener)
                else:
                    _report(key, selector)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _answer(connection: socket.socket, selector: selectors.BaseSelector, listener: socket.socket) -> None:
    """Start what a client asks for, and tell it the process id."""
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 3)
        request = json.loads(_receive(connection, HEADER.unpack(header)[0]))
    except (OSError, struct.error, EOFError):  # a probe, or a client that died
        connection.close()
        return
    pid = os.fork()
    if pid == 0:
        selector.close()
        listener.close()
        _run(request, descriptors, connection)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        connection.sendall(HEADER.pack(pid))
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def _report(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
    """Tell a client the exit status of its process, which has ended."""
    pid, connection = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(HEADER.pack(status))
    connection.close()


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (part := connection.recv(count - len(data))):
            raise EOFError
        data += part
    return data


# The forked process


def _run(request: dict[str, Any], descriptors: list[int], connection: socket.socket) -> None:
    """Become what `python -m MODULE ARGUMENTS` would be in the client's place; does not return."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv, sys.path[:] = [request["module"], *request["arguments"]], request["path"]
        sys.stdout.reconfigure(line_buffering=True)
        threading.Thread(target=_end_with_client, args=(connection,), daemon=True).start()
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with_client(connection: socket.socket) -> None:
    connection.recv(1)  # returns when the client is gone, since it sends no more
    os.kill(os.getpid(), signal.SIGKILL)


# The client


def run(module: str, arguments: list[str]) -> int:
    """Have the server run a module and wait for it; its exit status. Signals are passed on.

    Without a server this process becomes `python -m module arguments`.
    """
    folder = os.environ.get(VARIABLE)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            if not folder:
                raise OSError
            connection.connect(f"{folder}/socket")
            _request(connection, module, arguments)
            pid = HEADER.unpack(_receive(connection, HEADER.size))[0]
        except (OSError, EOFError):
            os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda caught, _: os.kill(pid, caught))
        try:
            status = HEADER.unpack(_receive(connection, HEADER.size))[0]
        except (OSError, EOFError):  # the server is gone, and the process with it
            return 1
    return status if status >= 0 else 128 - status


def _request(connection: socket.socket, module: str, arguments: list[str]) -> None:
    request = {"module": module, "arguments": arguments, "path": sys.path}
    payload = json.dumps(request | {"folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [HEADER.pack(len(payload))], [0, 1, 2])
    connection.sendall(payload)


def main() -> int:
    """The command line."""
    first, *rest = sys.argv[1:]
    if first == "--serve":
        folder = Path(rest[0])
        try:
            serve(folder, int(rest[1]))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return 0
    if parent := os.environ.pop("JPY_PARENT_PID", None):  # the kernel of a notebook
        die_with_parent(signal.SIGKILL, int(parent))
    return run(first, rest)


if __name__ == "__main__":
    sys.exit(main())
