//! What is shipped for clusters and containers: manifests, the chart, the image, and the pod that they make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::patience::PATIENCE;
use crate::support::program::{Ended, PROGRAM, Place, ended};
use crate::tools::{python, tool};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).expect(name)
}

/// What kustomize makes of a directory below deploy/kubernetes.
async fn kustomized(name: &str) -> String {
    let directory = format!("deploy/kubernetes/{name}");
    let Ended { code, out, err } = ended(&mut tool("kubectl", &["kustomize", &directory]).await).await;
    assert_eq!(code, Some(0), "{name}: {err}");
    out
}

/// What Helm makes of the chart with these values.
async fn charted(values: &[&str]) -> Ended {
    let arguments = ["template", "team", "deploy/helm/sluicegate", "--namespace", "ai"];
    ended(tool("helm", &arguments).await.args(values)).await
}

/// Runs a program with this on its stdin.
async fn with_input(mut command: Command, input: &str) -> Ended {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // It may end before it has read everything.
    let write = tokio::spawn(async move { drop(stdin.write_all(input.as_bytes()).await) });
    let output = tokio::time::timeout(PATIENCE * 2, child.wait_with_output()).await.expect("ends");
    write.await.expect("no panic");
    output.expect("waited for").into()
}

async fn checked(manifests: &str) -> Ended {
    with_input(python(&["tests/deploy/manifests.py", PROGRAM, VERSION]).await, manifests).await
}

// ---- Manifests ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn manifests_hold_to_the_schemas_and_to_what_is_promised() {
    for (name, objects) in [("example", 3), ("server", 7)] {
        let Ended { code, out, err } = checked(&kustomized(name).await).await;
        assert_eq!((code, out.lines().count()), (Some(0), objects), "{name}: {out}{err}");
    }
}

#[tokio::test]
async fn the_component_puts_a_native_sidecar_only_where_it_is_asked_for() {
    let place = Place::new();
    let app = read("deploy/kubernetes/example/app.yaml");
    let other =
        app.replace("name: app\n  labels: { app: app, sluicegate: sidecar }", "name: other\n  labels: { app: app }");
    assert_ne!(app, other);
    for directory in ["sidecar", "example"] {
        fs::create_dir(place.join(directory)).expect("made");
    }
    for file in ["kustomization.yaml", "patch.yaml", "proxy.toml"] {
        fs::write(place.join("sidecar").join(file), read(&format!("deploy/kubernetes/sidecar/{file}")))
            .expect("written");
    }
    fs::write(place.join("example/app.yaml"), &app).expect("written");
    fs::write(place.join("example/other.yaml"), other).expect("written");
    let both = read("deploy/kubernetes/example/kustomization.yaml").replace("[app.yaml]", "[app.yaml, other.yaml]");
    fs::write(place.join("example/kustomization.yaml"), both).expect("written");
    let directory = place.join("example").display().to_string();
    let made = ended(&mut tool("kubectl", &["kustomize", &directory]).await).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let deployments: Vec<&str> =
        made.out.split("\n---\n").filter(|object| object.contains("kind: Deployment")).collect();
    assert_eq!(deployments.len(), 2, "{}", made.out);
    let with: Vec<bool> = deployments.iter().map(|object| object.contains("restartPolicy: Always")).collect();
    assert_eq!(with, [true, false], "{}", made.out);
}

