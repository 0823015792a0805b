//! What was reserved, charged and given back: a pure book. The day is passed in, and each change comes back as a move for the ledger.
//!
//! An entry is reserved before its call is sent, then settled once: charged, or given back. That of a job stays open until the job has
//! ended, as it may be refunded then. All of an entry counts on the day on which it was reserved.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::amount::Amount;

/// Days whose totals are kept, today included.
pub(crate) const DAYS_KEPT: i64 = 30;

/// What a total is kept for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) account: Arc<str>,
    pub(crate) client: Arc<str>,
    /// As it stands in the price list.
    pub(crate) model: Arc<str>,
}

/// A sum, or a change of one. What is given back is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) charged: i64,
    /// Of `charged`: for calls that may have been carried out or not, nobody knows.
    pub(crate) unknown: i64,
    pub(crate) reserved: i64,
    pub(crate) refunded: i64,
    /// Calls that were not given back.
    pub(crate) calls: i64,
    pub(crate) tokens: i64,
}

/// What has a budget of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// All accounts with one key.
    Account(Arc<str>),
    /// A client, inside its account's.
    Client(Arc<str>),
}

/// What a call asks of the book.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) key: Key,
    pub(crate) amount: Amount,
    /// What it is counted in, and the budget of each for a day.
    pub(crate) scopes: [(Scope, Option<Amount>); 2],
}

/// A budget that does not last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) needed: Amount,
    pub(crate) left: Amount,
    pub(crate) limit: Amount,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Reserved,
    /// Charged, as the create may have been carried out; its job may still turn up.
    Unknown,
    Charged,
}

/// How a reservation is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    /// Nothing was bought.
    Return,
    /// Something may have been: charged, and shown as such.
    Unknown,
    /// It was; `None`: at the price that was reserved. `open`: a job may still be refunded.
    Charge { exact: Option<(Amount, u64)>, open: bool },
}

/// What a job's end means for its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobEnd {
    Refund,
    /// With the price of its tokens, where they were counted.
    Keep(Option<(Amount, u64)>),
}

/// A change of one entry and its day's total, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) id: u64,
    /// The create's.
    pub(crate) number: Option<u64>,
    pub(crate) key: Key,
    pub(crate) day: i64,
    pub(crate) amount: Amount,
    /// `None`: it is new.
    pub(crate) from: Option<Stage>,
    /// `None`: it is closed.
    pub(crate) to: Option<Stage>,
    pub(crate) change: Tally,
}

/// An open entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) number: Option<u64>,
    pub(crate) key: Key,
    pub(crate) scopes: [Scope; 2],
    pub(crate) day: i64,
    pub(crate) amount: Amount,
    pub(crate) stage: Stage,
    /// Its job ended before it was settled.
    pub(crate) ended: Option<JobEnd>,
}

/// The book of today, and the totals of the days before.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) day: i64,
    /// Bounded by the configuration: days, accounts, clients, prices.
    pub(crate) totals: BTreeMap<(i64, Key), Tally>,
    used: HashMap<Scope, u64>,
    /// Bounded by calls under way and live jobs.
    open: HashMap<u64, Entry>,
    by_number: HashMap<u64, u64>,
}

impl Book {
    /// Takes up totals and entries of an earlier process. `scopes`: what an account and client count in.
    pub(crate) fn restore(
        day: i64,
        totals: impl IntoIterator<Item = ((i64, Key), Tally)>,
        entries: impl IntoIterator<Item = (u64, Entry)>,
        scopes: impl Fn(&Key) -> [Scope; 2],
    ) -> Self {
        let mut book = Self { day, ..Self::default() };
        for ((of, key), tally) in totals {
            if of == day {
                let spent = u64::try_from(tally.charged.saturating_add(tally.reserved)).unwrap_or_default();
                for scope in scopes(&key) {
                    *book.used.entry(scope).or_default() += spent;
                }
            }
            book.totals.insert((of, key), tally);
        }
        for (id, entry) in entries {
            book.by_number.extend(entry.number.map(|number| (number, id)));
            book.open.insert(id, entry);
        }
        book
    }

