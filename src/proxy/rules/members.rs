//! The members of a JSON object, each with the place of its value: to change one and leave the others as they are.

use std::fmt;
use std::ops::Range;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// Keys, in order and with repetitions, and where their values stand; `None` where the text is no JSON object.
pub(crate) fn members(text: &[u8]) -> Option<Vec<(String, Range<usize>)>> {
    let text = str::from_utf8(text).ok()?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let raw = reader.deserialize_map(Members).ok()?;
    reader.end().ok()?;
    let start = text.as_ptr().addr();
    let place = |value: &RawValue| {
        let from = value.get().as_ptr().addr().checked_sub(start)?;
        Some(from..from + value.get().len())
    };
    raw.into_iter().map(|(key, value)| Some((key, place(value)?))).collect()
}

/// The text of a JSON string.
pub(crate) fn string(raw: &[u8]) -> Option<String> {
    serde_json::from_slice(raw).ok()
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}
