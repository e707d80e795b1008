"""What code reaches, read from its imports."""

import ast
import json
from functools import cache
from pathlib import Path

from splam.config import ROOT


@cache
def imports(path: Path) -> set[str]:
    """The modules of the package that a file or notebook imports, wherever in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(source_of(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("splam.") and file_of(name)}


def file_of(module: str) -> Path | None:
    """The file of a module or package; None if there is none of this name."""
    place = ROOT.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def source_of(path: Path) -> str:
    """The Python source of a file or a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def closure(path: Path) -> set[str]:
    """All modules of the package that a file or notebook reaches."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        new = imports(waiting.pop()) - found
        found |= new
        waiting += [file_of(module) for module in new]
    return found


def room(module: str) -> str:
    """The folder of the package that a module lies in, or its own file: splam/method, splam/config.py."""
    parts = module.split(".")[:2]
    return "/".join(parts) + ("" if ROOT.joinpath(*parts).is_dir() else ".py")
