//! Accounts of a configuration, with the books of the one before: the upstream counts keys, so a book follows its key; and a key that
//! replaces another takes over its book, for the upstream may count both as one customer.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::{StartError, roster};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::protocol::KeyHeaders;
use crate::proxy::Account;
use crate::proxy::queue::{self, Part};
use crate::proxy::retry::Budget;
use crate::replicas;
use crate::state::ring::Ring;
use crate::state::{State, fingerprint};

/// What accounts are built among.
pub(super) struct Around<'a> {
    /// The accounts of the configuration before.
    pub(super) known: &'a [Account],
    /// Fingerprints of the keys that were ever in use.
    pub(super) past: &'a HashSet<String>,
    /// What each client may have.
    pub(super) parts: &'a [Part],
    pub(super) state: Option<&'a State>,
    pub(super) metrics: &'a Metrics,
    pub(super) clock: Clock,
    pub(super) now: Instant,
}

/// Accounts, not yet in force: dropped, nothing has changed.
pub(super) struct Built {
    /// By number, those that are gone included.
    pub(super) accounts: Vec<Account>,
    /// By place in the configuration: its number.
    pub(super) numbers: Vec<usize>,
    /// Books that are new.
    pub(super) new: Vec<Arc<queue::Account>>,
    /// Books that go on under another plan.
    moves: Vec<Move>,
}

/// A book that goes on.
struct Move {
    queue: Arc<queue::Account>,
    plan: Arc<config::Plan>,
    /// The file of the account's key.
    file: Option<PathBuf>,
    /// A file for a book that had none.
    ring: Option<Ring>,
}

/// A book for an account: one that there is, or none yet.
enum Book {
    Known(Arc<queue::Account>),
    /// That of the account at this place of the configuration, which has the same key.
    Of(usize),
    /// `filled`: nobody knows what the upstream has counted.
    New {
        filled: bool,
    },
}

/// # Errors
/// Where two accounts share a key but not a plan, or the state directory cannot be written.
pub(super) fn build(config: &Config, around: &Around<'_>) -> Result<Built, StartError> {
    refuse_twins(&config.accounts)?;
    let known_names: Vec<String> = around.known.iter().map(|account| account.name.clone()).collect();
    let names = config.accounts.iter().map(|account| account.name.as_str());
    let (all, numbers) = roster::number(&known_names, names);
    let mut built = Built { accounts: Vec::new(), numbers, new: Vec::new(), moves: Vec::new() };
    let mut queues: Vec<Arc<queue::Account>> = Vec::new();
    for (account, book) in config.accounts.iter().zip(find(&config.accounts, around.known)) {
        let queue = match book {
            Book::Of(twin) => Arc::clone(&queues[twin]),
            Book::Known(queue) => built.go_on(queue, account, around)?,
            Book::New { filled } => built.begin(filled, account, config, around)?,
        };
        queues.push(queue);
    }
    let mut seats: Vec<Option<Account>> = all.iter().map(|_| None).collect();
    for ((account, queue), number) in config.accounts.iter().zip(queues).zip(&built.numbers) {
        let before = around.known.get(*number);
        let key = KeyHeaders::new(&account.key, &config.upstream.protocol).ok_or_else(|| {
            StartError::Config(format!("the key of account {} cannot stand in a header", account.name))
        })?;
        let budget = before.map_or_else(
            || Arc::new(Mutex::new(Budget::new(config.retry.budget, config.retry.budget_floor, around.now))),
            Account::shared_budget,
        );
        let counters = Arc::new(around.metrics.account(&account.name));
        seats[*number] = Some(Account::new(account, key, queue, budget, counters));
    }
    let gone = around.known.iter().map(|account| {
        let successor = seats.iter().flatten().find(|other| Arc::ptr_eq(&other.queue, &account.queue));
        account.gone(successor)
    });
    let gone: Vec<Account> = gone.collect();
    let gone = gone.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    built.accounts = seats.into_iter().zip(gone).filter_map(|(present, gone)| present.or(gone)).collect();
    Ok(built)
}

