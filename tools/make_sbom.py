"""Writes the bill of materials of an installation of servecap, as CycloneDX JSON.

    python tools/make_sbom.py TARGET [EXTRA,EXTRA...]

A fresh environment is made with what pip installs for servecap (and those extras), and listed by
cyclonedx-py: what a user has, without what only developers need. Names, versions, licences and
what needs what; the serial number and the time are left out, so that the same set gives the same
file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(target: Path, extras: str = "") -> None:
    package = f"{ROOT}[{extras}]" if extras else str(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="servecap-sbom-") as name:
        python = Path(name) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", name], check=True)
        pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", package], check=True)
        subprocess.run([*pip, "uninstall", "--yes", "setuptools"], check=True)
        subprocess.run(
            [
                sys.executable, "-m", "cyclonedx_py", "environment", python,
                "--pyproject", ROOT / "pyproject.toml", "--mc-type", "application",
                "--output-reproducible", "--of", "JSON", "-o", target,
            ],
            check=True,
        )  # fmt: skip
    print(f"written: {target}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
