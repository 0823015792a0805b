//! The create on its way up: what becomes of its `webhook`, and the body without it.
//!
//! Members are cut out of the JSON text, which is otherwise passed on byte for byte: parsing and printing it again would change numbers
//! that no `f64` holds, repeated members and escapes, and with them perhaps what is paid for.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::event::Events;
use super::form;

pub(super) const WEBHOOK: &str = "webhook";
pub(super) const EVENTS: &str = "webhook_events";
/// Fields that tell of the body's exact bytes.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// The webhook that a create asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) url: String,
    pub(crate) events: Events,
}

/// How a create's body is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    Json,
    /// With this boundary.
    Form(String),
}

impl Shape {
    /// What a create asks for; `None` where it asks for nothing.
    pub(crate) fn asked(&self, body: &[u8]) -> Option<Asked> {
        match self {
            Self::Json => asked(body),
            Self::Form(boundary) => form::asked(body, boundary),
        }
    }

    /// The body with `url` in place of its webhook, and with all events; or without both.
    pub(crate) fn rewritten(&self, body: &[u8], url: Option<&str>) -> Option<Bytes> {
        match self {
            Self::Json => rewritten(body, url),
            Self::Form(boundary) => form::rewritten(body, boundary, url),
        }
    }

    /// Length and digests of the body that is sent. What is sent of a form may be its beginning: its length goes by what follows.
    pub(crate) fn describe(&self, headers: &mut HeaderMap, body: &[u8]) {
        if *self == Self::Json {
            return describe(headers, body);
        }
        headers.remove(header::CONTENT_LENGTH);
        for name in &DIGESTS {
            headers.remove(name);
        }
    }
}

/// What a JSON create asks for; `None` where it asks for none, or is not an object.
fn asked(body: &[u8]) -> Option<Asked> {
    // Most creates name none: spare them the parsing. An escaped name would be no name that anybody writes, but it is one.
    if !contains(body, WEBHOOK.as_bytes()) && !contains(body, b"\\u") {
        return None;
    }
    let members = members(body)?;
    // Of repeated members the last counts, as everywhere.
    let value = |name: &str| {
        let member = members.iter().rev().find(|member| member.name == name)?;
        serde_json::from_str::<Value>(member.value.get()).ok()
    };
    let Value::String(url) = value(WEBHOOK)? else { return None };
    Some(Asked { url, events: Events::of(value(EVENTS).as_ref()) })
}

fn describe(headers: &mut HeaderMap, body: &[u8]) {
    if headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    for name in &DIGESTS {
        headers.remove(name);
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|at| at == what)
}

