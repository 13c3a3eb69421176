"""The description of the machine, and small helpers that the parts of the suite share."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = (
    "sdesamplers",
    "torch",
    "diffusers",
    "numpy",
    "scipy",
    "torchdiffeq",
    "torchsde",
    "k-diffusion",
    "azula",
)
"""Distributions whose versions a report states; the last four are peers and may be missing."""
NOT_RUN = 77
"""Exit code of a part that cannot run here; the last line printed is the reason (77 as in automake's test driver)."""


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in lines_of(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def lines_of(file: Path) -> list[str]:
    """The lines of a file; an empty list if it does not exist."""
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []


def memory(field: str = "MemTotal") -> float | None:
    """A field of /proc/meminfo in bytes; None if the system does not have it."""
    for line in lines_of(Path("/proc/meminfo")):
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    return None


def version(package: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, date and versions."""
    total = memory()
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "ram_gib": None if total is None else round(total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def sentence(facts: dict[str, Any]) -> str:
    """The description of the machine as a sentence."""
    ram = "unknown memory" if facts["ram_gib"] is None else f"{facts['ram_gib']} GiB of memory"
    load = "" if facts["load"] is None else f", load {facts['load']} at the start"
    installed = ", ".join(f"{name} {found}" for name, found in facts["versions"].items() if found)
    missing = ", ".join(name for name, found in facts["versions"].items() if not found)
    not_installed = f"; not installed: {missing}" if missing else ""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {ram}, {facts['system']}{load}; {facts['date']}. "
        f"Python {facts['python']}, {installed}{not_installed}."
    )


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def target(what: str, measured: float, limit: float) -> dict[str, Any]:
    """A measurement with its required upper bound, for the summary of the suite."""
    return {"what": what, "measured": measured, "limit": limit, "met": bool(measured <= limit)}


def write(out: Path, name: str, facts: dict[str, Any], text: str) -> None:
    """Write NAME.json and NAME.md into the folder `out`, and print the text."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
