"""Plays the kubelet for the pod of a Deployment with sluicegate as a native sidecar, on one machine and without a cluster.

Usage: unshare --net --mount --pid --fork --kill-child --mount-proc python pod.py ROOT PROGRAM SCENARIO

ROOT is the image's root file system, PROGRAM a sluicegate that imitates the API, SCENARIO `life` or `rotation`; the manifests come on
stdin. Everything that the kubelet would take from them is taken from them: probes, their ports and periods, order, environment, mounts,
user, grace. What it would do by other means is left out: seccomp, limits of memory and CPU. Prints a line a step; ends with 0 if all held.
"""

import ctypes
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import yaml

HERE = pathlib.Path(__file__).resolve().parent
POD_IP = "192.0.2.7"
API = "api.pod.test"
API_PORT = 9090
OLD, NEW = "cdt_key_of_the_pod_old1", "cdt_key_of_the_pod_new2"
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    root, program, scenario = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    objects = [thing for thing in yaml.safe_load_all(sys.stdin) if thing]
    with tempfile.TemporaryDirectory() as scratch:
        pod = Pod(objects, pathlib.Path(scratch))
        try:
            pod.prepare(root, program)
            {"life": life, "rotation": rotation}[scenario](pod)
        finally:
            pod.stop_everything()


def life(pod: "Pod") -> None:
    pod.start_sidecar()
    require(pod.app is None, "the app starts after the sidecar's startup probe")
    confined(pod)
    pod.start_app()
    wait(lambda: pod.app_calls() >= 5, "the app is served through the sidecar")
    require(pod.probe("livenessProbe") and pod.probe("readinessProbe"), "the probes succeed")
    exec_healthcheck(pod)
    said("probes succeed, the image's own health check too")

    before = pod.used()
    require(before >= 5, f"attempts are counted: {before}")
    pod.sidecar.kill()
    pod.sidecar.wait()
    require(not pod.probe("readinessProbe"), "a dead sidecar is not ready")
    pod.start_sidecar()
    require(pod.used() >= before, "the books outlive a crash of the container")
    said("killed and restarted: the books are kept")
    calls = pod.app_calls()
    wait(lambda: pod.app_calls() > calls, "the app goes on after the restart")

    begun = time.monotonic()
    # Sidecars are told to end when all other containers have.
    pod.app.send_signal(signal.SIGTERM)
    code = pod.app.wait(timeout=pod.grace)
    require(code == 0, f"the app finished its last job through the sidecar: {code}")
    require(pod.sidecar.poll() is None and pod.probe("readinessProbe"), "the sidecar serves until the app has ended")
    pod.sidecar.send_signal(signal.SIGTERM)
    code = pod.sidecar.wait(timeout=max(1, pod.grace - (time.monotonic() - begun)))
    require(code == 0, f"the sidecar drains and ends with 0, not {code}")
    said("ended in order, within the grace period")
    judged(pod)


def rotation(pod: "Pod") -> None:
    """A rotated key is used without a restart, and no call fails meanwhile."""
    pod.start_sidecar()
    pod.start_app()
    wait(lambda: pod.app_calls() >= 3, "the app is served")
    require(pod.keys_seen() == {shown(OLD)}, f"the old key is used: {pod.keys_seen()}")
    pod.publish("keys", {"core-api-key": NEW})
    said("secret swapped")
    wait(lambda: shown(NEW) in pod.keys_seen(), "the new key is used", patience=60)
    require(pod.sidecar.poll() is None, "without a restart")
    require(pod.app_failures() == 0, f"{pod.app_failures()} calls failed")
    pod.app.send_signal(signal.SIGTERM)
    require(pod.app.wait(timeout=pod.grace) == 0, "the app ends well")
    pod.sidecar.send_signal(signal.SIGTERM)
    require(pod.sidecar.wait(timeout=pod.grace) == 0, "the sidecar ends well")
    said("the new key is used, no call failed")
    judged(pod)


def judged(pod: "Pod") -> None:
    stats = pod.ask_api("/_mock/stats")
    require(stats["unauthorized"] == 0, "no call went up without the key")
    require(stats["max_in_window"] <= 60, f"the plan holds across the restart: {stats['max_in_window']}")
    require(stats["refused_rate_429"] == 0 and stats["refused_job_429"] == 0, "the API never had to refuse")
    said("the API saw the key on every call and never too many")


