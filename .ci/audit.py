"""Are there known faults in what is locked? Asks PyPI's table of advisories, through pip-audit.

Ends with 0 where every package was looked up and nothing is known, 1 where something is known, 75 (try again) where the service
could not be asked or does not know a package: that was not audited then, which is not the same as fine. pip-audit itself ends
with 0 when it finds no package at all.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

NOT_AUDITED = 75
ROOT = Path(__file__).parents[1]


def pins() -> str:
    """The lock, and torch, which is not in it."""
    (torch,) = (line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line.startswith("torch=="))
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    return "\n".join([torch, *(line.rstrip(" \\") for line in lock.splitlines() if "==" in line)]) + "\n"


def ask() -> subprocess.CompletedProcess[str]:
    """What pip-audit says of the pins, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text(pins(), "utf-8")
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
        return subprocess.run([*command, "-r", str(listed)], capture_output=True, text=True, check=False)


def main() -> int:
    """Ask, and tell what is known."""
    said = ask()
    try:
        packages = json.loads(said.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        last = next((line.strip() for line in reversed(said.stderr.splitlines()) if line.strip()), "it said nothing")
        return _not_audited(f"pip-audit could not ask ({last[:200]})")
    known = [(p, v) for p in packages for v in p.get("vulns", ())]
    for package, fault in known:
        mended = ", ".join(fault.get("fix_versions", ())) or "no version yet"
        sys.stdout.write(f"{package['name']} {package['version']}: {fault['id']}, mended in {mended}\n")
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    sys.stdout.write(f"{len(packages) - len(skipped)} packages looked up, {len(known)} known faults\n")
    if known:
        return 1
    if skipped or not packages:
        few = ", ".join(skipped[:5]) + (f" and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        return _not_audited(f"the service does not know {few or 'any package'}")
    return 0


def _not_audited(why: str) -> int:
    sys.stderr.write(f"NOT AUDITED: {why}. This is not the same as fine: try again where PyPI's service can be reached.\n")
    return NOT_AUDITED


if __name__ == "__main__":
    sys.exit(main())
