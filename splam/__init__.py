"""SPLAM, reproduced. To import it sets right, or refuses by name, what the surroundings would change in silence."""

import locale
import os
import sys
from pathlib import Path

# Read by accelerate, torchrun, torch and IPython, behind a profile's back.
FORGOTTEN = ("ACCELERATE_", "PET_", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "PYTHONSTARTUP")
# Left over from another launcher: accelerate would wait for processes that nobody starts, or take another's GPU.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_", "MPI_LOCALRANKID", "OMPI_COMM_", "MV2_COMM_")


def _settle() -> None:
    """Check which code runs, and how, and forget what the environment would have it do. Raises ImportError."""
    own = Path(__file__).resolve()
    near = [place for folder in (Path.cwd(), *Path.cwd().parents) if (place := folder / "splam/__init__.py").is_file()]
    if near and near[0].resolve() != own:
        remedy = f"set PYTHONPATH={near[0].parents[1]} and unset PYTHONSAFEPATH"
        raise ImportError(f"you are in {near[0].parents[1]}, but {own.parent} is imported: {remedy}")
    if not __debug__:
        raise ImportError("python -O (PYTHONOPTIMIZE) skips the checks in the notebooks: unset it")
    if not sys.flags.utf8_mode and locale.getencoding().lower() != "utf-8":
        raise ImportError(f"files here are UTF-8, the locale's encoding is {locale.getencoding()}: set PYTHONUTF8=1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # PYTHONIOENCODING may lack a letter of a caption
    ranked = "TORCHELASTIC_RUN_ID" in os.environ and "splam.stage" not in sys.orig_argv  # torchrun started this
    for name in [name for name in os.environ if name.startswith(FORGOTTEN if ranked else FORGOTTEN + RANKS)]:
        del os.environ[name]


_settle()