def confined(pod: "Pod") -> None:
    """The process is as the security context says."""
    status = pathlib.Path(f"/proc/{pod.sidecar.pid}/status").read_text()
    field = lambda name: re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE).group(1).split()
    context = pod.ours["securityContext"]
    require(set(field("Uid")) == {str(context["runAsUser"])}, f"uid {field('Uid')}")
    require(set(field("Gid")) == {str(context["runAsGroup"])}, f"gid {field('Gid')}")
    require(field("NoNewPrivs") == ["1"], "it may gain privileges")
    require(int(field("CapEff")[0], 16) == 0 and int(field("CapBnd")[0], 16) == 0, "it has capabilities")
    mounts = pathlib.Path(f"/proc/{pod.sidecar.pid}/mountinfo").read_text().splitlines()
    at = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    require("ro" in at["/"], "its root can be written")
    require("ro" in at["/run/secrets/sluicegate"] and "rw" in at["/var/lib/sluicegate"], f"mounts: {at}")
    require(os.listdir(pod.volume_path("sluicegate-state")), "its state lies in the volume")
    said("runs as nobody, without capabilities, on a root that cannot be written")


def exec_healthcheck(pod: "Pod") -> None:
    command = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile(), re.MULTILINE).group(1))
    done = pod.run_inside(command).communicate(timeout=10)[0]
    require(done == b"ready\n", f"the image's health check says {done}")


