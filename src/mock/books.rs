//! The judge's books: who made which request, what it was told, which jobs live.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::epoch::Epoch;
use super::fault::Script;
use super::jobs::{Job, Jobs, Live, NewJob};
use super::meter::{Meter, Verdict};
use super::options::Options;
use super::stats::{KeyStats, Log, Seen, Stats, WindowPeak};

/// The book of all keys where any key is accepted.
const ANY: &str = "*";
/// The book of user-session tokens, which are no keys.
const SESSION: &str = "session";

/// All books, behind one lock: each request takes it for a few lookups, never across an await.
#[derive(Debug)]
pub(super) struct Books {
    options: Arc<Options>,
    epoch: Epoch,
    accounts: Vec<Book>,
    by_key: HashMap<String, usize>,
    pub(super) jobs: Jobs,
    pub(super) log: Log,
    pub(super) script: Script,
    totals: Stats,
    dice: fastrand::Rng,
}

/// The book of one key.
#[derive(Debug)]
struct Book {
    key: String,
    meter: Option<Meter>,
    live: Live,
    peak: WindowPeak,
    stats: KeyStats,
}

/// An entry in the books for one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    number: u64,
    book: usize,
    /// What the meter said; `None`: there is no limit.
    pub(super) verdict: Option<Verdict>,
}

impl Ticket {
    /// Index of the book of the key.
    pub(super) fn book(self) -> usize {
        self.book
    }
}

impl Books {
    pub(super) fn new(options: Arc<Options>, epoch: Epoch) -> Self {
        let mut books = Self {
            dice: fastrand::Rng::with_seed(options.seed),
            epoch,
            accounts: Vec::new(),
            by_key: HashMap::new(),
            jobs: Jobs::new(options.seed),
            log: Log::default(),
            script: Script::default(),
            totals: Stats::default(),
            options,
        };
        books.open();
        books
    }

    /// Forgets everything but the choice of options.
    pub(super) fn reset(&mut self) {
        (self.accounts, self.by_key) = (Vec::new(), HashMap::new());
        (self.script, self.totals) = (Script::default(), Stats::default());
        self.jobs.clear();
        self.log.clear();
        self.open();
    }

    /// The book of a credential; `None`: it is unknown.
    pub(super) fn book_of(&self, key: &str, session: bool) -> Option<usize> {
        if self.options.keys.is_empty() {
            Some(0)
        } else if session {
            self.by_key.get(SESSION).copied()
        } else {
            self.by_key.get(key).copied().filter(|_| key != SESSION)
        }
    }

    /// How long the next request waits before it is counted.
    pub(super) fn count_delay(&mut self) -> Duration {
        let Options { count_delay, count_jitter, .. } = *self.options;
        if count_jitter.is_zero() { count_delay } else { count_delay + count_jitter.mul_f64(self.dice.f64()) }
    }

    /// Enters a request without a good credential.
    pub(super) fn turn_away(&mut self, mut seen: Seen, status: u16) {
        seen.status = status;
        self.log.push(seen);
        self.totals.unauthorized += 1;
        *self.totals.by_status.entry(status).or_default() += 1;
    }

    /// Enters a request and counts it, if it is one that counts.
    pub(super) fn arrive(&mut self, mut seen: Seen, book: usize) -> Ticket {
        seen.at = Instant::now(); // taken under the lock, so that arrivals are in order
        let (at, counted) = (seen.at, seen.counted);
        let number = self.log.push(seen);
        self.totals.attempts += 1;
        let Some(entry) = self.accounts.get_mut(book) else {
            return Ticket { number, book, verdict: None };
        };
        entry.stats.attempts += 1;
        if counted {
            entry.peak.add(at, self.options.window);
        }
        let now = self.epoch.since_start(at);
        let verdict = entry
            .meter
            .as_mut()
            .map(|meter| if counted { meter.hit(now) } else { Verdict { allowed: true, ..meter.look(now) } });
        if verdict.is_some_and(|verdict| !verdict.allowed) {
            entry.stats.refused_rate_429 += 1;
            self.totals.refused_rate_429 += 1;
        }
        Ticket { number, book, verdict }
    }

