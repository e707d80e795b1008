"""The active profile in the terminal, or its executed notebooks as pages: `python -m splam.report [--html]`."""

import argparse

from splam.config import ROOT, load_params
from splam.report.metrics import load_metrics
from splam.report.page import build, notebooks_to_html, summary

parser = argparse.ArgumentParser(prog="python -m splam.report", description=__doc__)
parser.add_argument("--html", action="store_true", help="write build/executed as reports/PROFILE/html")
options, params = parser.parse_args(), load_params()
folder = ROOT / "reports" / params.profile
if options.html:
    notebooks_to_html(ROOT / "build/executed", folder / "html")
else:
    print(summary(build(params, load_metrics(folder / "metrics"))), f"report: {folder / 'index.html'}", sep="\n")