impl Built {
    /// Puts the plans into force. Cannot fail.
    pub(super) fn commit(&mut self, config: &Config, parts: &[Part], now: Instant) {
        let max_waiting = config.queue.max_waiting.get();
        for Move { queue, plan, file, ring } in self.moves.drain(..) {
            queue.replan(&plan, parts, max_waiting, file.as_deref(), now);
            if let Some(ring) = ring {
                queue.keep_in(ring, now);
            }
        }
        // Jobs of accounts that are gone may be asked for by any client.
        for account in self.accounts.iter().filter(|account| account.gone) {
            account.queue.know(parts, now);
        }
        for account in &self.accounts {
            account.queue.follow(&config.jobs);
            account.budget().replan(config.retry.budget, config.retry.budget_floor);
        }
    }

    /// A book goes on for this account.
    fn go_on(
        &mut self,
        queue: Arc<queue::Account>,
        account: &config::Account,
        around: &Around<'_>,
    ) -> Result<Arc<queue::Account>, StartError> {
        let ring = if queue.is_kept() { None } else { around.ring(account)? };
        let file = around.state.map(|state| state.ring_path(&account.key));
        self.moves.push(Move { queue: Arc::clone(&queue), plan: Arc::clone(&account.plan), file, ring });
        Ok(queue)
    }

    /// A book begins with this account.
    fn begin(
        &mut self,
        filled: bool,
        account: &config::Account,
        config: &Config,
        around: &Around<'_>,
    ) -> Result<Arc<queue::Account>, StartError> {
        let (ring, most, now) = (around.ring(account)?, config.queue.max_waiting.get(), around.now);
        let queue = queue::Account::new(account.name.clone(), &account.plan, around.parts, most, ring, now);
        replicas::share(config, around.state, account, &queue).map_err(StartError::State)?;
        if filled || around.past.contains(&fingerprint(&account.key)) {
            queue.fill(now);
        }
        self.new.push(Arc::clone(&queue));
        Ok(queue)
    }
}

impl Around<'_> {
    /// The file of what this account's key has sent, where anything is kept.
    fn ring(&self, account: &config::Account) -> Result<Option<Ring>, StartError> {
        let (Some(state), Some(requests)) = (self.state, &account.plan.requests) else { return Ok(None) };
        state.ring(&account.key, requests, self.clock).map(Some).map_err(StartError::State)
    }
}

/// By account: the book of its key; else the one that its name had, where no account of another key goes on with it.
fn find(accounts: &[config::Account], known: &[Account]) -> Vec<Book> {
    let mut books: Vec<Option<Book>> = accounts.iter().map(|_| None).collect();
    let by_key = |account: &config::Account| known.iter().find(|known| known.secret == account.key);
    let by_name = |account: &config::Account| known.iter().find(|known| known.name == account.name);
    for (index, account) in accounts.iter().enumerate() {
        books[index] = by_key(account).map(|holder| unless_taken(&holder.queue, account, accounts, &books));
    }
    for (index, account) in accounts.iter().enumerate() {
        if books[index].is_none() {
            let twin = accounts[..index].iter().position(|other| other.key == account.key);
            books[index] = match (twin, by_name(account)) {
                // Built once, with the first of them.
                (Some(twin), _) => Some(Book::Of(twin)),
                (None, Some(before)) => Some(unless_taken(&before.queue, account, accounts, &books)),
                (None, None) => Some(Book::New { filled: false }),
            };
        }
    }
    books.into_iter().flatten().collect()
}

/// Where two keys claim one book, the first goes on with it; nobody knows what the upstream has counted for the other.
fn unless_taken(
    queue: &Arc<queue::Account>,
    account: &config::Account,
    accounts: &[config::Account],
    books: &[Option<Book>],
) -> Book {
    let taken = accounts.iter().zip(books).any(|(other, book)| {
        other.key != account.key && matches!(book, Some(Book::Known(other)) if Arc::ptr_eq(other, queue))
    });
    if taken { Book::New { filled: true } } else { Book::Known(Arc::clone(queue)) }
}

fn refuse_twins(accounts: &[config::Account]) -> Result<(), StartError> {
    for (index, account) in accounts.iter().enumerate() {
        if let Some(other) =
            accounts[..index].iter().find(|other| other.key == account.key && other.plan != account.plan)
        {
            return Err(StartError::Config(format!(
                "accounts {} and {} have the same key but different plans: the upstream counts them together, give both one plan",
                other.name, account.name
            )));
        }
    }
    Ok(())
}