    /// Turns to a later day: a new budget.
    pub(crate) fn turn(&mut self, day: i64) {
        if day > self.day {
            self.day = day;
            self.used.clear();
            self.totals.retain(|(of, _), _| *of > day - DAYS_KEPT);
        }
    }

    /// What a scope has used today.
    pub(crate) fn used(&self, scope: &Scope) -> Amount {
        Amount::from_micro(self.used.get(scope).copied().unwrap_or_default())
    }

    /// What an account has used of the last day of which anything is known, today at least.
    pub(crate) fn last_day_of(&self, accounts: impl Fn(&str) -> bool) -> (i64, Amount) {
        let of = |key: &Key| accounts(&key.account);
        let last = self.totals.keys().filter(|(_, key)| of(key)).map(|(day, _)| *day).max();
        let day = last.map_or(self.day, |last| last.max(self.day));
        let totals = self.totals.iter().filter(|((on, key), _)| *on == day && of(key));
        let spent: i64 = totals.map(|(_, tally)| tally.charged.saturating_add(tally.reserved)).sum();
        (day, Amount::from_micro(u64::try_from(spent).unwrap_or_default()))
    }

    /// Whether both budgets last for this.
    pub(crate) fn check(&self, ask: &Ask) -> Result<(), Short> {
        for (scope, limit) in &ask.scopes {
            let Some(limit) = *limit else { continue };
            let left = limit.less(self.used(scope));
            if left < ask.amount {
                return Err(Short { needed: ask.amount, left, limit });
            }
        }
        Ok(())
    }

    /// Takes it out of both budgets, if they last. `number` is the create's, whose job's end may refund it.
    pub(crate) fn reserve(&mut self, id: u64, number: Option<u64>, ask: &Ask) -> Result<Move, Short> {
        self.reserve_on(self.day, id, number, ask)
    }

    /// The same, on a day that others have told.
    pub(crate) fn reserve_on(&mut self, day: i64, id: u64, number: Option<u64>, ask: &Ask) -> Result<Move, Short> {
        self.check(ask)?;
        let scopes = ask.scopes.clone().map(|(scope, _)| scope);
        let entry = Entry {
            number,
            key: ask.key.clone(),
            scopes,
            day,
            amount: ask.amount,
            stage: Stage::Reserved,
            ended: None,
        };
        let change = Tally { reserved: signed(ask.amount), calls: 1, ..Tally::default() };
        let made = self.moved(id, &entry, None, Some(Stage::Reserved), change);
        self.by_number.extend(number.map(|number| (number, id)));
        self.open.insert(id, entry);
        Ok(made)
    }

    /// Settles a reservation, if it is still one.
    pub(crate) fn settle(&mut self, id: u64, settle: Settle) -> Vec<Move> {
        if self.open.get(&id).is_none_or(|entry| entry.stage != Stage::Reserved) {
            return Vec::new();
        }
        let Some(mut entry) = self.open.remove(&id) else { return Vec::new() };
        let reserved = -signed(entry.amount);
        let (exact, open) = match settle {
            Settle::Return => {
                let change = Tally { reserved, calls: -1, ..Tally::default() };
                return vec![self.close(id, &entry, change)];
            }
            Settle::Unknown if entry.ended.is_none() => return vec![self.unknown(id, entry)],
            // Its job has turned up, and ended.
            Settle::Unknown => (None, true),
            Settle::Charge { exact, open } => (exact, open),
        };
        let (amount, tokens) = exact.unwrap_or((entry.amount, 0));
        let change = Tally { reserved, charged: signed(amount), tokens: whole(tokens), ..Tally::default() };
        if !open {
            return vec![self.close(id, &entry, change)];
        }
        (entry.amount, entry.stage) = (amount, Stage::Charged);
        let ended = entry.ended.take();
        let mut moves = vec![self.moved(id, &entry, Some(Stage::Reserved), Some(Stage::Charged), change)];
        let number = entry.number;
        self.open.insert(id, entry);
        if let (Some(end), Some(number)) = (ended, number) {
            moves.extend(self.job_ended(number, end));
        }
        moves
    }

