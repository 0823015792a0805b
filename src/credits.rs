//! Credits: what a call costs, and how much a day may cost. Reserved before anything is sent, settled once, refunded as configured.
//!
//! Decisions are made by a pure `book` under one short lock; the `calendar` says which day it is. Each change of the book is a row of the
//! ledger: a reservation is on disk before its call leaves, so that a crash in between charges it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::{self, Config, Price, Refund};
use crate::ledger::{Error, Ledger};
use crate::metrics::credits::Metrics;
use crate::protocol::End;
use crate::proxy::jobs::{Ended, Event};
use crate::proxy::queue::{self, NoFunds, Permit};
use crate::proxy::rejection::Rejection;
use crate::proxy::rules::means;

use self::amount::Amount;
use self::book::{Ask, Book, DAYS_KEPT, JobEnd, Key, Move, Scope, Settle, Short};
use self::calendar::Calendar;
use self::hold::Hold;

/// Exact amounts.
pub(crate) mod amount;

/// Which day it is.
pub(crate) mod calendar;

/// Who used what.
pub(crate) mod book;

/// A reservation as a value.
pub(crate) mod hold;

/// Tokens in answers.
pub(crate) mod tokens;

/// What the admin port shows.
mod report;

/// What a call of unknown length reserves, in tokens.
const USUAL_TOKENS: u64 = 1_000;

/// Prices, budgets, and the book.
pub(crate) struct Credits {
    /// What a reload replaces.
    terms: ArcSwap<Terms>,
    utc_offset: i32,
    /// Held for one look or change: an answer's header and a call's reservation must see all others'.
    state: Mutex<State>,
    next_id: AtomicU64,
    ledger: Arc<Ledger>,
    metrics: Metrics,
}

/// Prices and budgets, as the configuration has them.
pub(crate) struct Terms {
    prices: Vec<(Arc<str>, Price)>,
    refund: Vec<Refund>,
    /// By index of the account.
    accounts: Vec<Purse>,
    /// By index of the client: its name and its budget.
    clients: Vec<(Arc<str>, Option<Amount>)>,
}

/// An account's money.
pub(crate) struct Purse {
    pub(crate) name: Arc<str>,
    /// The first account that shares its books, be it itself.
    pub(crate) first: Arc<str>,
    pub(crate) budget: Option<Amount>,
    /// Where replicas share the budget: who asks the store.
    pub(crate) shared: Option<Arc<queue::Account>>,
}

impl Terms {
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { prices: Vec::new(), refund: Vec::new(), accounts: Vec::new(), clients: Vec::new() }
    }

    pub(crate) fn new(config: &Config, accounts: Vec<Purse>, clients: Vec<(Arc<str>, Option<Amount>)>) -> Self {
        let price = |model: &config::Model| Some((model.name.as_str().into(), model.price?));
        let prices = config.models.iter().filter_map(price).collect();
        Self { prices, refund: config.credits.refund.clone(), accounts, clients }
    }

    fn price_of(&self, model: &str) -> Option<&(Arc<str>, Price)> {
        self.prices.iter().filter(|(name, _)| means(name, model)).max_by_key(|(name, _)| name.len())
    }

    fn scopes(&self, account: usize, client: usize) -> [(Scope, Option<Amount>); 2] {
        let (Purse { first, budget, shared, .. }, (name, of_client)) = (&self.accounts[account], &self.clients[client]);
        // What replicas share is asked of the store, not of this book.
        let budget = budget.filter(|_| shared.is_none());
        [(Scope::Account(Arc::clone(first)), budget), (Scope::Client(Arc::clone(name)), *of_client)]
    }
}

impl Purse {
    /// What has been used of today: by all replicas, where they share it.
    fn used(&self, book: &Book) -> Amount {
        let funds = self.shared.as_ref().and_then(|queue| queue.funds());
        funds.map_or_else(|| book.used(&Scope::Account(Arc::clone(&self.first))), |funds| funds.used)
    }
}

struct State {
    book: Book,
    calendar: Calendar,
}

