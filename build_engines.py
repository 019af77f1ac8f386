#!/usr/bin/env python3
"""Weights → engines in model_repository/. All logic is in looprnn; see python build_engines.py
--help.
"""

import sys
from pathlib import Path

from looprnn.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]], root=Path(__file__).parent))
