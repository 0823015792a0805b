//! A reservation as a value: dropped, it is given back if nothing can have been bought, and charged if something may have been.

use std::sync::Arc;

use http::response;

use crate::proxy::jobs::{Charge, may_have_been_done};

use super::amount::Amount;
use super::book::Settle;
use super::tokens::Reader;
use super::{Credits, Receipt};

/// A reservation that is not settled.
#[must_use]
pub(crate) struct Hold {
    credits: Arc<Credits>,
    id: u64,
    amount: Amount,
    rate: Option<Amount>,
    /// The last attempt may have been carried out; and one before it.
    unknown: bool,
    doubt: bool,
    settled: bool,
}

impl Hold {
    pub(super) fn new(credits: Arc<Credits>, id: u64, amount: Amount, rate: Option<Amount>) -> Self {
        Self { credits, id, amount, rate, unknown: false, doubt: false, settled: false }
    }

    /// The next attempt is being written.
    pub(crate) fn sending(&mut self) {
        self.doubt |= self.unknown;
        self.unknown = true;
    }

    /// The last attempt was provably not carried out.
    pub(crate) fn not_done(&mut self) {
        self.unknown = self.doubt;
    }

    /// There is no answer: charged if it may have been carried out.
    pub(crate) fn settle(mut self) -> Receipt {
        self.close(if self.unknown { Settle::Unknown } else { Settle::Return })
    }

    /// There is one. A create is settled by what became of it, and a job's entry stays open until it ends; an LLM call by its status,
    /// and where tokens decide they are counted while the answer passes by.
    pub(crate) fn answered(
        mut self,
        head: &response::Parts,
        create: Option<Charge>,
    ) -> (Option<Receipt>, Option<Box<Meter>>) {
        if let Some(charge) = create {
            let settle = match charge {
                Charge::Accepted => Settle::Charge { exact: None, open: true },
                Charge::Unknown => Settle::Unknown,
                Charge::Refused | Charge::NotSent => Settle::Return,
            };
            return (Some(self.close(settle)), None);
        }
        if !head.status.is_success() {
            if !may_have_been_done(head.status) {
                self.not_done();
            }
            return (Some(self.settle()), None);
        }
        if self.rate.is_none() {
            return (Some(self.close(Settle::Charge { exact: None, open: false })), None);
        }
        let reader = Reader::new(&head.headers);
        if reader.is_blind() {
            tracing::debug!("a compressed answer: its tokens are not counted, what was reserved is charged");
        }
        (Some(Receipt::Reserved(self.amount)), Some(Box::new(Meter { hold: self, reader })))
    }

    fn close(&mut self, settle: Settle) -> Receipt {
        if !std::mem::replace(&mut self.settled, true) {
            self.credits.settle(self.id, settle);
        }
        Receipt::Charged(if settle == Settle::Return { Amount::ZERO } else { self.amount })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let bought = self.unknown;
        self.close(if bought { Settle::Unknown } else { Settle::Return });
    }
}

/// Counts the tokens of an answer while it is passed on.
pub(crate) struct Meter {
    hold: Hold,
    reader: Reader,
}

impl Meter {
    pub(crate) fn feed(&mut self, data: &[u8]) {
        self.reader.feed(data);
    }

    /// The answer has ended. One that was cut may have cost more than was seen of it.
    pub(crate) fn end(mut self, whole: bool) {
        let counted = self.reader.tokens().zip(self.hold.rate).map(|(tokens, rate)| (rate.for_tokens(tokens), tokens));
        let exact = counted.map(|(amount, tokens)| (if whole { amount } else { amount.max(self.hold.amount) }, tokens));
        if exact.is_none() {
            self.hold.credits.metrics.uncounted();
        }
        self.hold.close(Settle::Charge { exact, open: false });
    }
}
