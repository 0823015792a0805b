//! Alert rules and the Grafana board: they ask for metrics and labels that there are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::program::{Ended, Place, ended};
use crate::tools::python;

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const BOARD: &str = "deploy/grafana/sluicegate.json";

async fn checked(alerts: &Path, board: &Path) -> Ended {
    let mut check = python(&["tests/deploy/watch.py", "docs/metrics.md"]).await;
    ended(check.arg(alerts).arg(board)).await
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[tokio::test]
async fn rules_and_board_ask_for_metrics_that_there_are() {
    let Ended { code, out, err } = checked(&path(ALERTS), &path(BOARD)).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("15 rules, 24 panels, "), "{out}");
}

#[tokio::test]
async fn metrics_and_labels_that_there_are_not_are_noticed() {
    let place = Place::new();
    for (file, from, to, said) in [
        (ALERTS, "sluicegate_drift > 0", "sluicegate_drifts > 0", "there is no sluicegate_drifts"),
        (ALERTS, "{outcome=\"401\"}[10m]", "{status=\"401\"}[10m]", "has no label status"),
        (ALERTS, "increase(sluicegate_ledger_failures_total", "increase(sluicegate_ledger_failures", "there is no"),
        (ALERTS, "key of account {{ $labels.account }}", "key of {{ $labels.client }}", "no label client"),
        (ALERTS, "severity: page", "severity: loud", "no severity"),
        (BOARD, "sluicegate_queue_waiting{", "sluicegate_waiting{", "there is no sluicegate_waiting"),
        (BOARD, "sum by (code)", "sum by (reason)", "grouped by reason"),
        (BOARD, "{{outcome}}", "{{result}}", "no label result"),
        (BOARD, "\"y\": 6", "\"y\": 5", "lies over"),
        (BOARD, "[$__rate_interval]", "[$interval]", "no variable interval"),
    ] {
        let text = fs::read_to_string(path(file)).expect(file);
        let wrong = text.replacen(from, to, 1);
        assert_ne!(text, wrong, "{from}");
        let wrong = place.write("wrong", &wrong);
        let found =
            if file == ALERTS { checked(&wrong, &path(BOARD)).await } else { checked(&path(ALERTS), &wrong).await };
        assert!(found.code == Some(1) && found.err.contains(said), "{from} -> {to}: {found:?}");
    }
}
