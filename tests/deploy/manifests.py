"""Checks manifests on stdin: the API's schemas, unknown fields refused, and what is promised of every pod with sluicegate.

Usage: python manifests.py SLUICEGATE VERSION

SLUICEGATE is the program, which checks the configuration that the manifests carry; VERSION is its own. Prints a line an object.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

import kubernetes_validate
import yaml

# The first with native sidecars and sleep in preStop, both without feature gates; and the newest known.
VERSIONS = ["1.30", "1.37"]
SECRETS = "/run/secrets/sluicegate"
MIB = 1 << 20
UNITS = {"KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30, "Ki": 1 << 10, "Mi": MIB, "Gi": 1 << 30}


def main() -> None:
    program, version = sys.argv[1:]
    objects = [thing for thing in yaml.safe_load_all(sys.stdin) if thing]
    for thing in objects:
        name = f"{thing['kind']}/{thing['metadata']['name']}"
        for kubernetes in VERSIONS:
            try:
                kubernetes_validate.validate(thing, kubernetes, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"{name}: {'.'.join(map(str, error.path))}: {error.message} (Kubernetes {kubernetes})")
        print(name)
    pods = [thing for thing in objects if thing["kind"] == "Deployment"]
    require(pods, "no Deployment")
    for deployment in pods:
        check(deployment, objects, program, version)


def require(holds: object, otherwise: str) -> None:
    if not holds:
        sys.exit(otherwise)


def check(deployment: dict, objects: list, program: str, version: str) -> None:
    spec = deployment["spec"]["template"]["spec"]
    sidecars = spec.get("initContainers", [])
    ours = [container for container in [*sidecars, *spec["containers"]] if container["name"] == "sluicegate"]
    require(len(ours) == 1, "one container is sluicegate's")
    ours = ours[0]
    for container in [*sidecars, *spec["containers"]]:
        restricted(container)
    require(spec["automountServiceAccountToken"] is False, "no token of the cluster's in the pod")
    require(ours["image"].endswith(f":{version}"), f"{ours['image']} is not version {version}")
    if ours in sidecars:
        require(ours["restartPolicy"] == "Always", "a native sidecar is one that restarts")
    mounted = volumes(ours, spec)
    text = configuration(mounted, objects)
    probes(ours, tomllib.loads(text))
    accepted(text, mounted, program)
    time_and_memory(ours, spec, tomllib.loads(text), ours in sidecars)


def restricted(container: dict) -> None:
    """The `restricted` level of the Pod Security Standards, and a root that cannot be written."""
    name, context = container["name"], container["securityContext"]
    require(context["runAsNonRoot"] is True and context["runAsUser"] > 0, f"{name} runs as root")
    require(context["allowPrivilegeEscalation"] is False, f"{name} may gain privileges")
    require(context["capabilities"] == {"drop": ["ALL"]}, f"{name} keeps capabilities")
    require(context["seccompProfile"] == {"type": "RuntimeDefault"}, f"{name} has no seccomp profile")
    require(context["readOnlyRootFilesystem"] is True, f"{name} can write its root")
    require("privileged" not in context and "memory" in container["resources"]["limits"], f"{name} has no limits")


def volumes(ours: dict, spec: dict) -> dict:
    """The volume at each mount."""
    by_name = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {mount["mountPath"]: by_name[mount["name"]] for mount in ours["volumeMounts"]}
    for mount in ours["volumeMounts"]:
        # What is mounted so never changes again: a rotated key would not be seen.
        require("subPath" not in mount and "subPathExpr" not in mount, f"{mount['mountPath']} is mounted by subPath")
    require("secret" in mounted[SECRETS], f"no Secret at {SECRETS}")
    require(mounted[SECRETS]["secret"]["defaultMode"] & 0o027 == 0, "others may read the keys")
    require(spec["securityContext"]["fsGroup"] == ours["securityContext"]["runAsGroup"], "the keys' group is another")
    return mounted


def configuration(mounted: dict, objects: list) -> str:
    """proxy.toml out of the ConfigMap that is mounted."""
    name = mounted["/etc/sluicegate"]["configMap"]["name"]
    maps = [thing for thing in objects if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] == name]
    require(maps, f"no ConfigMap {name}")
    return maps[0]["data"]["proxy.toml"]


def probes(ours: dict, config: dict) -> None:
    port = int(config["admin"]["health_listen"].rpartition(":")[2])
    named = {port["name"]: port["containerPort"] for port in ours["ports"]}
    for probe, path in [("startupProbe", "/readyz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
        asked = ours[probe]["httpGet"]
        require(asked["path"] == path and named[asked["port"]] == port, f"{probe} asks the wrong place")
    require(ours["args"] == ["run", "--config", "/etc/sluicegate/proxy.toml"], "the configuration is named")


def accepted(text: str, mounted: dict, program: str) -> None:
    """The program takes the configuration, with secrets in a directory of ours."""
    with tempfile.TemporaryDirectory() as scratch:
        secrets = pathlib.Path(scratch) / "secrets"
        secrets.mkdir()
        for name in re.findall(rf'"{SECRETS}/([^"]+)"', text):
            (secrets / name).write_text(f"value-of-{name}")
            (secrets / name).chmod(0o600)
        file = pathlib.Path(scratch) / "proxy.toml"
        file.write_text(text.replace(SECRETS, str(secrets)))
        file.chmod(0o600)
        checked = subprocess.run([program, "check", "--config", file], capture_output=True, text=True)
        require(checked.returncode == 0, f"the program refuses the configuration:\n{checked.stderr}")
    require(tomllib.loads(text)["state"]["path"] in mounted, "the state directory is no volume")


def time_and_memory(ours: dict, spec: dict, config: dict, sidecar: bool) -> None:
    drain = int(config["server"]["drain_timeout"].removesuffix("s"))
    before = ours.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    # Beside an app, the time that the app takes to end comes first.
    need = before + drain + (30 if sidecar else 2)
    require(spec["terminationGracePeriodSeconds"] >= need, f"killed before it has drained: needs {need} s")
    limit, buffer = size(ours["resources"]["limits"]["memory"]), size(config["server"]["buffer"])
    require(limit >= buffer + 256 * MIB, "bodies that wait do not fit the memory")


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()
    return int(number) * UNITS[unit]


main()