/// What a call costs at most, as far as can be told before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Cost {
    ask: Ask,
    /// For a thousand tokens, where these decide in the end.
    rate: Option<Amount>,
}

/// What an answer says of its credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receipt {
    Charged(Amount),
    /// The tokens are still to be counted.
    Reserved(Amount),
}

/// What a forecast needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quote {
    /// What one job costs.
    pub(crate) each: Amount,
    /// What is left of the account's day, and what a day has; `None`: it has no budget.
    pub(crate) left: Option<Amount>,
    pub(crate) limit: Option<Amount>,
    pub(crate) renews_in: Duration,
}

impl Credits {
    /// With what the ledger knows.
    pub(crate) fn open(terms: Terms, utc_offset: i32, ledger: Arc<Ledger>, metrics: Metrics) -> Result<Self, Error> {
        let (offset, now) = (utc_offset, ledger.now());
        let known = ledger.load_credits()?;
        let calendar = match known.calendar {
            Some((day, anchor)) => Calendar::resume(offset, day, anchor, &now),
            None => Calendar::new(offset, now),
        };
        let scopes = |key: &Key| {
            let same = terms.accounts.iter().find(|purse| purse.name == key.account).map(|purse| &purse.first);
            [Scope::Account(Arc::clone(same.unwrap_or(&key.account))), Scope::Client(Arc::clone(&key.client))]
        };
        let entries = known.entries.into_iter().map(|row| row.entry(scopes));
        let book = Book::restore(calendar.day, known.totals, entries, scopes);
        ledger.post_calendar(&calendar, calendar.day - DAYS_KEPT);
        Ok(Self {
            terms: ArcSwap::from_pointee(terms),
            utc_offset: offset,
            state: Mutex::new(State { book, calendar }),
            next_id: AtomicU64::new(known.next_id),
            ledger,
            metrics,
        })
    }

    /// From now on other prices and budgets; what was used stays used.
    pub(crate) fn replan(&self, terms: Terms) {
        self.terms.store(Arc::new(terms));
    }

    /// Whether anything has a price.
    pub(crate) fn has_prices(&self) -> bool {
        !self.terms.load().prices.is_empty()
    }

    /// What a call costs; `None`: nothing, as its model has no price. `tokens` is what it may take at most, if it says so.
    pub(crate) fn cost(
        &self,
        account: usize,
        client: usize,
        model: Option<&str>,
        tokens: impl FnOnce() -> Option<u64>,
    ) -> Option<Box<Cost>> {
        let terms = self.terms.load();
        let Some((name, price)) = model.and_then(|model| terms.price_of(model)) else {
            if !terms.prices.is_empty() {
                self.metrics.unpriced(&terms.accounts[account].name);
            }
            return None;
        };
        let (amount, rate) = match *price {
            Price::Call(amount) => (amount, None),
            Price::ThousandTokens(rate) => (rate.for_tokens(tokens().unwrap_or(USUAL_TOKENS)), Some(rate)),
        };
        let (of, scopes) = (&terms.accounts[account].name, terms.scopes(account, client));
        let client = &terms.clients[client].0;
        let key = Key { account: Arc::clone(of), client: Arc::clone(client), model: Arc::clone(name) };
        Some(Box::new(Cost { ask: Ask { key, amount, scopes }, rate }))
    }

    /// What a job of this model costs, and what the account's budget has for it; `None` if it has no price.
    pub(crate) fn quote(&self, account: usize, model: &str) -> Option<Quote> {
        let terms = self.terms.load();
        let each = match terms.price_of(model)?.1 {
            Price::Call(amount) => amount,
            Price::ThousandTokens(rate) => rate.for_tokens(USUAL_TOKENS),
        };
        let purse = &terms.accounts[account];
        let limit = purse.budget;
        let state = self.today();
        let left = limit.map(|limit| limit.less(purse.used(&state.book)));
        Some(Quote { each, left, limit, renews_in: state.calendar.ends_in(&self.ledger.now()) })
    }

