//! Reading typed values out of the tree, each with the problems that it may have.
//!
//! A value that is wrong is recorded and its default goes on, so that one run finds everything.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::document::{Entry, Node, Table, Value};
use super::report::{Place, Problems, either, quoted};
use super::{suggest, units};

/// What is wrong with a value; the reader adds which and where.
pub(super) struct Complaint {
    text: String,
    help: Option<String>,
}

impl Complaint {
    /// `text` goes on from the key: "must be at least 1".
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), help: None }
    }

    /// What is wrong, without what to do.
    pub(super) fn says(&self) -> &str {
        &self.text
    }

    /// Adds what to do.
    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// `help`, if there is any.
    pub(super) fn maybe_help(self, help: Option<String>) -> Self {
        Self { help, ..self }
    }
}

/// One table of the configuration, present or not.
#[derive(Clone)]
pub(super) struct Section<'a> {
    path: String,
    place: Place,
    table: Option<&'a Table>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(table: &'a Table, problems: &'a Problems) -> Self {
        Self { path: String::new(), place: Place::Nowhere, table: Some(table), problems }
    }

    /// The table at `key`; an empty one if it is not there.
    pub(super) fn section(&self, key: &str) -> Section<'a> {
        match self.entry(key) {
            Some(entry) => self.inside(join(&self.path, key), entry.key.clone(), &entry.node),
            None => {
                Section { path: join(&self.path, key), place: self.place.clone(), table: None, problems: self.problems }
            }
        }
    }

    /// The tables below `key` by their names, in file order.
    pub(super) fn named(&self, key: &str) -> Vec<(&'a str, Section<'a>)> {
        let outer = self.section(key);
        let inside = |entry: &'a Entry| {
            let path = join(&outer.path, &entry.name);
            (entry.name.as_str(), self.inside(path, entry.key.clone(), &entry.node))
        };
        outer.table.map(|table| table.0.iter().map(inside).collect()).unwrap_or_default()
    }

    /// The keys of this table, in file order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.table.into_iter().flat_map(|table| table.0.iter().map(|entry| entry.name.as_str()))
    }

    /// The tables of the list at `key`.
    pub(super) fn items(&self, key: &str) -> Vec<Section<'a>> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let path = join(&self.path, key);
        let Value::List(items) = &entry.node.value else {
            let help = Some(format!("write [[{path}]]"));
            self.problems.add(&entry.key, format!("{path} must be a list of tables"), help);
            return Vec::new();
        };
        let inside =
            |(index, node): (usize, &'a Node)| self.inside(format!("{path}[{index}]"), node.place.clone(), node);
        items.iter().enumerate().map(inside).collect()
    }

    fn inside(&self, path: String, place: Place, node: &'a Node) -> Section<'a> {
        let table = if let Value::Table(table) = &node.value {
            Some(table)
        } else {
            self.problems.add(&node.place, format!("{path} must be a table, not {}", node.value.kind()), None);
            None
        };
        Section { path, place, table, problems: self.problems }
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.table?.get(key)
    }

    /// Whether the operator said anything at `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Where the value at `key` came from; the section's own place if it is not there.
    pub(super) fn place(&self, key: &str) -> Place {
        self.entry(key).map_or_else(|| self.place.clone(), |entry| entry.node.place.clone())
    }

    /// Records that the value at `key` is wrong.
    pub(super) fn complain(&self, key: &str, complaint: Complaint) {
        let message = format!("{} {}", join(&self.path, key), complaint.text);
        self.problems.add(&self.place(key), message, complaint.help);
    }

    /// Records a problem of the table as a whole; the text goes on from its name.
    pub(super) fn complain_here(&self, complaint: Complaint) {
        self.problems.add(&self.place, format!("{} {}", self.path, complaint.text), complaint.help);
    }

    /// The value at `key` through `parse`; `None` if it is missing or wrong.
    pub(super) fn read<T>(&self, key: &str, parse: impl FnOnce(&'a Value) -> Result<T, Complaint>) -> Option<T> {
        match parse(&self.entry(key)?.node.value) {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.complain(key, complaint);
                None
            }
        }
    }

    /// Like [`Section::read`], for a key that must be there.
    pub(super) fn required<T>(
        &self,
        key: &str,
        help: &str,
        parse: impl FnOnce(&'a Value) -> Result<T, Complaint>,
    ) -> Option<T> {
        self.demand(key, help);
        self.read(key, parse)
    }

    /// Records that a key which must be there is missing.
    pub(super) fn demand(&self, key: &str, help: &str) {
        if self.table.is_some() && !self.has(key) {
            self.complain(key, Complaint::new("is missing").help(help));
        }
    }

    /// The items of a list through `parse`, each complaint at its item; a lone value is a list of one. `None` if the key is missing
    /// or the value neither.
    pub(super) fn list<T>(
        &self,
        key: &str,
        mut parse: impl FnMut(&'a Value) -> Result<T, Complaint>,
    ) -> Option<Vec<T>> {
        let node = &self.entry(key)?.node;
        let Value::List(items) = &node.value else {
            return self.read(key, parse).map(|one| vec![one]);
        };
        let mut parsed = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match parse(&item.value) {
                Ok(value) => parsed.push(value),
                Err(Complaint { text, help }) => {
                    let path = join(&self.path, key);
                    self.problems.add(&item.place, format!("{path}[{index}] {text}"), help);
                }
            }
        }
        Some(parsed)
    }

    /// A whole number within bounds.
    pub(super) fn count(&self, key: &str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        self.read(key, |value| count(value, &bounds)).unwrap_or(default)
    }

    /// A duration within bounds.
    pub(super) fn duration(&self, key: &str, default: Duration, bounds: RangeInclusive<Duration>) -> Duration {
        self.read(key, |value| duration(value, &bounds)).unwrap_or(default)
    }

    /// A size within bounds, in bytes.
    pub(super) fn size(&self, key: &str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let parse = |value: &Value| {
            let bytes = match value {
                Value::Text(text) => units::size(text)?,
                other => count(other, &(0..=u64::MAX))?,
            };
            bounded(bytes, &bounds, units::show_size)
        };
        self.read(key, parse).unwrap_or(default)
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> bool {
        let parse = |value: &Value| match value {
            Value::Bool(yes) => Ok(*yes),
            other => Err(unexpected("true or false", other)),
        };
        self.read(key, parse).unwrap_or(false)
    }

    /// One of a few words; the first is the default.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        self.read(key, |value| {
            let word = text(value)?;
            if let Some((_, meaning)) = words.iter().find(|(name, _)| *name == word) {
                return Ok(*meaning);
            }
            let names = words.iter().map(|(name, _)| *name);
            let all: Vec<String> = names.clone().map(|name| format!("\"{name}\"")).collect();
            let complaint = Complaint::new(format!("must be {}, not {}", either(&all), quoted(word)));
            Err(complaint.maybe_help(suggest::nearest(word, names).map(|near| format!("did you mean \"{near}\"?"))))
        })
    }
}

