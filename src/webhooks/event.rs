//! What is told: which ends an app asked for, the message's id, and the message where the upstream has none.

use aws_lc_rs::digest;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::protocol::{End, Protocol};

/// Which ends an app wants to hear of: the `webhook_events` of its create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Events {
    pub(crate) completed: bool,
    pub(crate) failed: bool,
}

impl Events {
    /// Without a list, both. Words that are not known are passed over.
    pub(crate) fn of(list: Option<&Value>) -> Self {
        let Some(list) = list.and_then(Value::as_array) else {
            return Self { completed: true, failed: true };
        };
        let wants =
            |event: &str| list.iter().any(|word| word.as_str().is_some_and(|word| word.eq_ignore_ascii_case(event)));
        Self { completed: wants("completed"), failed: wants("failed") }
    }

    /// `completed` is success; `failed` is every other end, for an app that waits must hear of it.
    pub(crate) fn include(self, end: End) -> bool {
        match end {
            End::Succeeded => self.completed,
            End::Failed | End::Cancelled | End::Gone | End::Expired => self.failed,
        }
    }
}

/// The same for the same end of the same job at the same target, also after a crash: receivers tell repetitions by it.
pub(crate) fn message_id(job: &str, end: End, target: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [job, end.name(), target] {
        context.update(part.as_bytes());
        context.update(b"\0");
    }
    let hash = super::hex(context.finish().as_ref());
    format!("msg_{}", hash.get(..32).unwrap_or_default())
}

/// The message: the upstream's last answer as it came, if it tells of the end; else a short one of ours that reads like it.
pub(crate) fn message(protocol: &Protocol, job: &str, end: End, answer: Option<&Bytes>) -> Bytes {
    let tells = |answer: &&Bytes| protocol.read(answer).is_some_and(|answer| answer.ended.is_some());
    if let Some(answer) = answer.filter(tells) {
        return answer.clone();
    }
    let (status, error) = match end {
        End::Succeeded => ("succeeded", None),
        End::Failed => ("failed", Some("the job failed")),
        End::Cancelled => ("cancelled", None),
        End::Gone => ("failed", Some("the API no longer knows this job; its result, if there was one, is lost")),
        End::Expired => ("failed", Some("the job was not seen to end within jobs.max_age; it may still be running")),
    };
    // Both dialects read their id.
    let message =
        json!({"id": job, "job_id": job, "status": status, "error": error, "sluicegate": {"end": end.name()}});
    message.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::core_today;

    const ENDS: [End; 5] = [End::Succeeded, End::Failed, End::Cancelled, End::Gone, End::Expired];

    #[test]
    fn completed_is_success_and_failed_is_every_other_end() {
        let wanted = |list: Value| ENDS.map(|end| Events::of(Some(&list)).include(end));
        assert_eq!(wanted(json!(["completed"])), [true, false, false, false, false]);
        assert_eq!(wanted(json!(["failed", "odd"])), [false, true, true, true, true]);
        assert_eq!(wanted(json!(["Completed", "failed"])), [true; 5]);
        assert_eq!(wanted(json!([])), [false; 5]);
        assert_eq!(wanted(json!("completed")), [true; 5], "no list is no wish");
        assert_eq!(ENDS.map(|end| Events::of(None).include(end)), [true; 5]);
    }

    #[test]
    fn a_message_keeps_its_id() {
        let id = message_id("job_1", End::Succeeded, "http://localhost:1/");
        assert_eq!(id, message_id("job_1", End::Succeeded, "http://localhost:1/"));
        assert_eq!(id.len(), 36);
        for other in [
            ("job_2", End::Succeeded, "http://localhost:1/"),
            ("job_1", End::Failed, "http://localhost:1/"),
            ("job_1", End::Succeeded, "http://localhost:2/"),
        ] {
            assert_ne!(id, message_id(other.0, other.1, other.2));
        }
    }

    #[test]
    fn the_upstream_s_answer_goes_on_as_it_came() {
        let answer = Bytes::from_static(br#"{ "job_id":"j", "status":"COMPLETED", "n":1.50 }"#);
        assert_eq!(message(&core_today(), "j", End::Succeeded, Some(&answer)), answer);
        for silent in [None, Some(Bytes::from_static(b"")), Some(Bytes::from_static(b"{}"))] {
            for end in ENDS {
                let read = core_today()
                    .read(&message(&core_today(), "j", end, silent.as_ref()))
                    .expect("an answer about a job");
                assert_eq!(read.id.as_deref(), Some("j"));
                assert_eq!(read.ended == Some(End::Succeeded), end == End::Succeeded);
            }
        }
    }
}
