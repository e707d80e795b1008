"""Profiles: conf/profile/NAME.yaml over what it `extends`, composed into params.yaml.

python -m splam.profile tiny [--set training.iterations=20 ...]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from splam.config import PARAMS, ROOT, ParamsError, parse, read_yaml

CONF = ROOT / "conf/profile"


def compose(name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """Profile `name` over what it `extends`, then `a.b=c` overrides: the content of params.yaml.

    Mappings merge, lists replace, and a key set to null is taken out. Raises ParamsError.
    """
    layers, parent = {}, name
    known = ", ".join(sorted(path.stem for path in conf.glob("*.yaml")))
    while parent:
        if parent in layers:
            raise ParamsError(f"profiles extend each other: {' -> '.join([*layers, parent])}")
        layers[parent] = read_yaml(conf / f"{parent}.yaml", f"the profiles are {known}")
        parent = layers[parent].pop("extends", None)
    try:
        merged = OmegaConf.merge(*reversed(layers.values()), OmegaConf.from_dotlist(list(overrides)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ParamsError(f"profile {name}, overrides {' '.join(overrides)}: {error}") from None
    content = {"profile": name} | _without_nulls(OmegaConf.to_container(merged))
    scales = parse(content, f"profile {name}").trajectories.guidance_scales
    content["trajectories"]["guidance_scales"] = [int(w) if w.is_integer() else w for w in scales]  # DVC names files so
    return content


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in content.items() if value is not None}
    return {key: _without_nulls(value) if isinstance(value, dict) else value for key, value in kept.items()}


def asked_for(module: str, about: str, arguments: list[str] | None) -> dict[str, Any]:
    """What a command line, `python -m module PROFILE [--set a.b=c ...]`, composes; a mistake is told and ends it."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("profile", help="a name in conf/profile")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="overrides")
    options = parser.parse_args(arguments)
    try:
        return compose(options.profile, options.set)
    except ParamsError as error:
        sys.exit(str(error))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    content = asked_for("splam.profile", "Compose a profile into params.yaml.", arguments)
    name = content["profile"]
    head = f"# Composed from conf/profile/{name}.yaml by `python -m splam.profile {name}`.\n"
    PARAMS.write_text(head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))
    time = f"; about {content['expected_minutes']:g} minutes from nothing" if "expected_minutes" in content else ""
    print(f"Profile {name}: {content.get('description', '')}, {len(content['runs'])} distillations{time}.")


if __name__ == "__main__":
    main()
