//! `sluicegate jobs`: the live jobs of a running proxy.

use serde_json::Value;

use super::picture::{Picture, Tone, cell, span};
use super::watch::Look;

pub(super) const LOOK: Look = Look { target: "/api/v1/jobs", member: "jobs", draw };

fn draw(answer: &Value) -> Picture {
    let mut picture = Picture::default();
    let jobs = answer["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if jobs.is_empty() {
        picture.line(Tone::Plain, "no live job");
        return picture;
    }
    let rows = jobs.iter().map(|job| {
        let [id, model, client, account, status] =
            ["id", "model", "client", "account", "status"].map(|name| cell(&job[name]));
        let next = if job["next_look_in_secs"].as_f64() > Some(0.0) {
            span(&job["next_look_in_secs"])
        } else {
            "now".to_owned()
        };
        vec![id, status, span(&job["age_secs"]), next, cell(&job["looks"]), model, client, account]
    });
    let heading = ["job", "state", "age", "next look", "looks", "model", "client", "account"];
    picture.table(&heading, &[2, 3, 4], &rows.collect::<Vec<_>>());
    picture
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::picture::Frame;

    #[test]
    fn jobs_are_shown_in_columns() {
        let job = json!({"id": "job_1", "account": "main", "client": "web", "model": "flux", "status": "pending",
            "age_secs": 75.2, "next_look_in_secs": 0.0, "looks": 2});
        let shown = draw(&json!({"jobs": [job]})).lines(Frame::default());
        assert_eq!(
            shown,
            [
                "job    state           age  next look  looks  model  client  account",
                "job_1  pending  1 min 15 s        now      2  flux   web     main"
            ]
        );
        assert_eq!(draw(&json!({"jobs": []})).lines(Frame::default()), ["no live job"]);
    }
}