/// Text.
pub(super) fn text(value: &Value) -> Result<&str, Complaint> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(unexpected("text in quotes", other)),
    }
}

/// A whole number within bounds.
pub(super) fn count(value: &Value, bounds: &RangeInclusive<u64>) -> Result<u64, Complaint> {
    match value {
        Value::Whole(number) if *number < 0 && *bounds.start() == 0 => Err(Complaint::new("must not be negative")),
        Value::Whole(number) if *number < 0 => Err(Complaint::new(format!("must be at least {}", bounds.start()))),
        Value::Whole(number) => bounded(u64::try_from(*number).unwrap_or(u64::MAX), bounds, |n| n.to_string()),
        other => Err(unexpected("a whole number", other)),
    }
}

/// A duration within bounds.
pub(super) fn duration(value: &Value, bounds: &RangeInclusive<Duration>) -> Result<Duration, Complaint> {
    match value {
        Value::Text(text) => bounded(units::duration(text)?, bounds, units::show),
        Value::Whole(number) => bounded(units::duration(&number.to_string())?, bounds, units::show),
        other => Err(unexpected("a duration like \"90s\"", other)),
    }
}

/// A complaint about the kind of a value.
pub(super) fn unexpected(expected: &str, value: &Value) -> Complaint {
    Complaint::new(format!("must be {expected}, not {}", value.kind()))
}

fn bounded<T: PartialOrd + Copy>(
    value: T,
    bounds: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) -> Result<T, Complaint> {
    if value < *bounds.start() {
        Err(Complaint::new(format!("must be at least {}", show(*bounds.start()))))
    } else if value > *bounds.end() {
        Err(Complaint::new(format!("must be at most {}", show(*bounds.end()))))
    } else {
        Ok(value)
    }
}

/// Appends a key to a dotted path, in quotes where TOML needs them.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let key = if bare { key.to_owned() } else { format!("\"{}\"", quoted(key).trim_matches('`')) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
