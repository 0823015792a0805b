//! `sluicegate schema`: the JSON Schema of `proxy.toml`, for editors.

use crate::config;

use super::say;

pub(super) fn schema() -> u8 {
    say(text().trim_end());
    0
}

/// As it stands in a file of its own.
pub(super) fn text() -> String {
    format!("{:#}\n", config::schema())
}
