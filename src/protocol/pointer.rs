//! Values of a JSON text as they stand there: found by RFC 6901 pointers, not decoded and not copied.
//!
//! What is found is a slice of the text, so that it can be replaced without touching the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Where a value is: `/urls/get`. `*` stands for every member of an object or list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Each,
}

/// The members of an object, in the order of the text.
#[derive(Debug, Default)]
pub(crate) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Pointer {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("must be a JSON pointer like \"/id\"");
        };
        let token = |text: &str| match text {
            "*" => Token::Each,
            // In this order: RFC 6901 §4.
            text => Token::Name(text.replace("~1", "/").replace("~0", "~")),
        };
        Ok(Self(rest.split('/').map(token).collect()))
    }

    /// It can be the place of one value only.
    pub(crate) fn is_single(&self) -> bool {
        !self.0.contains(&Token::Each)
    }

    /// The value, the first if there are several.
    pub(crate) fn first<'a>(&self, members: &Members<'a>) -> Option<&'a RawValue> {
        let mut found = None;
        walk(members, &self.0, &mut |value| {
            found.get_or_insert(value);
        });
        found
    }

    /// Every value.
    pub(crate) fn each<'a>(&self, members: &Members<'a>, found: &mut dyn FnMut(&'a RawValue)) {
        walk(members, &self.0, found);
    }
}

impl<'a> Members<'a> {
    /// Those of a text; `None` where it is not one JSON object.
    pub(crate) fn of(text: &'a [u8]) -> Option<Self> {
        let Outer(members) = serde_json::from_slice(text).ok()?;
        Some(members)
    }

    fn inside(value: &'a RawValue) -> Option<Self> {
        let text = value.get();
        if text.starts_with('[') {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            return Some(Self(items.into_iter().enumerate().map(|(at, item)| (at.to_string().into(), item)).collect()));
        }
        Self::of(text.as_bytes())
    }

    /// Those of a member that is an object.
    pub(crate) fn object(value: &'a RawValue) -> Option<Self> {
        Self::of(value.get().as_bytes())
    }
}

fn walk<'a>(members: &Members<'a>, tokens: &[Token], found: &mut dyn FnMut(&'a RawValue)) {
    let Some((token, rest)) = tokens.split_first() else { return };
    let mut visit = |value: &'a RawValue| {
        if rest.is_empty() {
            found(value);
        } else if let Some(inside) = Members::inside(value) {
            walk(&inside, rest, found);
        }
    };
    match token {
        Token::Each => members.0.iter().for_each(|(_, value)| visit(value)),
        // Of several alike the last counts, as for most readers.
        Token::Name(name) => {
            if let Some((_, value)) = members.0.iter().rev().find(|(key, _)| key == name) {
                visit(value);
            }
        }
    }
}

/// Text as it is meant: decoded.
pub(crate) fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

struct Outer<'a>(Members<'a>);

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Outer<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Outer<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(Outer(Members(members)))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn first(text: &str, pointer: &str) -> Option<String> {
        let members = Members::of(text.as_bytes())?;
        Pointer::parse(pointer).expect("a pointer").first(&members).map(|value| value.get().to_owned())
    }

    #[test]
    fn values_are_found_as_they_stand() {
        let text = r#" {"id": "\u0061", "a/b": {"~": [1, {"x": 2.50}]}, "id": "last" } "#;
        assert_eq!(first(text, "/id").as_deref(), Some("\"last\""));
        assert_eq!(first(text, "/a~1b/~0/1/x").as_deref(), Some("2.50"));
        assert_eq!(first(text, "/a~1b/~0/*").as_deref(), Some("1"));
        assert_eq!(first(text, "/id/x"), None);
        assert_eq!(first(text, "/none"), None);
        assert_eq!(first("[1]", "/0"), None, "answers are objects");
        assert_eq!(first("{\"id\": 1} 2", "/id"), None);
        assert!(Pointer::parse("id").is_err());
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_usual_reader(key in "[a-z/~é\"]{0,4}", inner in "[a-z]{1,2}", value in "[ -~é]{0,9}") {
            let json: Value = json!({"x": 1, key.clone(): {inner.clone(): value}});
            let pointer = format!("/{}/{inner}", key.replace('~', "~0").replace('/', "~1"));
            let found = first(&json.to_string(), &pointer).and_then(|text| serde_json::from_str::<Value>(&text).ok());
            prop_assert_eq!(found.as_ref(), json.pointer(&pointer));
        }

        #[test]
        fn no_text_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), pointer in "/[a-z*/~01]{0,8}") {
            if let Some(members) = Members::of(&bytes) {
                Pointer::parse(&pointer).expect("a pointer").first(&members);
            }
        }
    }
}
