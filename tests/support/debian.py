"""Programs that tests need beside Python's. `python -m tests.support.debian PROGRAM...` installs them.

Programs are Debian packages of the same name.
"""

import os
import shutil
import subprocess
import sys

import pytest


def may_install() -> bool:
    """Whether we are root on Debian."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def must_be_there() -> bool:
    """Whether a missing program is a failure: where it could have been installed, and in CI."""
    return may_install() or bool(os.environ.get("CI"))


def install(*packages: str) -> bool:
    """Install Debian packages; whether it worked."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=environment)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    return subprocess.run(command, check=False, env=environment).returncode == 0


def need(program: str) -> None:
    """Fail the test without the program where it has to be there, skip it elsewhere."""
    if shutil.which(program) is None:
        why = f"no {program}; apt-get install {program}"
        pytest.fail(why) if must_be_there() else pytest.skip(why)


def main(programs: list[str]) -> int:
    """Install what is missing and may be installed; 1 when something has to be there and is not."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and may_install():
        install(*missing)
    missing = [program for program in missing if shutil.which(program) is None]
    sys.stdout.write(f"programs: {', '.join(programs)}; missing: {', '.join(missing) or 'none'}\n")
    return int(bool(missing) and must_be_there())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
