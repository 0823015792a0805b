//! The units for systemd: it takes them, and finds little that the service could reach.

use std::fs;
use std::path::Path;

use crate::support::program::{Ended, PROGRAM, Place, ended};
use crate::tools::is_there;

/// The text of a unit, with a program that is here.
fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
    let text = fs::read_to_string(path).expect(name);
    let program = PROGRAM;
    text.replace("/usr/local/bin/sluicegate ", &format!("{program} "))
        .replace("%h/.cargo/bin/sluicegate ", &format!("{program} "))
}

/// What systemd says of a unit.
async fn analyze(arguments: &[&str], name: &str) -> Ended {
    let place = Place::new();
    // A socket belongs to the service of its name.
    for other in ["sluicegate.service", "sluicegate.socket"] {
        place.write(other, &unit(other));
    }
    let file = Path::new(name).file_name().and_then(|name| name.to_str()).expect("a name");
    place.write(file, &unit(name));
    let mut command = place.command("systemd-analyze", arguments);
    ended(command.arg(place.join(file)).env("XDG_RUNTIME_DIR", place.path())).await
}

#[tokio::test]
async fn systemd_takes_every_unit() {
    assert!(is_there("systemd-analyze"), "systemd-analyze is missing: `apt-get install systemd`");
    for (name, arguments) in [
        ("sluicegate.service", &["verify", "--man=no"][..]),
        ("sluicegate.socket", &["verify", "--man=no"]),
        ("user/sluicegate.service", &["--user", "verify", "--man=no"]),
    ] {
        let Ended { code, err, .. } = analyze(arguments, name).await;
        // Before systemd 253 it does not know this type, and takes the service for a simple one.
        let complaints: Vec<_> = err.lines().filter(|line| !line.ends_with("ignoring: notify-reload")).collect();
        assert_eq!((code, complaints.len()), (Some(0), 0), "{name}: {err}");
    }
}

#[tokio::test]
async fn the_service_can_reach_little() {
    assert!(is_there("systemd-analyze"), "systemd-analyze is missing: `apt-get install systemd`");
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold=15"];
    let good = analyze(&arguments, "sluicegate.service").await;
    assert_eq!(good.code, Some(0), "exposed by more than 1.5 of 10: {}", good.out);
    let worse = analyze(&arguments, "user/sluicegate.service").await;
    assert_ne!(worse.code, Some(0), "the threshold is one");
}

/// What the units say of the configuration holds for what the program does.
#[test]
fn units_fit_the_program() {
    for name in ["sluicegate.service", "user/sluicegate.service"] {
        let text = unit(name);
        assert!(text.contains("\nRestartPreventExitStatus=2\n"), "{name}: a wrong configuration is exit code 2");
        let stop = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s')).expect(name);
        let stop: u64 = stop.parse().expect("seconds");
        assert!(stop > 31, "{name}: the default drain is 30 s, and 1 s for last words");
    }
    assert!(unit("sluicegate.socket").contains("\nListenStream=127.0.0.1:8787\n"), "the default of server.listen");
}
