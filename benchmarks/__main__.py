"""`python -m benchmarks [NAME ...]`: all benchmarks or some, then the table in benchmarks/README.md."""

import argparse
import json
from pathlib import Path

import pandas as pd

from benchmarks import images, training
from benchmarks.compare import FOLDER, ROOT, Row, provenance

START, END = "<!-- table: make bench writes it -->\n", "<!-- end of the table -->\n"


def repro(times: Path = ROOT / "build/times") -> None:
    """Write repro.csv from what the stages of `make repro` have recorded, each when it ended; nothing is run again."""
    found = []
    for file in times.glob("*.json"):
        record, end = json.loads(file.read_text()), file.stat().st_mtime
        found.append({"kind": file.stem.partition("-")[0], "start": end - record["seconds"], "end": end} | record)
    if not found:
        print(f"{times} has no records: run make repro first; repro.csv stays as it is.")
        return
    stages = pd.DataFrame(found)
    rows = [row_of(kind, group) for kind, group in stages.groupby("kind")] + [row_of("all", stages)]
    facts = provenance() | {"timed": "wall time, recorded by splam.stage"}
    table = pd.DataFrame([row | facts for row in rows]).round(2)
    table.to_csv(FOLDER / "repro.csv", index=False)
    print(table.drop(columns=[*facts]).to_string(index=False))


def row_of(kind: str, stages: pd.DataFrame) -> Row:
    """Sums over some stages, in seconds, and how full two lanes and two cores were from the first to the last."""
    span, seconds = stages.end.max() - stages.start.min(), stages.seconds.sum()
    row: Row = {"kind": kind, "stages": len(stages), "seconds": seconds, "span": span, "lanes_full": seconds / span / 2}
    if "cpu" in stages and stages.cpu.notna().all():  # older records have `seconds` alone
        imports, computing, cpu = (stages[name].sum() for name in ("imports", "computing", "cpu"))
        row |= {"starting": seconds - imports - computing, "imports": imports, "computing": computing, "cpu": cpu}
        row |= {"waiting": max(seconds - cpu, 0.0), "cores_busy": cpu / span / 2}  # for a core, or the disk
    return row


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
    names = parser.parse_args().names
    provenance()  # of the code that was there at the start
    for name in names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        BENCHMARKS[name]()
    before, rest = (FOLDER / "README.md").read_text().split(START)
    (FOLDER / "README.md").write_text(before + START + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
