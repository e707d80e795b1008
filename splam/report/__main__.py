"""A profile's results in the terminal, or executed notebooks as pages.

python -m splam.report tiny
python -m splam.report html --executed build/executed --out reports/tiny/html
"""

import argparse
from pathlib import Path

from splam.config import ROOT, load_params
from splam.report.html import notebooks_to_html
from splam.report.metrics import load_metrics
from splam.report.page import build, summary


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m splam.report", description=__doc__.splitlines()[0])
    parser.add_argument("what", help="a profile, or html")
    parser.add_argument("--executed", type=Path, help="of html: the folder of executed notebooks")
    parser.add_argument("--out", type=Path, help="of html: the folder of the pages")
    options = parser.parse_args(arguments)
    if options.what == "html":
        print(f"{len(notebooks_to_html(options.executed, options.out))} pages: {options.out / 'index.html'}")
        return
    folder, params = ROOT / "reports" / options.what, load_params()
    if params.profile != options.what:
        parser.error(f"params.yaml is of {params.profile}: compose it by `python -m splam.profile {options.what}`")
    print(summary(build(params, load_metrics(folder / "metrics"))), f"report: {folder / 'index.html'}", sep="\n")


if __name__ == "__main__":
    main()
