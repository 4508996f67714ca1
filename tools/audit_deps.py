"""Looks for known vulnerabilities of what servecap and its extras install here.

    python tools/audit_deps.py

pip-audit asks a public service. Exit code 0: asked, and nothing is known; 1: something is known;
2: the service did not answer for all packages. An answer that was not had is never shown as clean.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="servecap-audit-") as name:
        target = Path(name) / "audit.json"
        words = [
            "--format",
            "json",
            "--output",
            target,
            "--progress-spinner",
            "off",
            "--timeout",
            "10",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--skip-editable", *words],
            text=True,
            capture_output=True,
            check=False,
        )
        if not target.exists():
            last = (done.stderr.strip().splitlines() or ["no word why"])[-1]
            print(f"not audited: the vulnerability service did not answer ({last[:300]})")
            return 2
        told = json.loads(target.read_text())["dependencies"]
    return said(told)


def said(told: list[dict[str, Any]]) -> int:
    """Prints what pip-audit told of each dependency; the exit code.

    A service that knows none of the names (a mirror that has packages, but no advisories) makes
    pip-audit skip them and end well: here that is not an audit.
    """
    unknown = [item for item in told if "skip_reason" in item and item["name"] != "servecap"]
    asked = [item for item in told if "skip_reason" not in item]
    found = 0
    for item in asked:
        for one in item["vulns"]:
            found += 1
            fixed = ", ".join(one["fix_versions"]) or "none yet"
            print(f"{item['name']} {item['version']}: {one['id']} (fixed in: {fixed})")
    if unknown:
        print(
            f"{'partly ' if asked else ''}not audited: nothing was told of {len(unknown)} of "
            f"{len(asked) + len(unknown)} packages ({unknown[0]['skip_reason']})"
        )
    print(f"{len(asked)} packages were looked up, {found} vulnerabilities are known")
    if found:
        return 1
    return 2 if unknown or not asked else 0


if __name__ == "__main__":
    sys.exit(main())
