//! Parts of a multipart form (RFC 7578) as they stand in the text, so that one can be cut out without touching the rest.
//!
//! Of a form that is still coming, only parts that are here to their end are seen.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use super::event::Events;
use super::intake::{Asked, EVENTS, WEBHOOK};

/// A part: its name, where it stands from its delimiter to the next, and its value.
#[derive(Debug)]
struct Part {
    name: String,
    all: Range<usize>,
    value: Range<usize>,
}

/// What separates the parts, from `Content-Type`; `None`: this is no form.
pub(crate) fn boundary(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let mut parameters = kind.split(';');
    let essence = parameters.next()?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let named = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    });
    named.filter(|boundary| !boundary.is_empty())
}

/// The webhook that a form asks for. Its events are a JSON list, words with commas, or a part each.
pub(crate) fn asked(form: &[u8], boundary: &str) -> Option<Asked> {
    let parts = parts(form, boundary);
    let text = |part: &Part| std::str::from_utf8(&form[part.value.clone()]).ok().map(str::to_owned);
    let url = parts.iter().rev().find(|part| part.name == WEBHOOK).and_then(text)?;
    let mut words = Vec::new();
    for events in parts.iter().filter(|part| part.name == EVENTS).filter_map(text) {
        match serde_json::from_str(&events) {
            Ok(Value::Array(list)) => words.extend(list),
            _ => words.extend(events.split(',').map(|word| Value::from(word.trim()))),
        }
    }
    let list = (!words.is_empty()).then_some(Value::Array(words));
    Some(Asked { url, events: Events::of(list.as_ref()) })
}

/// The form with `url` for its webhook, or without one; without its events in any case: all are told, and which are passed on is decided here.
pub(crate) fn rewritten(form: &[u8], boundary: &str, url: Option<&str>) -> Option<Bytes> {
    let (mut new, mut at) = (Vec::with_capacity(form.len()), 0);
    for part in parts(form, boundary) {
        let (gone, put) = match (part.name.as_str(), url) {
            (WEBHOOK, Some(url)) => (part.value, url),
            (WEBHOOK, None) | (EVENTS, _) => (part.all, ""),
            _ => continue,
        };
        new.extend_from_slice(form.get(at..gone.start)?);
        new.extend_from_slice(put.as_bytes());
        at = gone.end;
    }
    new.extend_from_slice(form.get(at..)?);
    Some(new.into())
}

fn parts(form: &[u8], boundary: &str) -> Vec<Part> {
    let delimiter = format!("--{boundary}");
    // Behind a line break, but for the first.
    let is_start = |at: usize| at == 0 || form[..at].ends_with(b"\r\n");
    let starts: Vec<usize> = memchr_all(form, delimiter.as_bytes()).filter(|at| is_start(*at)).collect();
    let part = |pair: &[usize]| {
        let (start, end) = (pair[0], pair[1]);
        let inside = form.get(start + delimiter.len()..end)?;
        let head_end = memchr_all(inside, b"\r\n\r\n").next()?;
        let name = name_of(std::str::from_utf8(&inside[..head_end]).ok()?)?;
        let value = start + delimiter.len() + head_end + 4..end.checked_sub(2)?;
        (value.start <= value.end).then_some(Part { name, all: start..end, value })
    };
    starts.windows(2).filter_map(part).collect()
}

/// The `name` of a part that is no file.
fn name_of(head: &str) -> Option<String> {
    let fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let (_, disposition) = { fields }.find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))?;
    let parameters: Vec<(&str, &str)> =
        disposition.split(';').filter_map(|parameter| parameter.trim().split_once('=')).collect();
    let value =
        |wanted: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value);
    if value("filename").is_some() {
        return None;
    }
    Some(value("name")?.trim_matches('"').to_owned())
}

fn memchr_all<'t>(text: &'t [u8], what: &'t [u8]) -> impl Iterator<Item = usize> + 't {
    let mut at = 0;
    std::iter::from_fn(move || {
        let found = at + text.get(at..)?.windows(what.len()).position(|here| here == what)?;
        at = found + what.len();
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn part(name: &str, value: &str) -> String {
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    }

    #[test]
    fn the_boundary_is_read_from_the_content_type() {
        let of = |kind: &'static str| {
            boundary(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]))
        };
        assert_eq!(of("multipart/form-data; boundary=XX").as_deref(), Some("XX"));
        assert_eq!(of("Multipart/Form-Data; charset=utf-8; Boundary=\"X X\"").as_deref(), Some("X X"));
        assert_eq!(of("application/json; boundary=XX"), None);
        assert_eq!(of("multipart/form-data"), None);
    }

    #[test]
    fn a_webhook_is_found_and_cut_out() {
        let file = "--XX\r\nContent-Disposition: form-data; name=\"webhook\"; filename=\"a\"\r\n\r\n--XY\r\n\r\n";
        let [model, hook, events, input] =
            [part("model", "m"), part("webhook", "http://a/"), part("webhook_events", "failed"), part("input", "{}")];
        let form = format!("{model}{hook}{file}{events}{input}--XX--\r\n");
        let found = asked(form.as_bytes(), "XX").expect("a webhook");
        let failed = Events { completed: false, failed: true };
        assert_eq!(found, Asked { url: "http://a/".into(), events: failed });
        let without = rewritten(form.as_bytes(), "XX", None).expect("a form");
        assert_eq!(without, format!("{model}{file}{input}--XX--\r\n"));
        let with = rewritten(form.as_bytes(), "XX", Some("https://p/1")).expect("a form");
        assert_eq!(with, format!("{model}{}{file}{input}--XX--\r\n", part("webhook", "https://p/1")));
        assert!(asked(format!("{model}{hook}").as_bytes(), "XX").is_none(), "not known to be whole");
        assert!(asked(format!("{file}--XX--").as_bytes(), "XX").is_none(), "a file");
        for list in ["[\"failed\"]", "failed, other"] {
            let form = format!("{hook}{}--XX--", part("webhook_events", list));
            assert_eq!(asked(form.as_bytes(), "XX").expect("a webhook").events, failed);
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_and_what_is_no_webhook_stays(bytes in prop::collection::vec(any::<u8>(), 0..120), at in 0_usize..120) {
            let mut form = bytes;
            let at = at.min(form.len());
            form.splice(at..at, part("webhook", "u").into_bytes());
            asked(&form, "XX");
            rewritten(&form, "XX", None);
        }
    }
}
