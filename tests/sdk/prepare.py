"""Makes DIR the environment of the tests with SDKs, or of a tool; does nothing where it is one already.

Usage: python3 prepare.py python DIR [FILE]   a virtual environment with the packages of requirements.txt, or of FILE
       python3 prepare.py node DIR            a directory with the packages of package-lock.json in node_modules
"""

import fcntl
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def main() -> None:
    kind, environment = sys.argv[1], pathlib.Path(sys.argv[2])
    kinds = {"python": (python_version, "requirements.txt", python), "node": (node_version, "package-lock.json", node)}
    version, wanted, make = kinds[kind]
    wanted = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else HERE / wanted
    # Written last: an environment that was left half made is made again.
    mark = environment / "made-of.txt"
    environment.parent.mkdir(parents=True, exist_ok=True)
    # Test processes come at the same time; the lock ends with this process.
    with open(f"{environment}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made_of = f"{version()}\n{wanted.read_text()}"
        if mark.is_file() and mark.read_text() == made_of:
            return
        shutil.rmtree(environment, ignore_errors=True)
        make(environment, wanted)
        mark.write_text(made_of)


def python_version() -> str:
    return sys.version


def python(environment: pathlib.Path, wanted: pathlib.Path) -> None:
    python = environment / "bin" / "python"
    run("python3-venv is missing (apt-get install python3-venv)", sys.executable, "-m", "venv", environment)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    run("the package index cannot be reached, or lacks a version", *pip, "-r", wanted)


def node_version() -> str:
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            sys.exit(f"no environment in {sys.argv[2]}: {tool} is missing (apt-get install nodejs npm)")
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout


def node(environment: pathlib.Path, _: pathlib.Path) -> None:
    environment.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(HERE / file, environment)
    npm = ["npm", "ci", "--prefix", environment, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    run("the package registry cannot be reached, or lacks a version", *npm)


def run(reason: str, *command: object) -> None:
    """Runs a command; says why it is likely to have failed if it does."""
    if subprocess.run([str(part) for part in command], stdout=sys.stderr).returncode != 0:
        sys.exit(f"no environment in {sys.argv[2]}: {reason}; then run it again")


main()
