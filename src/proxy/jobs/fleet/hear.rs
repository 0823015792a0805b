//! What the store has of jobs becomes what is known here: others' jobs that somebody asks about, ends that others have seen, and jobs whose
//! replica is gone.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use crate::protocol::End;
use crate::proxy::queue::Slot;
use crate::state::redis::jobs::{Ask, Heard};
use crate::state::redis::wire::SlotEntry;

use super::super::{Event, Held, Job, Jobs, Owner, Sight, Told};
use super::{Fleet, Kept};

/// Another replica's job that nobody has asked about for so long is not known here any more.
const FOLLOWED_FOR: Duration = Duration::from_secs(60);
/// So long after it was read there, a job that the store does not have is still what it was.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// Of a client that is not in the configuration: nobody's.
const NOBODY: usize = usize::MAX;

impl Jobs {
    /// A job's owner by the client's name; nobody may know of the job where no client has it.
    pub(crate) fn owner_named(&self, account: usize, client: &str) -> Owner {
        let client = self.terms.load().clients.iter().position(|name| name == client).unwrap_or(NOBODY);
        Owner { account, client }
    }

    /// What a replica that is gone has told of a job.
    pub(crate) async fn left_of(&self, account: usize, id: &str) -> Option<Heard> {
        let fleet = self.fleet(account).filter(|_| !id.is_empty())?;
        // Its slot came by another connection, perhaps before this one is there. Without what it tells, nobody would know of its webhook.
        fleet.ask_patiently(&Ask::Get { id: id.to_owned(), v: 0, idle: false }).await.filter(|heard| heard.v > 0)
    }

    /// Looks after a job whose replica is gone, in the slot that it left; without an id it is a create of unknown outcome.
    pub(crate) fn adopt(&self, account: usize, entry: &SlotEntry, slot: Slot, heard: Option<&Heard>) {
        let told = heard.and_then(|heard| told(heard, Instant::now()));
        self.take_over(account, entry, slot, told.clone());
        match heard {
            Some(Heard { end: Some(end), status, .. }) => self.end_as_heard(&entry.job, end, status, told),
            // Nobody has looked for a while.
            _ => self.set_due(&entry.job, Instant::now()),
        }
    }

    /// What the store has of a job. `wanted`: somebody asks about it.
    pub(super) fn heard_of(&self, account: usize, fleet: &Fleet, id: &str, heard: &Heard, wanted: bool) {
        let now = Instant::now();
        let anothers = heard.owner.as_ref().is_some_and(|owner| *owner != fleet.me) && !heard.gone;
        // Slots decide who owns a job: they cannot be two replicas'.
        let has_slot = if anothers { self.queue(account).has_slot(id) } else { None };
        let Some(mut job) = self.table.get_mut(id) else {
            if wanted && heard.v > 0 && (anothers || heard.end.is_some()) {
                self.follow(account, fleet, id, heard, now);
            }
            return;
        };
        if job.slot.is_none() {
            let untold = job.told.is_none();
            drop(job);
            fleet.watch(id, false);
            // An earlier process saw its end.
            if let Some(end) = heard.end.as_ref().filter(|_| untold) {
                self.end_as_heard(id, end, &heard.status, told(heard, now));
            }
            return;
        }
        if wanted && matches!(job.slot, Some(Held::Elsewhere)) && job.number == 0 {
            fleet.book().followed.insert(id.to_owned(), now);
        }
        let unknown = (heard.v == 0 && !heard.same) || heard.gone;
        match job.slot {
            Some(Held::Here(_)) if unknown && heard.owner.is_none() => {
                // The store has lost it.
                job.kept = None;
                drop(job);
                return fleet.note(id, false);
            }
            Some(Held::Elsewhere) if unknown => {
                if let Some(kept) = job.kept.as_mut().filter(|kept| kept.known.is_some_and(|known| now < known + GRACE))
                {
                    // A store that was emptied hears of it again in a moment.
                    (kept.read, kept.version) = (Some(now), 0);
                    return;
                }
                let (number, old) = (job.number, now > job.started + self.terms.load().settings.max_age);
                drop(job);
                if number == 0 {
                    self.table.remove_if(id, |_, job| matches!(job.slot, Some(Held::Elsewhere)));
                } else if old {
                    self.end(id, End::Expired, "expired", None, Sight::Heard(None));
                }
                return;
            }
            _ => {}
        }
        let kept = job.kept.get_or_insert_default();
        (kept.read, kept.known, kept.version) = (Some(now), Some(now), heard.v);
        if has_slot == Some(true) && matches!(job.slot, Some(Held::Here(_))) {
            fleet.note(id, true);
        }
        if has_slot == Some(false) && matches!(job.slot, Some(Held::Here(_))) {
            tracing::debug!(job = id, "another replica looks at this job now");
            let left = job.slot.replace(Held::Elsewhere);
            let (model, started, number) = (Arc::clone(&job.model), job.started, job.number);
            // All of it is read next.
            job.kept.get_or_insert_default().version = 0;
            drop(job);
            self.models.ended(&model, account, id, started, None, now);
            // Who has its slot settles what it cost.
            self.tell(Event::NoEnd(number));
            // When the table is free again: that may wake others.
            return drop(left);
        }
        if heard.same {
            return;
        }
        let told = told(heard, now);
        let elsewhere = matches!(job.slot, Some(Held::Elsewhere));
        if elsewhere {
            job.due = now + Duration::from_millis(heard.next.unwrap_or_default());
        }
        if let Some(end) = &heard.end {
            drop(job);
            return self.end_as_heard(id, end, &heard.status, told);
        }
        let is_newer = |told: &Told| elsewhere || job.told.as_ref().is_none_or(|known| known.at < told.at);
        if let Some(told) = told.filter(is_newer) {
            (job.told, job.trouble) = (Some(Arc::new(told)), None);
            heard.status.clone_into(&mut job.status);
        }
        job.ring();
    }

