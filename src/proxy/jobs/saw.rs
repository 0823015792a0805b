//! What answers tell of jobs, whoever asked: the proxy, a client, a webhook of the upstream.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use crate::protocol::{End, JobAnswer};

use super::{Job, Jobs, Owner, Sight, Told};

impl Jobs {
    /// An answer to a status request that was asked at `asked`, by the proxy itself or a webhook of the upstream.
    pub(crate) fn saw_status(&self, id: &str, owner: Owner, told: Told, asked: Instant) {
        self.saw_poll(id, owner, "", told, asked);
    }

    /// The same by the owner's client, which asked for this path.
    pub(crate) fn saw_poll(&self, id: &str, owner: Owner, path: &str, told: Told, asked: Instant) {
        if told.status == StatusCode::NOT_FOUND || told.status == StatusCode::GONE {
            return self.end(id, End::Gone, "gone", Some(told), Sight::None);
        }
        if !told.status.is_success() {
            let lasting = told.status.is_client_error() && !matches!(told.status.as_u16(), 408 | 429);
            if let Some(mut job) = self.table.get_mut(id).filter(|job| lasting && job.slot.is_some()) {
                job.trouble = Some(Arc::new(told));
                job.ring();
            }
            return;
        }
        let answer = self.protocol.read(&told.body);
        let about_it = answer.filter(|answer| answer.id.as_deref().is_none_or(|other| other == id));
        let Some(answer) = about_it else { return self.keep_odd(id, told) };
        match answer {
            JobAnswer { ended: Some(end), status, took, .. } => {
                if self.owner(id).is_none() {
                    self.note_ended(id, owner);
                }
                self.end(id, end, status.as_deref().unwrap_or(end.name()), Some(told), Sight::Seen(took));
            }
            JobAnswer { status, .. } => self.runs(id, owner, path, status, told, asked),
        }
    }

    fn runs(&self, id: &str, owner: Owner, path: &str, status: Option<String>, told: Told, asked: Instant) {
        if let Some(mut job) = self.table.get_mut(id) {
            if job.slot.is_none() {
                return; // It no longer counts: it was older than `jobs.max_age`.
            }
            job.running = job.running.max(asked);
            job.vain = 0;
            (job.told, job.trouble, job.odd.unread) = (Some(Arc::new(told)), None, false);
            if let Some(status) = status {
                job.status = status;
            }
            job.ring();
            let account = job.owner.account;
            drop(job);
            self.tell_fleet(account, id);
            return;
        }
        // Started past this proxy, or before it knew: the upstream counts it, so we do.
        let Some(status) = status else { return };
        let model = self.protocol.model_in(path).unwrap_or_else(|| "unknown".into());
        let (slot, number) = (self.queue(owner.account).adopt(owner.client, id, &model), self.ledger.number());
        let running = Job::new(owner, number, model.as_str().into(), slot, status, Some(told));
        if self.insert(id, Job { seen_start: false, ..running }) {
            self.ledger.seen(number, id, self.origin(owner, &model));
        }
    }

    /// A 2xx that is not about this job: passed on as it is, and the job is kept.
    fn keep_odd(&self, id: &str, told: Told) {
        let Some(mut job) = self.table.get_mut(id).filter(|job| job.slot.is_some()) else { return };
        if !std::mem::replace(&mut job.odd.warned, true) {
            tracing::warn!(job = id, "a status answer is not about this job: passed on, the job is kept");
        }
        (job.told, job.trouble, job.odd.unread) = (Some(Arc::new(told)), None, false);
        job.ring();
        let account = job.owner.account;
        drop(job);
        self.tell_fleet(account, id);
    }

    /// A status answer is too long to be read: it was passed on as it came, or left.
    pub(crate) fn saw_too_much(&self, id: &str) {
        let Some(mut job) = self.table.get_mut(id) else { return };
        job.odd.unread = true;
        job.ring();
        self.tell_fleet(job.owner.account, id);
        if !std::mem::replace(&mut job.odd.warned, true) {
            tracing::warn!(
                job = id,
                "a status answer is too long to be read: the job is kept, callers who ask get it as it comes"
            );
        }
    }

    /// An answer to a cancel request.
    pub(crate) fn saw_cancel(&self, id: &str, told: Told) {
        let gone = told.status == StatusCode::NOT_FOUND || told.status == StatusCode::GONE;
        // The shape of a successful answer is not documented: only a status that says otherwise keeps the job.
        let answer = self.protocol.read(&told.body).filter(|answer| answer.status.is_some());
        let runs_on = answer.as_ref().is_some_and(|answer| answer.ended.is_none());
        if gone || (told.status.is_success() && !runs_on) {
            let is_state = answer.is_some_and(|answer| answer.id.as_deref() == Some(id));
            self.end(id, End::Cancelled, "cancelled", Some(told).filter(|_| is_state), Sight::None);
        }
    }
}
