"""Makes DIR a virtual environment with the packages of requirements.txt; does nothing where it is one already.

Usage: python3 prepare.py DIR
"""

import fcntl
import pathlib
import shutil
import subprocess
import sys


def main() -> None:
    environment = pathlib.Path(sys.argv[1])
    requirements = pathlib.Path(__file__).with_name("requirements.txt")
    # Written last: an environment that was left half made is made again.
    mark = environment / "requirements.txt"
    environment.parent.mkdir(parents=True, exist_ok=True)
    # Test processes come at the same time; the lock ends with this process.
    with open(f"{environment}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = f"{sys.version}\n{requirements.read_text()}"
        if mark.is_file() and mark.read_text() == wanted:
            return
        shutil.rmtree(environment, ignore_errors=True)
        python = environment / "bin" / "python"
        run("python3-venv is missing (apt-get install python3-venv)", sys.executable, "-m", "venv", environment)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        run("the package index cannot be reached, or lacks a version", *pip, "-r", requirements)
        mark.write_text(wanted)


def run(reason: str, *command: object) -> None:
    """Runs a command; says why it is likely to have failed if it does."""
    if subprocess.run([str(part) for part in command]).returncode != 0:
        sys.exit(f"no environment for the SDK tests: {reason}; then run them again")


main()