    /// A job of another replica, or one that has ended.
    fn follow(&self, account: usize, fleet: &Fleet, id: &str, heard: &Heard, now: Instant) {
        let terms = self.terms.load_full();
        let named = terms.accounts.iter().position(|(name, _)| *name == heard.account);
        let account = named
            .filter(|named| self.fleet(*named).is_some_and(|of| std::ptr::eq(Arc::as_ptr(of), fleet)))
            .unwrap_or(account);
        let owner = self.owner_named(account, &heard.client);
        let told = told(heard, now);
        let mut job = Job { model: heard.model.as_str().into(), ..Job::without_slot(owner, heard.status.clone()) };
        job.kept = Some(Box::new(Kept { version: heard.v, read: Some(now), known: Some(now), said: None }));
        if let Some(end) = &heard.end {
            self.table.entry(id.to_owned()).or_insert(job);
            return self.end_as_heard(id, end, &heard.status, told);
        }
        job.slot = Some(Held::Elsewhere);
        job.told = told.map(Arc::new);
        job.due = now + Duration::from_millis(heard.next.unwrap_or_default());
        fleet.book().followed.insert(id.to_owned(), now);
        self.table.entry(id.to_owned()).or_insert(job);
    }

    fn end_as_heard(&self, id: &str, end: &str, status: &str, told: Option<Told>) {
        let end = End::ALL.into_iter().find(|known| known.name() == end).unwrap_or(End::Gone);
        let took = told.as_ref().and_then(|told| self.protocol.read(&told.body)?.took);
        self.end(id, end, status, told, Sight::Heard(took));
    }

    /// Nobody has asked about these for long.
    pub(super) fn unfollow(&self, fleet: &Fleet, now: Instant) {
        let mut book = fleet.book();
        let old = |at: &Instant| now.saturating_duration_since(*at) > FOLLOWED_FOR;
        let ids: Vec<String> = book.followed.iter().filter(|(_, at)| old(at)).map(|(id, _)| id.clone()).collect();
        book.followed.retain(|_, at| !old(at));
        drop(book);
        for id in ids {
            self.table.remove_if(&id, |_, job| matches!(job.slot, Some(Held::Elsewhere)) && job.number == 0);
        }
    }
}

/// The upstream's last answer, if the store has it.
fn told(heard: &Heard, now: Instant) -> Option<Told> {
    let age = Duration::from_millis(heard.age?);
    Some(Told {
        status: StatusCode::from_u16(heard.code?).ok()?,
        content_type: heard.form.as_ref().and_then(|form| HeaderValue::from_str(form).ok()),
        body: heard.answer.clone()?,
        at: now.checked_sub(age).unwrap_or(now),
    })
}
