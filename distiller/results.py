#!/usr/bin/env python
"""Rows of docs/results from finished runs: `python distiller/results.py --table docs/results/star.csv exp/star ...`.

A run that the table has (same command, commit and time) has its row brought up to date. All is copied from report.json.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.reports.results import append, row
from upstream.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("outputs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--table", type=Path, required=True, help="CSV file that gets a row for each")
    options = parser.parse_args()
    try:
        added = append(options.table, [row(output) for output in options.outputs])
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{added} of {len(options.outputs)} runs added to {options.table}")


if __name__ == "__main__":
    main()