    /// What the store is to be asked for, where replicas share the account's budget.
    pub(crate) fn price(&self, account: usize, cost: Option<&Cost>) -> Amount {
        let Some(cost) = cost else { return Amount::ZERO };
        if self.terms.load().accounts[account].shared.is_some() { cost.ask.amount } else { Amount::ZERO }
    }

    /// Refuses what today's budgets do not hold.
    pub(crate) fn check(&self, account: usize, cost: Option<&Cost>) -> Result<(), Rejection> {
        let Some(cost) = cost else { return Ok(()) };
        if let Some(queue) = &self.terms.load().accounts[account].shared {
            queue.check_funds(cost.ask.amount).map_err(|no| self.no_funds(no))?;
        }
        let state = self.today();
        state.book.check(&cost.ask).map_err(|short| self.exhausted(short, &state))
    }

    /// Takes the cost out of today's budgets, on disk too; that of a create, by its number, is on disk once its intent is, which is given
    /// after it. What the store gave with the permit is the reservation's from then on.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        cost: Option<Box<Cost>>,
        create: Option<u64>,
        permit: &mut Permit,
    ) -> Result<Option<Box<Hold>>, Rejection> {
        let Some(cost) = cost else { return Ok(None) };
        // Relaxed: nothing else hangs on the order of ids.
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let made = {
            let mut state = self.today();
            let made = match permit.funded() {
                None if permit.wants_funds() && cost.ask.amount > Amount::ZERO => {
                    tracing::error!("a priced call is refused, as no credits of the shared budget came with its turn");
                    return Err(Rejection::Internal);
                }
                Some(day) => state.book.reserve_on(day, id, create, &cost.ask),
                None => state.book.reserve(id, create, &cost.ask),
            };
            let made = made.map_err(|short| self.exhausted(short, &state))?;
            permit.funds_taken();
            made
        };
        // From here on dropping it gives the reservation back.
        let hold = Box::new(Hold::new(Arc::clone(self), id, cost.ask.amount, cost.rate));
        if create.is_some() {
            self.ledger.post_credits(made);
        } else if let Err(error) = Box::pin(self.ledger.keep_credits(made)).await {
            tracing::error!(%error, "a priced call is refused, as its reservation cannot be kept");
            return Err(Rejection::Internal);
        }
        Ok(Some(hold))
    }

    fn settle(&self, id: u64, settle: Settle) {
        let mut state = self.today();
        let moves = state.book.settle(id, settle);
        self.post(&state, moves);
    }

    /// What the job table saw of a create that was charged.
    pub(crate) fn saw(&self, event: Event<'_>) {
        if !self.has_prices() {
            return;
        }
        match event {
            Event::Ended(ended) => {
                self.job_ended(ended);
            }
            Event::TurnedUp(number) => self.change(|book| book.known(number)),
            Event::NoEnd(number) => self.change(|book| book.stands(number)),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Book) -> Option<Move>) {
        let mut state = self.today();
        let made = change(&mut state.book);
        self.post(&state, made);
    }

    /// A job has ended: refunds it where that is configured, and counts its tokens where these decide.
    fn job_ended(&self, ended: &Ended) {
        let refund = match ended.end {
            End::Succeeded => None,
            End::Failed => Some(Refund::Failed),
            End::Cancelled => Some(Refund::Cancelled),
            End::Expired => Some(Refund::Expired),
            End::Gone => Some(Refund::Gone),
        };
        let refunded = refund.is_some_and(|refund| self.terms.load().refund.contains(&refund));
        if refunded {
            // It may have been taken over from a replica that paid for it.
            self.terms.load().accounts.iter().filter_map(|purse| purse.shared.as_ref()).for_each(|queue| {
                queue.refund_slot_of(&ended.id);
            });
        }
        let mut state = self.today();
        let end = if refunded {
            JobEnd::Refund
        } else {
            JobEnd::Keep(state.book.model_of(ended.number).and_then(|model| self.counted(model, ended)))
        };
        let made = state.book.job_ended(ended.number, end);
        self.post(&state, made);
    }

    /// What the tokens of a job's last answer cost, if its model is paid by tokens.
    fn counted(&self, model: &str, ended: &Ended) -> Option<(Amount, u64)> {
        let terms = self.terms.load();
        let Price::ThousandTokens(rate) = terms.prices.iter().find(|(name, _)| **name == *model)?.1 else {
            return None;
        };
        let tokens = tokens::of_answer(ended.answer.as_ref()?)?;
        Some((rate.for_tokens(tokens), tokens))
    }

    /// Under the book's lock, so that the ledger gets an entry's moves in their order.
    fn post(&self, _: &State, moves: impl IntoIterator<Item = Move>) {
        for made in moves {
            let terms = self.terms.load();
            let purse = terms.accounts.iter().find(|purse| purse.name == made.key.account);
            if let Some(queue) = purse.and_then(|purse| purse.shared.as_ref()) {
                queue.spent_changed(made.day, made.change.charged.saturating_add(made.change.reserved));
            }
            self.ledger.post_credits(made);
        }
    }

    /// Tells the accounts that replicas share what this one has taken of its last day, before any more is.
    pub(crate) fn tell_spent(&self) {
        let (state, terms) = (self.today(), self.terms.load());
        for purse in &terms.accounts {
            let Some(queue) = purse.shared.as_ref().filter(|_| purse.name == purse.first) else { continue };
            let same = |account: &str| {
                terms.accounts.iter().any(|other| other.first == purse.first && &*other.name == account)
            };
            let (day, spent) = state.book.last_day_of(same);
            queue.restore_spent(day, spent);
        }
    }

    /// Today, by this process' calendar.
    pub(crate) fn day(&self) -> i64 {
        self.today().calendar.day
    }

    /// The refusal of the store, or what it refused before.
    pub(crate) fn no_funds(&self, no: NoFunds) -> Rejection {
        let now_ms = u64::try_from(self.ledger.now().wall_ms).unwrap_or_default();
        let wait_ms = u64::try_from(no.resets_in.as_millis()).unwrap_or(u64::MAX);
        let NoFunds { needed, left, limit, .. } = no;
        exhausted(Short { needed, left, limit }, now_ms, wait_ms)
    }

    /// What is left of the tighter budget; `None` where there is none.
    pub(crate) fn remaining(&self, account: usize, client: usize) -> Option<Amount> {
        let terms = self.terms.load();
        if terms.accounts[account].budget.is_none() && terms.clients[client].1.is_none() {
            return None;
        }
        let state = self.today();
        let purse = &terms.accounts[account];
        let (name, of_client) = &terms.clients[client];
        let left = purse.budget.map(|limit| limit.less(purse.used(&state.book)));
        let own = of_client.map(|limit| limit.less(state.book.used(&Scope::Client(Arc::clone(name)))));
        left.into_iter().chain(own).min()
    }

    /// The book, turned to today.
    fn today(&self) -> MutexGuard<'_, State> {
        let now = self.ledger.now();
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        if state.calendar.turn(&now) {
            state.book.turn(state.calendar.day);
            self.ledger.post_calendar(&state.calendar, state.calendar.day - DAYS_KEPT);
        }
        guard
    }

    fn exhausted(&self, short: Short, state: &State) -> Rejection {
        let now = self.ledger.now();
        let now_ms = u64::try_from(now.wall_ms).unwrap_or_default();
        let wait_ms = u64::try_from(state.calendar.ends_in(&now).as_millis()).unwrap_or(u64::MAX);
        exhausted(short, now_ms, wait_ms)
    }
}

fn exhausted(Short { needed, left, limit }: Short, now_ms: u64, wait_ms: u64) -> Rejection {
    let resets_in_secs = u32::try_from(wait_ms.div_ceil(1_000)).unwrap_or(u32::MAX);
    let resets_at = now_ms.saturating_add(wait_ms).div_ceil(1_000);
    Rejection::CreditsExhausted { needed, left, limit, resets_in_secs, resets_at }
}
