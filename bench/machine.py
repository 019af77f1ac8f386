"""What figures were measured on."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, Python, this commit, and the versions of the packages."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "cpu": ", ".join(sorted(names)),
        "cores": len([line for line in lines if line.startswith("processor")]),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        **{package: version(package) for package in packages},
    }


def sentence(here: dict[str, Any]) -> str:
    """The machine in a line, for the foot of a table or plot."""
    return f"{here['cpu']}, {here['cores']} cores, Python {here['python']}"