class Pod:
    def __init__(self, objects: list, scratch: pathlib.Path) -> None:
        self.maps = {thing["metadata"]["name"]: thing["data"] for thing in objects if thing["kind"] == "ConfigMap"}
        deployment = next(thing for thing in objects if thing["kind"] == "Deployment")
        self.spec = deployment["spec"]["template"]["spec"]
        self.ours = next(each for each in self.spec["initContainers"] if each["name"] == "sluicegate")
        self.grace = self.spec["terminationGracePeriodSeconds"]
        self.scratch, self.root = scratch, scratch / "root"
        self.sidecar = self.app = None
        self.processes, self.mounts = [], []

    def prepare(self, root: pathlib.Path, program: str) -> None:
        self.network()
        api = [program, "mock", "--listen", f"127.0.0.1:{API_PORT}", "--run-time", "500ms"]
        self.processes.append(subprocess.Popen([*api, "--key", OLD, "--key", NEW], stdout=subprocess.DEVNULL))
        wait(lambda: self.ask_api("/_mock/stats") is not None, "the API is there")
        self.mount(root)

    # ---- What the kubelet prepares --------------------------------------------------------------------------------------

    def network(self) -> None:
        run("ip", "link", "set", "lo", "up")
        # Probes come to the pod's address, not to loopback.
        run("ip", "address", "add", f"{POD_IP}/32", "dev", "lo")
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind(("127.0.0.1", 53))
        threading.Thread(target=serve_names, args=[names], daemon=True).start()

    def mount(self, image: pathlib.Path) -> None:
        """The image, read-only, with volumes over it and the files that every container gets."""
        for name in ("hosts", "resolv.conf"):
            (image / "etc" / name).touch()
        self.root.mkdir()
        self.bind(image, self.root, read_only=True)
        (self.scratch / "hosts").write_text(f"127.0.0.1 localhost\n{POD_IP} pod\n")
        (self.scratch / "resolv.conf").write_text("nameserver 127.0.0.1\noptions ndots:5\nsearch default.svc.cluster.local\n")
        for name in ("hosts", "resolv.conf"):
            self.bind(self.scratch / name, self.root / "etc" / name)
        self.bind("/proc", self.root / "proc")
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in self.ours["volumeMounts"]:
            self.fill(volumes[mount["name"]])
            at = self.root / mount["mountPath"].lstrip("/")
            self.bind(self.volume_path(mount["name"]), at, read_only=mount.get("readOnly", False))

    def bind(self, what: object, at: pathlib.Path, read_only: bool = False) -> None:
        run("mount", "--bind", what, at)
        self.mounts.append(at)
        if read_only:
            run("mount", "-o", "remount,ro,bind", at)

    def fill(self, volume: dict) -> None:
        path, group = self.volume_path(volume["name"]), self.spec["securityContext"]["fsGroup"]
        path.mkdir()
        if "emptyDir" in volume:
            os.chown(path, 0, group)
            path.chmod(0o2777)
        elif "configMap" in volume:
            self.publish_at(path, self.maps[volume["configMap"]["name"]], 0o644, group)
        else:
            self.publish_at(path, {"core-api-key": OLD}, volume["secret"]["defaultMode"], group)

    def volume_path(self, name: str) -> pathlib.Path:
        return self.scratch / f"volume-{name}"

    def publish(self, ending: str, files: dict) -> None:
        """New content for the secret volume whose name ends so."""
        volume = next(each for each in self.spec["volumes"] if each["name"].endswith(ending))
        group = self.spec["securityContext"]["fsGroup"]
        self.publish_at(self.volume_path(volume["name"]), files, volume["secret"]["defaultMode"], group)

    def publish_at(self, path: pathlib.Path, files: dict, mode: int, group: int) -> None:
        """As the kubelet's atomic writer: a new directory, then the link `..data` swapped by a rename."""
        fresh = path / f"..{time.time_ns()}"
        fresh.mkdir()
        for name, text in files.items():
            file = fresh / name
            file.write_text(text)
            os.chown(file, 0, group)
            file.chmod(mode)
        link = path / "..data_tmp"
        link.symlink_to(fresh.name)
        old = (path / "..data").resolve() if (path / "..data").is_symlink() else None
        link.rename(path / "..data")
        for name in files:
            if not (path / name).is_symlink():
                (path / name).symlink_to(f"..data/{name}")
        if old:
            subprocess.run(["rm", "-r", old], check=True)

    # ---- What it starts -------------------------------------------------------------------------------------------------

    def start_sidecar(self) -> None:
        entrypoint = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", dockerfile(), re.MULTILINE).group(1))
        self.sidecar = self.run_inside(entrypoint + self.ours["args"])
        probe = self.ours["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            time.sleep(probe["periodSeconds"])
            require(self.sidecar.poll() is None, "the sidecar ended before it was ready")
            if self.probe("startupProbe"):
                said("the sidecar has started")
                return
        require(False, "the startup probe never succeeded")

    def run_inside(self, command: list) -> subprocess.Popen:
        env = dict(re.findall(r"^ENV (\w+)=(\S+)$", dockerfile(), re.MULTILINE))
        env |= {entry["name"]: entry["value"] for entry in self.ours.get("env", [])}
        # The only difference from the real thing: another API.
        env |= {"SLUICEGATE_UPSTREAM_URL": f"http://{API}:{API_PORT}", "SLUICEGATE_UPSTREAM_ALLOW_PLAIN_HTTP": "true"}
        context, group = self.ours["securityContext"], self.spec["securityContext"]["fsGroup"]

        def confine() -> None:
            os.chroot(self.root)
            os.chdir("/")
            for capability in range(64):
                libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
            os.setgroups([group])
            os.setgid(context["runAsGroup"])
            os.setuid(context["runAsUser"])
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

        started = subprocess.Popen(command, env=env, preexec_fn=confine, stdout=subprocess.PIPE)
        self.processes.append(started)
        return started

    def probe(self, name: str) -> bool:
        probe = self.ours[name]
        ports = {port["name"]: port["containerPort"] for port in self.ours["ports"]}
        asked = probe["httpGet"]
        url = f"http://{POD_IP}:{ports[asked['port']]}{asked['path']}"
        try:
            with urllib.request.urlopen(url, timeout=probe.get("timeoutSeconds", 1)) as answer:
                return 200 <= answer.status < 400
        except (OSError, urllib.error.URLError):
            return False

    def start_app(self) -> None:
        app = self.spec["containers"][0]
        env = {"PATH": os.environ["PATH"], "CALLS": str(self.scratch / "calls"), "FAILURES": str(self.scratch / "failures")}
        for source in app.get("envFrom", []):
            env |= self.maps[source["configMapRef"]["name"]]
        self.app = subprocess.Popen([sys.executable, HERE / "app.py"], env=env)
        self.processes.append(self.app)

    def stop_everything(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        # Before the directory is removed: what is mounted there is not ours to remove.
        for at in reversed(self.mounts):
            run("umount", at)

    # ---- What can be seen -----------------------------------------------------------------------------------------------

    def app_calls(self) -> int:
        return lines(self.scratch / "calls")

    def app_failures(self) -> int:
        return lines(self.scratch / "failures")

    def used(self) -> int:
        with urllib.request.urlopen("http://127.0.0.1:8788/api/v1/status", timeout=5) as answer:
            return json.load(answer)["accounts"][0]["requests"]["used"]

    def keys_seen(self) -> set:
        return {seen["key"] for seen in self.ask_api("/_mock/requests?tail=10")}

    def ask_api(self, path: str) -> object:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{API_PORT}{path}", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None


def serve_names(names: socket.socket) -> None:
    """A name server that knows one name (RFC 1035)."""
    while True:
        query, asker = names.recvfrom(512)
        end = 12
        while query[end]:
            end += query[end] + 1
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += query[at] + 1
        kind = struct.unpack(">H", query[end + 1 : end + 3])[0]
        known = ".".join(labels) == API
        answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x7f\x00\x00\x01" if known and kind == 1 else b""
        flags = 0x8580 if known else 0x8583
        head = query[:2] + struct.pack(">HHHHH", flags, 1, 1 if answer else 0, 0, 0)
        names.sendto(head + query[12 : end + 5] + answer, asker)


def shown(key: str) -> str:
    """As the imitated API lists keys."""
    return f"...{key[-4:]}"


def dockerfile() -> str:
    return (HERE.parent.parent / "Dockerfile").read_text()


def lines(file: pathlib.Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def wait(holds, what: str, patience: float = 30) -> None:
    end = time.monotonic() + patience
    while not holds():
        require(time.monotonic() < end, f"in vain: {what}")
        time.sleep(0.05)


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def require(holds: object, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def said(what: str) -> None:
    print(what, flush=True)


main()
