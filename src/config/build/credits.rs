//! `[credits]`, and the amounts in other sections.

use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text, unexpected};
use crate::config::report::quoted;
use crate::config::{Amount, Credits, Price, Refund, suggest};

const REFUNDS: [(&str, Refund); 4] = [
    ("failed", Refund::Failed),
    ("cancelled", Refund::Cancelled),
    ("expired", Refund::Expired),
    ("gone", Refund::Gone),
];

pub(super) fn read(root: &Section<'_>) -> Credits {
    let section = root.section("credits");
    Credits {
        utc_offset_secs: section.read("utc_offset", offset).unwrap_or(0),
        refund: section.list("refund", refund).unwrap_or_else(|| vec![Refund::Failed]),
    }
}

fn refund(value: &Value) -> Result<Refund, Complaint> {
    let word = text(value)?;
    REFUNDS.iter().find(|(name, _)| *name == word).map(|(_, end)| *end).ok_or_else(|| {
        let complaint =
            Complaint::new(format!("must be \"failed\", \"cancelled\", \"expired\" or \"gone\", not {}", quoted(word)));
        complaint.maybe_help(
            suggest::nearest(word, REFUNDS.iter().map(|(name, _)| *name))
                .map(|near| format!("did you mean \"{near}\"?")),
        )
    })
}

/// `+05:30`, to 14 hours either way.
fn offset(value: &Value) -> Result<i32, Complaint> {
    let wrong = || Complaint::new("must be hours and minutes east of UTC, like \"+00:00\" or \"-05:30\"");
    let written = text(value)?;
    let (sign, rest) = match written.as_bytes().first() {
        Some(b'+') => (1, &written[1..]),
        Some(b'-') => (-1, &written[1..]),
        _ => return Err(wrong()),
    };
    let parts = rest.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2);
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<i32>().ok()).flatten();
    let (hours, minutes) =
        parts.and_then(|(hours, minutes)| Some((number(hours)?, number(minutes)?))).ok_or_else(wrong)?;
    let secs = (hours * 60 + minutes) * 60;
    if minutes < 60 && secs <= 14 * 3600 { Ok(sign * secs) } else { Err(wrong()) }
}

/// The price of a model, by the call or by tokens.
pub(super) fn price(section: &Section<'_>) -> Option<Price> {
    let call = section.read("credits", amount);
    let tokens = section.read("credits_per_1k_tokens", amount);
    if section.has("credits") && section.has("credits_per_1k_tokens") {
        section.complain("credits_per_1k_tokens", Complaint::new("stands beside credits: a model has one price"));
    }
    call.map(Price::Call).or(tokens.map(Price::ThousandTokens))
}

/// A day's budget.
pub(super) fn budget(value: &Value) -> Result<Amount, Complaint> {
    match amount(value)? {
        Amount::ZERO => Err(Complaint::new("must be more than 0")),
        budget => Ok(budget),
    }
}

#[allow(clippy::cast_precision_loss, reason = "numbers that lose by it are beyond the bound")]
fn amount(value: &Value) -> Result<Amount, Complaint> {
    let number = match value {
        Value::Whole(number) => *number as f64,
        Value::Real(number) => *number,
        other => return Err(unexpected("a number of credits", other)),
    };
    Amount::of(number).ok_or_else(|| Complaint::new("must be from 0 to 1000000000, with at most six decimals"))
}
