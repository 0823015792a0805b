//! The configuration as a tree of values, each with the place that it came from.
//!
//! The file is parsed into it, then environment variables and flags are laid over it, so that reading does not care who said what.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::report::{Place, Problems, looks_like_key};
use super::suggest;

/// A value and its place.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a key may hold.
#[derive(Clone)]
pub(super) enum Value {
    Text(String),
    Whole(i128),
    Real(f64),
    Bool(bool),
    Time,
    List(Vec<Node>),
    Table(Table),
}

impl Value {
    /// The kind, for "must be …, not …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "text",
            Value::Whole(_) => "a whole number",
            Value::Real(_) => "a fraction",
            Value::Bool(_) => "true or false",
            Value::Time => "a date or time",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Keys and values, in file order.
#[derive(Clone, Default)]
pub(super) struct Table(pub(super) Vec<Entry>);

/// One key of a table.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where the key itself stands.
    pub(super) key: Place,
    pub(super) node: Node,
}

impl Table {
    /// Parses a file; a syntax error is recorded and leaves an empty table.
    pub(super) fn parse(text: &str, problems: &Problems) -> Self {
        match DeTable::parse(text) {
            Ok(table) => {
                let table = Self::from_toml(table.get_ref());
                for Entry { name, node, .. } in &table.0 {
                    // Where keys belong, a misspelled `kye = "..."` may be one too.
                    node.hide_secrets(sounds_secret(name) || matches!(name.as_str(), "accounts" | "clients"), problems);
                }
                table
            }
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                let place = Place::File(span.clone());
                if may_break_a_secret(text, &span) {
                    problems.hide(&place);
                }
                problems.add(&place, format!("not TOML: {}", error.message().replace('\n', ", ")), None);
                Self::default()
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.name == name)
    }

    /// Lays a value over what the file says at `path`. A path that leads through something other than tables is left alone: it is
    /// reported when it is read.
    pub(super) fn set(&mut self, path: &[&str], node: Node) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let at = self.0.iter().position(|entry| entry.name == *first).unwrap_or_else(|| {
            let empty = Node { place: node.place.clone(), value: Value::Table(Self::default()) };
            self.0.push(Entry { name: (*first).to_owned(), key: node.place.clone(), node: empty });
            self.0.len() - 1
        });
        if let Some(entry) = self.0.get_mut(at) {
            if rest.is_empty() {
                entry.key = node.place.clone();
                entry.node = node;
            } else if let Value::Table(table) = &mut entry.node.value {
                table.set(rest, node);
            }
        }
    }

    fn from_toml(table: &DeTable<'_>) -> Self {
        let mut entries: Vec<Entry> = table
            .iter()
            .map(|(key, value)| Entry {
                name: key.get_ref().clone().into_owned(),
                key: Place::File(key.span()),
                node: Node::from_toml(value),
            })
            .collect();
        entries.sort_by_key(|entry| start(&entry.key));
        Self(entries)
    }

    /// Tells `problems` where secrets stand. `secret`: an outer key already said that what is in here is one.
    fn hide_secrets(&self, secret: bool, problems: &Problems) {
        for Entry { name, node, .. } in &self.0 {
            let harmless =
                matches!(name.as_str(), "env" | "file" | "description" | "plan" | "name" | "account" | "weight");
            node.hide_secrets((secret && !harmless) || sounds_secret(name) || is_header(name, node), problems);
        }
    }
}

impl Node {
    fn from_toml(node: &Spanned<DeValue<'_>>) -> Self {
        let value = match node.get_ref() {
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Integer(number) => Value::Whole(whole(number)),
            DeValue::Float(number) => Value::Real(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Datetime(_) => Value::Time,
            DeValue::Array(items) => Value::List(items.iter().map(Self::from_toml).collect()),
            DeValue::Table(table) => Value::Table(Table::from_toml(table)),
        };
        Self { place: Place::File(node.span()), value }
    }

    fn hide_secrets(&self, secret: bool, problems: &Problems) {
        match &self.value {
            Value::Table(table) => table.hide_secrets(secret, problems),
            Value::List(items) => items.iter().for_each(|item| item.hide_secrets(secret, problems)),
            Value::Text(text) if secret || looks_like_key(text) || text.contains('@') => problems.hide(&self.place),
            Value::Whole(_) | Value::Real(_) if secret => problems.hide(&self.place),
            _ => {}
        }
    }
}

/// `auth = "Authorization: Bearer ..."` with something else than `{key}` in it.
fn is_header(name: &str, node: &Node) -> bool {
    name.ends_with("auth") && matches!(&node.value, Value::Text(text) if text.contains(':') && !text.ends_with("{key}"))
}

/// Whether a key of this name may hold a secret, misspelled or not.
fn sounds_secret(name: &str) -> bool {
    const WORDS: [&str; 7] = ["key", "token", "secret", "password", "passwd", "credential", "authorization"];
    let name = name.to_ascii_lowercase();
    let sounds =
        |part: &str| part.ends_with("key") || part.ends_with("token") || suggest::nearest(part, WORDS).is_some();
    name.split(['_', '-']).any(|part| part != "tokens" && sounds(part))
}

/// A number beyond `i128` is as wrong as its largest.
fn whole(number: &DeInteger<'_>) -> i128 {
    i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX)
}

fn start(place: &Place) -> usize {
    match place {
        Place::File(span) => span.start,
        _ => usize::MAX,
    }
}

/// Whether the line of a syntax error may hold (a piece of) a secret, which cannot be known for sure before it parses.
fn may_break_a_secret(text: &str, span: &Range<usize>) -> bool {
    let line_end = text.get(span.end..).and_then(|rest| rest.find('\n')).map_or(text.len(), |at| span.end + at);
    let until = text.get(..line_end).unwrap_or(text);
    // Inside a string of several lines it is unclear what the line is part of.
    let inside = ["\"\"\"", "'''"].iter().any(|quote| until.matches(quote).count() % 2 == 1);
    let line_start = text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let line = text.get(line_start..line_end).unwrap_or_default().to_ascii_lowercase();
    let header =
        text.get(..line_start).unwrap_or_default().lines().rev().find(|line| line.trim_start().starts_with('['));
    let where_keys_belong = header.is_some_and(|header| header.contains("account") || header.contains("client"));
    inside
        || (where_keys_belong && line.contains(['"', '\'']))
        || ["key", "token", "secret", "password", "@"].iter().any(|word| line.contains(word))
}