    fn unknown(&mut self, id: u64, mut entry: Entry) -> Move {
        let amount = signed(entry.amount);
        let change = Tally { reserved: -amount, charged: amount, unknown: amount, ..Tally::default() };
        if entry.number.is_none() {
            return self.close(id, &entry, change);
        }
        entry.stage = Stage::Unknown;
        let made = self.moved(id, &entry, Some(Stage::Reserved), Some(Stage::Unknown), change);
        self.open.insert(id, entry);
        made
    }

    /// The job of a create of unknown outcome has turned up.
    pub(crate) fn known(&mut self, number: u64) -> Option<Move> {
        let id = *self.by_number.get(&number)?;
        let mut entry = self.open.get(&id).filter(|entry| entry.stage == Stage::Unknown)?.clone();
        entry.stage = Stage::Charged;
        let change = Tally { unknown: -signed(entry.amount), ..Tally::default() };
        let made = self.moved(id, &entry, Some(Stage::Unknown), Some(Stage::Charged), change);
        self.open.insert(id, entry);
        Some(made)
    }

    /// No end of a job will ever be told for this create: what is charged for it stays charged, and is unknown for ever if it was.
    pub(crate) fn stands(&mut self, number: u64) -> Option<Move> {
        let id = *self.by_number.get(&number)?;
        match self.open.get_mut(&id)? {
            reserved if reserved.stage == Stage::Reserved => {
                reserved.ended = Some(JobEnd::Keep(None));
                None
            }
            _ => {
                let entry = self.open.remove(&id)?;
                Some(self.close(id, &entry, Tally::default()))
            }
        }
    }

    /// The job of this create has ended.
    pub(crate) fn job_ended(&mut self, number: u64, end: JobEnd) -> Option<Move> {
        let id = *self.by_number.get(&number)?;
        let entry = self.open.get_mut(&id)?;
        if entry.stage == Stage::Reserved {
            entry.ended = Some(end);
            return None;
        }
        let entry = self.open.remove(&id)?;
        let amount = signed(entry.amount);
        let unknown = if entry.stage == Stage::Unknown { -amount } else { 0 };
        let change = match end {
            JobEnd::Refund => Tally { charged: -amount, refunded: amount, ..Tally::default() },
            JobEnd::Keep(None) => Tally::default(),
            JobEnd::Keep(Some((exact, tokens))) => {
                Tally { charged: signed(exact) - amount, tokens: whole(tokens), ..Tally::default() }
            }
        };
        Some(self.close(id, &entry, Tally { unknown, ..change }))
    }

    /// The model whose price an open entry has.
    pub(crate) fn model_of(&self, number: u64) -> Option<&str> {
        Some(&self.open.get(self.by_number.get(&number)?)?.key.model)
    }

    fn close(&mut self, id: u64, entry: &Entry, change: Tally) -> Move {
        if let Some(number) = entry.number {
            self.by_number.remove(&number);
        }
        self.moved(id, entry, Some(entry.stage), None, change)
    }

    /// Adds a change to the entry's day and, if that is today, to its budgets.
    fn moved(&mut self, id: u64, entry: &Entry, from: Option<Stage>, to: Option<Stage>, change: Tally) -> Move {
        self.totals.entry((entry.day, entry.key.clone())).or_default().add(change);
        if entry.day == self.day {
            let spent = change.charged.saturating_add(change.reserved);
            for scope in &entry.scopes {
                let used = self.used.entry(scope.clone()).or_default();
                *used = used.saturating_add_signed(spent);
            }
        }
        let key = entry.key.clone();
        Move { id, number: entry.number, key, day: entry.day, amount: entry.amount, from, to, change }
    }

    /// The number of open entries.
    #[cfg(test)]
    fn open(&self) -> usize {
        assert!(self.by_number.len() <= self.open.len());
        self.open.len()
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.charged = self.charged.saturating_add(other.charged);
        self.unknown = self.unknown.saturating_add(other.unknown);
        self.reserved = self.reserved.saturating_add(other.reserved);
        self.refunded = self.refunded.saturating_add(other.refunded);
        self.calls = self.calls.saturating_add(other.calls);
        self.tokens = self.tokens.saturating_add(other.tokens);
    }
}

