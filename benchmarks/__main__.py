"""`python -m benchmarks [NAME ...]`: all benchmarks or some, then the table in benchmarks/README.md."""

import argparse
import json

import pandas as pd
import torch

from benchmarks import images, training
from benchmarks.compare import FOLDER, ROOT, write

START, END = "<!-- table: make bench writes it -->\n", "<!-- end of the table -->\n"


def repro() -> None:
    """Write repro.csv from what stages recorded when they ended: seconds, and how full two lanes and cores were."""
    found, times = [], ROOT / "build/times"
    for file in times.glob("*.json"):
        record = json.loads(file.read_text()) | {"end": file.stat().st_mtime}
        found += [record | {"kind": kind} for kind in (file.stem.partition("-")[0], "all")]
    if not found:
        print(f"{times} has no records: run make repro first; repro.csv stays as it is.")
        return
    names = ["seconds", "imports", "computing", "cpu"]  # older records have the first alone
    stages = pd.DataFrame(found, columns=["kind", "end", *names]).assign(start=lambda row: row.end - row.seconds)
    kinds = stages.groupby("kind")
    table, span = kinds[names].sum(skipna=False), kinds.end.max() - kinds.start.min()
    table = table.assign(stages=kinds.size(), span=span, timed="wall time, recorded by splam.stage")
    table = table.assign(lanes_full=table.seconds / span / 2, cores_busy=table.cpu / span / 2)
    write("repro", table.reset_index().to_dict("records"))


BENCHMARKS = {b.__name__: b for b in (training.step, training.sweep, images.sampling, images.evaluation)}
BENCHMARKS |= {"repro": repro, "growth": training.growth}


def table() -> str:
    """All ratios of the CSVs as Markdown, with what they were measured on."""
    parts, shown = [], ["what", "median", "q1", "q3", "rounds", "aim", "met"]
    for path in [FOLDER / f"{name}.csv" for name in BENCHMARKS if name != "repro"]:
        rows = pd.read_csv(path, keep_default_na=False)
        parts.append(f"\n**{path.stem}** ({rows.timed[0]}; {rows.machine[0]}; commit {rows.commit[0]})\n")
        parts.append(rows[shown].to_markdown(index=False, disable_numparse=True))
    return "\n".join(parts) + "\n\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    for name in parser.parse_args().names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        torch.manual_seed(0)
        BENCHMARKS[name]()
    before, rest = (FOLDER / "README.md").read_text().split(START)
    (FOLDER / "README.md").write_text(before + START + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
