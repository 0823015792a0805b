//! `substitute`, `caps`, `deny_models` and `allow_models` of an account.

use serde_json::Number;

use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text, unexpected};
use crate::config::report::quoted;
use crate::config::{Models, Rules};

pub(super) fn read(section: &Section<'_>) -> Rules {
    Rules { substitute: substitute(section), caps: caps(section), models: models(section) }
}

fn substitute(section: &Section<'_>) -> Vec<(String, String)> {
    let table = section.section("substitute");
    let pair = |from: &str| {
        if let Err(complaint) = model(from) {
            table.complain(from, complaint);
        }
        let to = table.read(from, |value| {
            let to = model(text(value)?)?;
            if to == from { Err(Complaint::new("is replaced by itself")) } else { Ok(to.to_owned()) }
        })?;
        Some((from.to_owned(), to))
    };
    table.names().filter_map(pair).collect()
}

fn caps(section: &Section<'_>) -> Vec<(String, Number)> {
    let table = section.section("caps");
    table.names().filter_map(|field| Some((field.to_owned(), table.read(field, number)?))).collect()
}

/// Whole or fractional, of a size that any API reads.
fn number(value: &Value) -> Result<Number, Complaint> {
    match value {
        Value::Whole(number) => i64::try_from(*number).map(Number::from).map_err(|_| Complaint::new("is too large")),
        Value::Real(number) => Number::from_f64(*number).ok_or_else(|| Complaint::new("must be a finite number")),
        other => Err(unexpected("a number", other)),
    }
}

fn models(section: &Section<'_>) -> Models {
    let names = |key| section.list(key, |value| model(text(value)?).map(str::to_owned));
    let (allowed, denied) = (names("allow_models"), names("deny_models").unwrap_or_default());
    if section.has("allow_models") && section.has("deny_models") {
        let complaint = Complaint::new("stands beside allow_models, which leaves nothing to deny");
        section.complain("deny_models", complaint.help("keep one of the two"));
    }
    match allowed {
        Some(allowed) => Models::Only(allowed),
        None if denied.is_empty() => Models::Any,
        None => Models::Not(denied),
    }
}

/// A name of a model, as creates use it.
pub(super) fn model(name: &str) -> Result<&str, Complaint> {
    if (1..=200).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(name)
    } else {
        let complaint = Complaint::new(format!("has {}, which is no model name", quoted(name)));
        Err(complaint.help("use 1 to 200 visible ASCII characters"))
    }
}