fn signed(amount: Amount) -> i64 {
    whole(amount.micro())
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ACCOUNT: u64 = 50;
    const CLIENT: u64 = 20;

    fn ask(client: usize, amount: u64) -> Ask {
        let client: Arc<str> = ["web", "batch"][client].into();
        Ask {
            key: Key { account: "main".into(), client: Arc::clone(&client), model: "m".into() },
            amount: Amount::from_micro(amount),
            scopes: [
                (Scope::Account("main".into()), Some(Amount::from_micro(ACCOUNT))),
                (Scope::Client(client), Some(Amount::from_micro(CLIENT))),
            ],
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Reserve { client: usize, amount: u64 },
        Settle { which: usize, settle: Settle },
        End { which: usize, refund: bool },
        NextDay,
    }

    fn step() -> impl Strategy<Value = Step> {
        let open = any::<bool>().prop_map(|open| Settle::Charge { exact: None, open });
        prop_oneof![
            4 => (0_usize..2, 0_u64..12).prop_map(|(client, amount)| Step::Reserve { client, amount }),
            3 => (0_usize..60, prop_oneof![Just(Settle::Return), Just(Settle::Unknown), open])
                .prop_map(|(which, settle)| Step::Settle { which, settle }),
            3 => (0_usize..60, any::<bool>()).prop_map(|(which, refund)| Step::End { which, refund }),
            1 => Just(Step::NextDay),
        ]
    }

    /// What an entry costs by a plain list of what happened to it.
    #[derive(Clone, Default)]
    struct Plain {
        day: i64,
        client: usize,
        amount: u64,
        settled: Option<Settle>,
        end: Option<bool>,
    }

    impl Plain {
        fn cost(&self) -> u64 {
            match (self.settled, self.end) {
                (Some(Settle::Return), _) | (Some(Settle::Charge { open: true, .. } | Settle::Unknown), Some(true)) => {
                    0
                }
                _ => self.amount,
            }
        }
    }

    proptest! {
        #[test]
        fn never_above_the_budget_and_settled_once(steps in prop::collection::vec(step(), 0..120)) {
            let (mut book, mut plain, mut kept) = (Book::default(), Vec::<Plain>::new(), Tally::default());
            for step in steps {
                let mut moves = Vec::new();
                match step {
                    Step::Reserve { client, amount } => {
                        let used = |plain: &[Plain], client: Option<usize>| -> u64 {
                            let counts = |entry: &&Plain| entry.day == book.day && client.is_none_or(|client| client == entry.client);
                            plain.iter().filter(counts).map(Plain::cost).sum()
                        };
                        let fits = used(&plain, None) + amount <= ACCOUNT && used(&plain, Some(client)) + amount <= CLIENT;
                        let id = plain.len() as u64;
                        let made = book.reserve(id, Some(id + 1_000), &ask(client, amount));
                        prop_assert_eq!(made.is_ok(), fits, "{:?}", made);
                        if let Ok(made) = made {
                            moves.push(made);
                            plain.push(Plain { day: book.day, client, amount, ..Plain::default() });
                        }
                    }
                    Step::Settle { which, settle } => {
                        moves = book.settle(which as u64, settle);
                        if let Some(entry) = plain.get_mut(which) {
                            prop_assert_eq!(!moves.is_empty(), entry.settled.is_none(), "once");
                            entry.settled.get_or_insert(settle);
                        }
                    }
                    Step::End { which, refund } => {
                        let end = if refund { JobEnd::Refund } else { JobEnd::Keep(None) };
                        moves.extend(book.job_ended(which as u64 + 1_000, end));
                        if let Some(entry) = plain.get_mut(which) {
                            // Before it is settled the last word counts, afterwards the first.
                            if entry.settled.is_none() {
                                entry.end = Some(refund);
                            } else {
                                entry.end.get_or_insert(refund);
                            }
                        }
                    }
                    Step::NextDay => book.turn(book.day + 1),
                }
                for made in &moves {
                    kept.add(made.change);
                }
                let spent = |client: &str| {
                    let today = plain.iter().filter(|entry| entry.day == book.day && ["web", "batch"][entry.client] == client);
                    today.map(Plain::cost).sum::<u64>()
                };
                for client in ["web", "batch"] {
                    prop_assert_eq!(book.used(&Scope::Client(client.into())).micro(), spent(client));
                }
                prop_assert_eq!(book.used(&Scope::Account("main".into())).micro(), spent("web") + spent("batch"));
                let whole: u64 = plain.iter().map(Plain::cost).sum();
                prop_assert_eq!(kept.charged + kept.reserved, i64::try_from(whole).expect("small"), "the ledger is told all");
            }
            for which in 0..plain.len() {
                book.settle(which as u64, Settle::Return);
                book.job_ended(which as u64 + 1_000, JobEnd::Refund);
            }
            prop_assert_eq!(book.open(), 0);
        }

        #[test]
        fn a_book_restored_from_its_moves_goes_on_alike(amounts in prop::collection::vec((0_usize..2, 0_u64..12), 0..20)) {
            let mut book = Book::default();
            let mut totals = BTreeMap::<(i64, Key), Tally>::new();
            for (id, (client, amount)) in amounts.into_iter().enumerate() {
                if let Ok(made) = book.reserve(id as u64, None, &ask(client, amount)) {
                    totals.entry((made.day, made.key.clone())).or_default().add(made.change);
                }
            }
            let scopes = |key: &Key| [Scope::Account(Arc::clone(&key.account)), Scope::Client(Arc::clone(&key.client))];
            let again = Book::restore(0, totals, [], scopes);
            for scope in [Scope::Account("main".into()), Scope::Client("web".into()), Scope::Client("batch".into())] {
                prop_assert_eq!(book.used(&scope), again.used(&scope));
            }
        }
    }

    #[test]
    fn a_price_found_out_later_replaces_the_reserved_one() {
        let mut book = Book::default();
        book.reserve(1, None, &ask(0, 10)).expect("room");
        let exact = Some((Amount::from_micro(30), 15_000));
        let moves = book.settle(1, Settle::Charge { exact, open: false });
        assert_eq!(moves[0].change, Tally { charged: 30, reserved: -10, tokens: 15_000, ..Tally::default() });
        let short = book.reserve(2, None, &ask(0, 1)).expect_err("above its budget already");
        assert_eq!(short.left, Amount::ZERO);
    }

    #[test]
    fn an_unknown_outcome_is_charged_and_shown_until_it_is_known() {
        let mut book = Book::default();
        let mut total = Tally::default();
        for id in 1..=4 {
            total.add(book.reserve(id, (id < 4).then_some(id), &ask(0, 5)).expect("room").change);
            book.settle(id, Settle::Unknown).iter().for_each(|made| total.add(made.change));
        }
        assert_eq!((total.charged, total.unknown, total.reserved, book.open()), (20, 20, 0, 3));
        let made =
            [book.known(1), book.job_ended(1, JobEnd::Keep(None)), book.job_ended(2, JobEnd::Refund), book.stands(3)];
        for made in made {
            total.add(made.expect("a change").change);
        }
        assert_eq!((total.charged, total.unknown, total.refunded, book.open()), (15, 10, 5, 0));
        assert!(book.known(3).is_none(), "too late");
    }

    #[test]
    fn what_no_end_will_be_told_for_is_closed_when_it_is_settled() {
        let mut book = Book::default();
        book.reserve(1, Some(7), &ask(0, 5)).expect("room");
        assert!(book.stands(7).is_none());
        let moves = book.settle(1, Settle::Charge { exact: None, open: true });
        assert_eq!((moves.len(), moves[1].to, book.open()), (2, None, 0));
        assert_eq!(book.used(&Scope::Client("web".into())).micro(), 5);
    }
}
