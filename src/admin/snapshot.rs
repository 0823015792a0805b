//! What the dashboard shows of one moment.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::proxy::App;

/// The oldest of more live jobs.
const JOBS_SHOWN: usize = 100;

/// Status, jobs, budgets and the latest requests. No key, no job's input, no answer is in it.
pub(super) fn snapshot(app: &App, status: &Value) -> Value {
    let (live, jobs) = app.jobs.oldest(JOBS_SHOWN);
    let at = app.clock.wall().duration_since(UNIX_EPOCH);
    json!({
        "at": at.map_or(0, |since| since.as_millis()),
        "status": status,
        "jobs": {"live": live, "shown": jobs},
        "recent": app.recent.latest().iter().map(|seen| json!(**seen)).collect::<Vec<_>>(),
    })
}