#[tokio::test]
async fn the_check_of_manifests_notices_what_is_wrong() {
    let (example, server) = (kustomized("example").await, kustomized("server").await);
    assert!(checked(&example).await.code == Some(0) && checked(&server).await.code == Some(0));
    for (good, from, to, said) in [
        (&example, "readOnlyRootFilesystem: true", "readOnlyRootFilesytem: true", "readOnlyRootFilesytem"),
        (&example, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "can write its root"),
        (&example, "restartPolicy: Always", "restartPolicy: OnFailure", "restarts"),
        (&example, "runAsUser: 65532", "runAsUser: 0", "runs as root"),
        (&example, "          - ALL", "          - NET_RAW", "keeps capabilities"),
        (&example, "type: RuntimeDefault", "type: Unconfined", "seccomp"),
        (&example, "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 30", "killed before"),
        (&example, "path: /livez", "path: /", "asks the wrong place"),
        (&example, "containerPort: 8789", "containerPort: 8788", "asks the wrong place"),
        (&example, "memory: 384Mi", "memory: 300Mi", "do not fit the memory"),
        (&example, "defaultMode: 288", "defaultMode: 420", "others may read"),
        (&example, "requests_per_minute = 60", "requests_per_minute = 0", "refuses the configuration"),
        (&example, "image: sluicegate:", "image: sluicegate:9", "is not version"),
        (&server, "replicas: 1", "replicas: one", "replicas"),
        (&server, "name: keys\n          readOnly: true", "name: keys\n          subPath: core-api-key", "by subPath"),
        (&server, "seconds: 5", "second: 5", "second"),
        (&server, "targetPort: http", "targetport: http", "targetport"),
    ] {
        let wrong = good.replacen(from, to, 1);
        assert_ne!(*good, wrong, "{from}");
        let found = checked(&wrong).await;
        assert!(found.code == Some(1) && found.err.contains(said), "{from} -> {to}: {found:?}");
    }
}

// ---- The chart ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_chart_is_well_formed_and_its_manifests_hold() {
    let lint = ended(&mut tool("helm", &["lint", "--strict", "deploy/helm/sluicegate"]).await).await;
    assert_eq!(lint.code, Some(0), "{lint:?}");
    let plain: &[&str] = &[];
    let elsewhere = [
        "--set=persistence.enabled=false,networkPolicy.enabled=false,drainSeconds=120,plan.requests_per_minute=1200",
        "--set=image.repository=registry.example/ai/sluicegate,service.type=NodePort,podAnnotations.a=b",
        "--set-json=imagePullSecrets=[{\"name\":\"pull\"}]",
        "--set-json=allowedHosts=[\"ai.example\"]",
        "--set-json=tolerations=[{\"operator\":\"Exists\"}]",
        "--set-json=clients=[{\"name\":\"only\",\"token\":\"only-token\"}]",
        "--set-string=extraConfig=[queue]\nmax_wait = \"10m\"",
    ];
    for (values, objects) in [(plain, 7), (&elsewhere, 5)] {
        let made = charted(values).await;
        assert_eq!(made.code, Some(0), "{values:?}: {made:?}");
        let Ended { code, out, err } = checked(&made.out).await;
        assert_eq!((code, out.lines().count()), (Some(0), objects), "{values:?}: {out}{err}\n{}", made.out);
    }
}

#[tokio::test]
async fn the_chart_s_names_are_those_that_the_proxy_answers_to() {
    let made = charted(&["--set-json=allowedHosts=[\"ai.example\"]"]).await;
    let hosts = "allowed_hosts = [\"team-sluicegate\",\"team-sluicegate.ai\",\"team-sluicegate.ai.svc\",\
                 \"team-sluicegate.ai.svc.cluster.local\",\"ai.example\"]";
    assert!(made.out.contains(hosts), "{}", made.out);
    let whole = charted(&["--set-string=config=# mine"]).await;
    assert!(whole.out.contains("    # mine\n") && !whole.out.contains("allowed_hosts"), "{}", whole.out);
}

#[tokio::test]
async fn the_chart_refuses_values_that_mean_nothing() {
    for wrong in [
        "replicas=2",
        "plan.requests_per_minute=0",
        "plan.request_per_minute=60",
        "clients[0].weight=0",
        "clients[0].token=",
        "drainSeconds=-1",
        "image.pullPolicy=Sometimes",
    ] {
        let made = charted(&["--set", wrong]).await;
        assert_ne!(made.code, Some(0), "{wrong}");
    }
}