    /// Enters the answer's status.
    pub(super) fn answer(&mut self, ticket: Ticket, status: u16) {
        if let Some(seen) = self.log.get_mut(ticket.number) {
            seen.status = status;
        }
        *self.totals.by_status.entry(status).or_default() += 1;
    }

    /// Enters the job that a request is about.
    pub(super) fn about(&mut self, ticket: Ticket, job: &str) {
        if let Some(seen) = self.log.get_mut(ticket.number) {
            seen.job = Some(job.to_owned());
        }
    }

    /// Starts a job; `None`: the limit is reached. `run_time` overrides the model's.
    pub(super) fn create(&mut self, ticket: Ticket, mut new: NewJob, run_time: Option<Duration>) -> Option<Job> {
        let now = Instant::now();
        new.run_time = run_time.unwrap_or_else(|| self.options.run_time_of(&new.model).roll(self.dice.f64()));
        let book = self.accounts.get_mut(ticket.book)?;
        let live = book.live.count(now);
        if self.options.concurrent_jobs.is_some_and(|limit| live >= limit as usize) {
            book.stats.refused_job_429 += 1;
            self.totals.refused_job_429 += 1;
            return None;
        }
        let job = self.jobs.start(ticket.book, new, now, self.options.dialect).clone();
        book.live.add(&job);
        book.stats.creates_accepted += 1;
        book.stats.jobs_live_peak = book.stats.jobs_live_peak.max(live + 1);
        self.totals.creates_accepted += 1;
        let live: usize = self.accounts.iter_mut().map(|book| book.live.count(now)).sum();
        self.totals.jobs_live_peak = self.totals.jobs_live_peak.max(live);
        self.about(ticket, &job.id);
        Some(job)
    }

    /// A job that this request may see: jobs of other keys are unknown to it.
    pub(super) fn job(&mut self, ticket: Ticket, id: &str) -> Option<Job> {
        self.about(ticket, id);
        self.jobs.get(id).filter(|job| job.book == ticket.book).cloned()
    }

    /// Ends a job now as `ending` says (`None`: as it was to end); does nothing to one that has ended.
    pub(super) fn end(&mut self, id: &str, ending: Option<super::jobs::Ending>) -> Option<Job> {
        let live = &mut self.accounts.get_mut(self.jobs.get(id)?.book)?.live;
        self.jobs.end(id, ending, Instant::now(), live).cloned()
    }

    /// Notes an event that belongs to no single answer.
    pub(super) fn note(&mut self, event: impl FnOnce(&mut Stats)) {
        event(&mut self.totals);
    }

    /// The snapshot, and when the next job ends.
    pub(super) fn stats(&mut self) -> (Stats, Option<Instant>) {
        let now = Instant::now();
        let mut stats = self.totals.clone();
        for book in &mut self.accounts {
            book.stats.jobs_live_now = book.live.count(now);
            book.stats.max_in_window = book.peak.peak;
            stats.jobs_live_now += book.stats.jobs_live_now;
            stats.max_in_window = stats.max_in_window.max(book.peak.peak);
            stats.keys.insert(book.key.clone(), book.stats.clone());
        }
        (stats, self.accounts.iter().filter_map(|book| book.live.next_end()).min())
    }

    fn open(&mut self) {
        let options = Arc::clone(&self.options);
        let names = if options.keys.is_empty() { vec![ANY] } else { vec![SESSION] };
        for key in options.keys.iter().map(String::as_str).chain(names) {
            let meter = options.requests.map(|limit| {
                Meter::new(&options.counter, limit, options.window, self.epoch.offset(), options.count_refused)
            });
            self.by_key.insert(key.to_owned(), self.accounts.len());
            let (live, peak, stats) = (Live::default(), WindowPeak::default(), KeyStats::default());
            self.accounts.push(Book { key: key.to_owned(), meter, live, peak, stats });
        }
    }
}
