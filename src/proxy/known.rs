//! Answers from what is known here, of a job or of ourselves: they cost nothing upstream.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request};
use tokio::time::Instant;

use crate::protocol::{Meaning, wait};

use super::App;
use super::classify::Call;
use super::dispatch::Passed;
use super::headers::PREFERENCE_APPLIED;
use super::jobs::poll::{Answer, Patience};
use super::queue::Class;
use super::rejection::whole_seconds;
use super::retry::{Reply, ReplyBody};

/// What may be asked of the upstream through us.
pub(crate) const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The answer to a question about the server as a whole (RFC 9110 §9.3.7).
pub(crate) fn about_us(request: &request::Parts) -> Option<Passed> {
    if request.uri.path() != "*" {
        return None;
    }
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = StatusCode::NO_CONTENT;
    head.headers.insert(header::ALLOW, METHODS);
    let reply = Reply { head, body: ReplyBody::Whole(Bytes::new()), attempts: 0, upstream: Duration::ZERO };
    Some(Passed { reply, charge: None, job: None, queued: Duration::ZERO, credits: None, meter: None })
}

impl App {
    /// Has a job that is not known here looked for among those of the other replicas.
    pub(crate) async fn find_job(&self, client: usize, call: &Call) {
        if let Some(id) = call.job.as_ref().filter(|id| self.jobs.must_find(id)) {
            // Boxed: all other calls would pay for its place.
            Box::pin(self.jobs.find(id, self.account_of[client])).await;
        }
    }

    /// The answer to a poll of a job that is known here.
    pub(crate) async fn known_answer(&self, call: &Call, head: &request::Parts) -> Option<Passed> {
        let id = call.job.as_ref().filter(|_| call.class == Class::Poll || self.is_bodiless_poll(head))?;
        let wait = wait::offered(&head.headers);
        let patience = wait.map_or(Patience::Hold(self.hold), |wait| Patience::Wait(wait.min(self.max_wait)));
        let begun = Instant::now();
        let answer = self.jobs.ask(id, patience, &self.drain).await?;
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = answer.told.status;
        describe(&mut head.headers, &answer);
        if wait.is_some() {
            head.headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("wait"));
        }
        let body = ReplyBody::Whole(answer.told.body.clone());
        let reply = Reply { head, body, attempts: 0, upstream: Duration::ZERO };
        Some(Passed { reply, charge: None, job: None, queued: begun.elapsed(), credits: None, meter: None })
    }

    fn is_bodiless_poll(&self, head: &request::Parts) -> bool {
        head.method == Method::HEAD
            && matches!(self.protocol.meaning(&Method::GET, head.uri.path()), Meaning::Status(_))
    }

    /// A create's answer, held until its job has ended if the caller prefers to wait. A caller that leaves does not stop the job.
    pub(crate) async fn held_until_end(&self, mut created: Passed, wait: Option<Duration>) -> Passed {
        let (Some(wait), Some(id)) = (wait.filter(|_| !self.protocol.prefer_wait), &created.job) else {
            return created;
        };
        // When the time is over first, the create's own answer stands: SDKs take a later state for the end.
        if let Some(answer) = self.jobs.ask(id, Patience::Wait(wait.min(self.max_wait)), &self.drain).await
            && answer.next_in.is_none()
            && answer.told.status.is_success()
        {
            created.reply.body = ReplyBody::Whole(answer.told.body.clone());
            let headers = &mut created.reply.head.headers;
            headers.remove(header::CONTENT_LENGTH);
            describe(headers, &answer);
        }
        created.reply.head.headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("wait"));
        created
    }
}

fn describe(headers: &mut HeaderMap, answer: &Answer) {
    if let Some(form) = &answer.told.content_type {
        headers.insert(header::CONTENT_TYPE, form.clone());
    }
    headers.insert(header::AGE, HeaderValue::from(answer.age.as_secs()));
    if let Some(next_in) = answer.next_in {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(next_in)));
    }
}