#[test]
fn versions_agree() {
    let chart = read("deploy/helm/sluicegate/Chart.yaml");
    assert!(chart.contains(&format!("\nappVersion: {VERSION}\n")), "{chart}");
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.contains(&format!("image.version=\"{VERSION}\"")), "{dockerfile}");
    let rust = read("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned));
    let rust = rust.expect("stated").replace('"', "");
    assert!(dockerfile.contains(&format!("FROM rust:{rust}-")), "{dockerfile}");
}

// ---- The image ---------------------------------------------------------------------------------------------------------

/// The image's root file system, as the Dockerfile's last stage copies it.
async fn image(place: &Place) -> PathBuf {
    let directory = place.join("image");
    let mut command = Command::new(root().join("scripts/rootfs"));
    let built = ended(command.arg(&directory).stdin(Stdio::null())).await;
    assert_eq!(built.code, Some(0), "{built:?}");
    directory
}

/// The list after a Dockerfile's word.
fn list(dockerfile: &str, word: &str) -> Vec<String> {
    let line = dockerfile.lines().rfind(|line| line.starts_with(word)).expect(word);
    let list: Value = serde_json::from_str(&line[line.find('[').expect("exec form")..]).expect("exec form");
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn the_image_holds_what_its_dockerfile_names_and_nothing_else() {
    let place = Place::new();
    let image = image(&place).await;
    let dockerfile = read("Dockerfile");
    let last = dockerfile.rsplit("\nFROM ").next().expect("a stage");
    assert!(last.starts_with("scratch\n"), "{last}");
    assert!(last.contains("\nUSER 65532:65532\n"), "a number: Kubernetes cannot tell whether a name is root's");
    for word in ["ENTRYPOINT", "HEALTHCHECK"] {
        let program = &list(last, word)[0];
        assert!(image.join(program.trim_start_matches('/')).is_file(), "{word} {program}");
    }
    let mut files: Vec<String> = Vec::new();
    walk(&image, &image, &mut files);
    files.sort();
    assert_eq!(files, ["etc/group", "etc/passwd", "sluicegate"]);
    let kind = ended(Command::new("ldd").arg(image.join("sluicegate"))).await;
    assert!((kind.out + &kind.err).contains("statically linked"), "nothing of the machine's is loaded");
}

fn walk(top: &Path, directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(top, &path, files);
        } else {
            files.push(path.strip_prefix(top).expect("inside").display().to_string());
        }
    }
}

// ---- The pod -----------------------------------------------------------------------------------------------------------

/// The example's pod on this machine, in namespaces of its own. Needs root, as kubelets do.
#[cfg(target_os = "linux")]
async fn pod(scenario: &str) -> Ended {
    let place = Place::new();
    let image = image(&place).await;
    let manifests = kustomized("example").await;
    let python = tool("python", &[]).await.as_std().get_program().to_owned();
    let mut command = tool("python", &[]).await;
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(python)
        .arg("tests/deploy/pod.py")
        .arg(&image)
        .args([PROGRAM, scenario])
        .current_dir(root())
        .env_clear()
        .envs(command.as_std_mut().get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    with_input(unshare, &manifests).await
}

#[cfg(target_os = "linux")]
fn as_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root can mount volumes and become the pod's user: run this one as root"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_pod_starts_crashes_and_ends_as_its_manifest_says() {
    as_root();
    let Ended { code, out, err } = pod("life").await;
    assert_eq!(code, Some(0), "{out}\n{err}");
    for step in [
        "runs as nobody, without capabilities, on a root that cannot be written",
        "probes succeed, the image's own health check too",
        "killed and restarted: the books are kept",
        "ended in order, within the grace period",
        "the API saw the key on every call and never too many",
    ] {
        assert!(out.lines().any(|line| line == step), "{step}\n{out}");
    }
    assert!(!err.contains("cdt_key_of_the_pod"), "{err}");
}

/// As a kubelet swaps the secret below a running pod.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_rotated_key_is_used_without_a_restart_and_without_a_failed_call() {
    as_root();
    let Ended { code, out, err } = pod("rotation").await;
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert!(out.contains("the new key is used, no call failed"), "{out}");
    assert!(!err.contains("cdt_key_of_the_pod"), "{err}");
}
