//! How long one waits: what a refusal asks for in its body, and what a caller offers with `Prefer: wait`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::pointer::{Members, Pointer, text};

/// RFC 7240.
pub(crate) const PREFER: HeaderName = HeaderName::from_static("prefer");
/// What `Prefer: wait` without a number means.
const WAIT: Duration = Duration::from_secs(60);
/// Longer offers are taken as this.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const DAY: f64 = 86_400.0;

/// Where a 429 without `Retry-After` says how long to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WaitField {
    pub(crate) at: Pointer,
    /// What stands around the seconds in a text: `("~", "s")`. `None`: the value is the seconds.
    pub(crate) around: Option<(String, String)>,
}

impl WaitField {
    /// Reads it out of the answer; at most a day.
    pub(crate) fn read(&self, body: &[u8]) -> Option<Duration> {
        let value = self.at.first(&Members::of(body)?)?;
        let said = if value.get().starts_with('"') { text(value)? } else { value.get().to_owned() };
        let seconds: f64 = match &self.around {
            None => said.trim().parse().ok()?,
            Some((before, after)) => said.match_indices(before.as_str()).find_map(|(at, _)| {
                let rest = said.get(at + before.len()..)?;
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
                rest.get(end..)?.starts_with(after.as_str()).then(|| rest.get(..end)?.parse().ok())?
            })?,
        };
        if seconds.is_nan() { None } else { Duration::try_from_secs_f64(seconds.min(DAY)).ok() }
    }
}

/// Takes apart the text around the seconds: `~{seconds}s`.
pub(crate) fn around(text: &str) -> Option<(String, String)> {
    let (before, after) = text.split_once("{seconds}")?;
    let touches = |c: char| c.is_ascii_digit() || c == '.';
    let fit = !before.is_empty() && !after.contains("{seconds}") && !after.starts_with(touches);
    fit.then(|| (before.to_owned(), after.to_owned()))
}

/// How long a caller lets its answer be held: `Prefer: wait`, `Prefer: wait=5`.
pub(crate) fn offered(headers: &HeaderMap) -> Option<Duration> {
    let mut preferences =
        headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    preferences.find_map(wait)
}

/// Takes the offer out, and leaves other preferences.
pub(crate) fn withdraw(headers: &mut HeaderMap) {
    // Most requests prefer nothing, and a look-up would hash.
    if !headers.keys().any(|name| *name == PREFER) || offered(headers).is_none() {
        return;
    }
    let kept: Vec<String> = headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|preference| wait(preference).is_none())
        .map(|preference| preference.trim().to_owned())
        .collect();
    headers.remove(PREFER);
    if let Some(kept) = HeaderValue::from_str(&kept.join(", ")).ok().filter(|kept| !kept.is_empty()) {
        headers.insert(PREFER, kept);
    }
}

fn wait(preference: &str) -> Option<Duration> {
    let preference = preference.split(';').next().unwrap_or_default();
    let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    let value = value.trim().trim_matches('"');
    let wait = if value.is_empty() { WAIT } else { Duration::from_secs(value.parse().ok()?) };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(pointer: &str, pattern: Option<&str>) -> WaitField {
        let around = pattern.map(|text| around(text).expect("a pattern"));
        WaitField { at: Pointer::parse(pointer).expect("a pointer"), around }
    }

    #[test]
    fn waits_are_read_from_numbers_and_texts() {
        let seconds = |field: &WaitField, body: &str| field.read(body.as_bytes()).map(|wait| wait.as_secs_f64());
        let number = field("/retry_after", None);
        assert_eq!(seconds(&number, r#"{"retry_after": 2.5}"#), Some(2.5));
        assert_eq!(seconds(&number, r#"{"retry_after": " 7 "}"#), Some(7.0));
        assert_eq!(seconds(&number, r#"{"retry_after": 1e300}"#), Some(86_400.0));
        for body in [r#"{"retry_after": -1}"#, r#"{"retry_after": null}"#, r#"{"retry_after": "NaN"}"#, "{}", "no"] {
            assert_eq!(seconds(&number, body), None, "{body}");
        }
        let text = field("/detail", Some("~{seconds}s"));
        assert_eq!(
            seconds(&text, r#"{"detail":"Request was throttled. Your rate limit resets in ~30s."}"#),
            Some(30.0)
        );
        assert_eq!(seconds(&text, r#"{"detail":"about ~x, then ~0.5s"}"#), Some(0.5));
        assert_eq!(seconds(&text, r#"{"detail":"in ~30 s"}"#), None);
        assert!(around("{seconds}s").is_none() && around("~s").is_none() && around("~{seconds}5").is_none());
    }

    #[test]
    fn an_offer_to_wait_is_read_and_withdrawn() {
        let headers = |value: &'static str| HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]);
        let seconds = |value| offered(&headers(value)).map(|wait| wait.as_secs());
        assert_eq!(
            (seconds("wait"), seconds("respond-async, Wait=5;x=1"), seconds("wait=\"7\"")),
            (Some(60), Some(5), Some(7))
        );
        assert_eq!((seconds("wait=99999"), seconds("wait=soon"), seconds("waiting=5")), (Some(600), None, None));
        let kept = |value| {
            let mut headers = headers(value);
            withdraw(&mut headers);
            headers.get(PREFER).map(|value| value.to_str().expect("text").to_owned())
        };
        assert_eq!((kept("wait=5"), kept("respond-async, wait")), (None, Some("respond-async".into())));
        assert_eq!(kept("return=minimal").as_deref(), Some("return=minimal"));
    }
}