/// The body with `url` in place of its webhook, and both events in place of those it asked for: which are passed on is decided here. Or
/// without both.
fn rewritten(body: &[u8], url: Option<&str>) -> Option<Bytes> {
    let members = members(body)?;
    let values = members.iter().map(|member| value_range(body, member)).collect::<Option<Vec<_>>>()?;
    let mut start = body.iter().position(|byte| *byte == b'{')? + 1;
    let mut out = body.get(..start)?.to_vec();
    let (mut first, last) = (true, members.len().checked_sub(1)?);
    for (index, (member, value)) in members.iter().zip(&values).enumerate() {
        // From one comma to the next; what follows the last value is no member's.
        let comma = || Some(value.end + body.get(value.end..)?.iter().position(|byte| *byte == b',')?);
        let end = if index == last { value.end } else { comma()? };
        let new = match (member.name.as_str(), url) {
            (WEBHOOK | EVENTS, None) => {
                start = end + 1;
                continue;
            }
            (WEBHOOK, Some(url)) => Some(Value::from(url).to_string()),
            (EVENTS, Some(_)) => Some(r#"["completed","failed"]"#.to_owned()),
            _ => None,
        };
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        match new {
            Some(new) => {
                out.extend_from_slice(body.get(start..value.start)?);
                out.extend_from_slice(new.as_bytes());
                out.extend_from_slice(body.get(value.end..end)?);
            }
            None => out.extend_from_slice(body.get(start..end)?),
        }
        start = end + 1;
    }
    out.extend_from_slice(body.get(values.last()?.end..)?);
    Some(out.into())
}

/// Where a member's value stands in the text.
fn value_range(body: &[u8], member: &Member<'_>) -> Option<Range<usize>> {
    let value = member.value.get();
    let start = (value.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let range = start..start + value.len();
    (range.end <= body.len()).then_some(range)
}

/// One member of the object, its value as it stands in the text.
struct Member<'a> {
    name: String,
    value: &'a RawValue,
}

/// All members in their order; `None` where the text is not one object.
fn members(body: &[u8]) -> Option<Vec<Member<'_>>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<Member<'de>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(name) = map.next_key()? {
                members.push(Member { name, value: map.next_value()? });
            }
            Ok(members)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let members = reader.deserialize_map(Members).ok()?;
    reader.end().ok()?;
    Some(members)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(body: &str) -> String {
        String::from_utf8(rewritten(body.as_bytes(), None).expect("an object").to_vec()).expect("text")
    }

    #[test]
    fn what_a_create_asks_for_is_found() {
        let both = Events { completed: true, failed: true };
        let found = |body: &str| asked(body.as_bytes()).map(|asked| (asked.url, asked.events));
        assert_eq!(found(r#"{"model":"m","webhook":"http://a/"}"#), Some(("http://a/".into(), both)));
        assert_eq!(found(r#"{"webhoo\u006b":"http://a/"}"#), Some(("http://a/".into(), both)));
        assert_eq!(
            found(r#"{"webhook":"http://a/","webhook":"http://b/"}"#),
            Some(("http://b/".into(), both)),
            "the last"
        );
        let failed = Events { completed: false, failed: true };
        assert_eq!(found(r#"{"webhook_events":["failed"],"webhook":"u"}"#), Some(("u".into(), failed)));
        for none in [
            r#"{"model":"m"}"#,
            r#"{"webhook":null}"#,
            r#"{"input":{"webhook":"http://a/"}}"#,
            r#"["webhook"]"#,
            "webhook",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn nothing_but_the_webhook_is_cut_out() {
        for (body, expected) in [
            (r#"{"model":"m","webhook":"u","input":{}}"#, r#"{"model":"m","input":{}}"#),
            (r#"{"webhook":"u","model":"m"}"#, r#"{"model":"m"}"#),
            (r#"{"model":"m","webhook":"u"}"#, r#"{"model":"m"}"#),
            (r#"{"webhook":"u"}"#, "{}"),
            (r#"{ "webhook" : "u" , "webhook_events" : [1] }"#, "{ }"),
            (r#"{"webhook_events":[],"webhook":"u", "z":1.0e999}"#, r#"{ "z":1.0e999}"#),
            (r#"{"a":1,"webhook":"u","b":2,"webhook_events":[],"c":3}"#, r#"{"a":1,"b":2,"c":3}"#),
            (
                r#"{"webhook":"u","b":2,"webhook":"v","b":12345678901234567890123}"#,
                r#"{"b":2,"b":12345678901234567890123}"#,
            ),
            (
                "{\n  \"model\": \"\\u00e9\",\n  \"webhook\": \"u\",\n  \"x\": {\"webhook\": 1}\n}\n",
                "{\n  \"model\": \"\\u00e9\",\n  \"x\": {\"webhook\": 1}\n}\n",
            ),
        ] {
            assert_eq!(cut(body), expected);
        }
    }

    #[test]
    fn a_new_url_takes_the_place_of_the_old() {
        let body = br#"{"webhook" : "http://localhost:1/", "n":1.50, "webhook_events":["failed"]}"#;
        let expected = r#"{"webhook" : "https://p/\"", "n":1.50, "webhook_events":["completed","failed"]}"#;
        assert_eq!(rewritten(body, Some("https://p/\"")).expect("an object"), expected);
    }

    #[test]
    fn the_fields_follow_the_body() {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", "100".parse().unwrap());
        headers.insert("content-md5", "x".parse().unwrap());
        describe(&mut headers, b"{}");
        assert_eq!((headers.len(), &headers["content-length"]), (1, &"2".parse().unwrap()));
        let mut chunked = HeaderMap::new();
        describe(&mut chunked, b"{}");
        assert!(chunked.is_empty());
    }

    proptest! {
        #[test]
        fn whatever_the_order_the_rest_stays(
            names in prop::collection::vec(prop::sample::select(vec!["a", "b", "webhook", "webhook_events"]), 1..8),
            gap in "[ \n]{0,2}",
        ) {
            let text = |names: &[&str]| {
                let members: Vec<String> = names.iter().enumerate().map(|(n, name)| format!("{gap}\"{name}\"{gap}:{gap}[{n}, 1.0]{gap}")).collect();
                format!("{{{}}}", members.join(","))
            };
            let body = text(&names);
            let cut = rewritten(body.as_bytes(), None).expect("an object");
            let left = members(&cut).expect("still an object");
            let stays = |name: &&str| !name.starts_with("webhook");
            let expected: Vec<(String, String)> = members(body.as_bytes()).unwrap().into_iter()
                .filter(|member| stays(&member.name.as_str())).map(|member| (member.name, member.value.get().to_owned())).collect();
            let left: Vec<(String, String)> = left.into_iter().map(|member| (member.name, member.value.get().to_owned())).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
