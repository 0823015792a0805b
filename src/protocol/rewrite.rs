//! Absolute URLs of the upstream in its answers, turned to us: else a client that follows them goes past the proxy, with a placeholder
//! for a key.
//!
//! Only the URLs change. The rest of the body stays as it came, byte for byte.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::pointer::{Members, Pointer, text};

/// The body with every URL at `pointers` through `turn`; `None` where nothing changes.
pub(crate) fn rewrite(body: &[u8], pointers: &[Pointer], turn: impl Fn(&str) -> Option<String>) -> Option<Bytes> {
    if pointers.is_empty() {
        return None;
    }
    let members = Members::of(body)?;
    // Where each stands in the body: from, to, and what takes its place.
    let mut turned: Vec<(usize, usize, String)> = Vec::new();
    let mut found = |value: &RawValue| {
        let raw = value.get();
        let from = raw.as_ptr().addr().checked_sub(body.as_ptr().addr());
        let url = raw.starts_with('"').then(|| text(value)).flatten();
        let new = url.and_then(|url| turn(&url)).and_then(|url| serde_json::to_string(&url).ok());
        if let (Some(from), Some(new)) = (from, new) {
            turned.push((from, from + raw.len(), new));
        }
    };
    for pointer in pointers {
        pointer.each(&members, &mut found);
    }
    turned.sort_unstable_by_key(|(from, ..)| *from);
    turned.dedup_by_key(|(from, ..)| *from);
    if turned.is_empty() {
        return None;
    }
    let mut new = Vec::with_capacity(body.len() + turned.len() * 16);
    let mut at = 0;
    for (from, to, url) in turned {
        new.extend_from_slice(body.get(at..from)?);
        new.extend_from_slice(url.as_bytes());
        at = to;
    }
    new.extend_from_slice(body.get(at..)?);
    Some(new.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const THEIRS: &str = "https://api.replicate.com";
    const OURS: &str = "http://localhost:8787";

    fn pointers(list: &[&str]) -> Vec<Pointer> {
        list.iter().map(|text| Pointer::parse(text).expect("a pointer")).collect()
    }

    fn swap(body: &[u8], list: &[&str], from: &str, to: &str) -> Option<Bytes> {
        rewrite(body, &pointers(list), |url| Some(format!("{to}{}", url.strip_prefix(from)?)))
    }

    #[test]
    fn urls_turn_and_the_rest_stays_byte_for_byte() {
        let body = br#"{ "id":"p",  "urls" : {"get":"https:\/\/api.replicate.com\/v1\/predictions\/p",
            "stream":"https://stream.replicate.com/x","n":1}, "output":["https://api.replicate.com/no"], "f": 1.500 }"#;
        let expected = br#"{ "id":"p",  "urls" : {"get":"http://localhost:8787/v1/predictions/p",
            "stream":"https://stream.replicate.com/x","n":1}, "output":["https://api.replicate.com/no"], "f": 1.500 }"#;
        let turned = swap(body, &["/urls/*", "/urls/get", "/none"], THEIRS, OURS).expect("changed");
        assert_eq!(turned, expected.as_slice());
        assert_eq!(swap(body, &["/id", "/urls/stream", "/output"], THEIRS, OURS), None);
        assert_eq!(swap(b"not JSON", &["/urls/*"], THEIRS, OURS), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let url = prop_oneof![
            Just("https://api.replicate.com/v1/predictions/p\"\\é".to_owned()),
            Just("https://api.replicate.com".to_owned()),
            Just("https://evil.example/".to_owned()),
            "[ -~é\\n]{0,12}",
        ];
        let leaf = prop_oneof![
            url.prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            any::<i64>().prop_map(Value::from),
            Just(Value::Null),
        ];
        let key = prop_oneof![Just("urls".to_owned()), Just("get".to_owned()), "[a-zé\"/ ]{0,4}"];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// The same by the usual reader.
    fn oracle(mut value: Value) -> Value {
        if let Some(urls) = value.get_mut("urls") {
            let members: Vec<&mut Value> = match urls {
                Value::Object(members) => members.values_mut().collect(),
                Value::Array(items) => items.iter_mut().collect(),
                _ => Vec::new(),
            };
            for member in members {
                if let Some(rest) = member.as_str().and_then(|url| url.strip_prefix(THEIRS)) {
                    *member = json!(format!("{OURS}{rest}"));
                }
            }
        }
        value
    }

    proptest! {
        #[test]
        fn rewriting_changes_nothing_but_the_urls(value in any_json(), urls in any_json(), pretty in any::<bool>()) {
            let mut value = value;
            if let Some(object) = value.as_object_mut() {
                object.insert("urls".into(), urls);
            }
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.expect("JSON");
            let turned = swap(text.as_bytes(), &["/urls/*"], THEIRS, OURS);
            let read: Value = serde_json::from_slice(turned.as_deref().unwrap_or(text.as_bytes())).expect("still JSON");
            let expected = if value.is_object() { oracle(value) } else { value };
            prop_assert_eq!(read, expected);
            // And back again, to the byte.
            if let Some(turned) = turned.filter(|_| !text.contains(OURS)) {
                let back = swap(&turned, &["/urls/*"], OURS, THEIRS).expect("the same URLs");
                prop_assert_eq!(std::str::from_utf8(&back).expect("text"), text);
            }
        }
    }
}
