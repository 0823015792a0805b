//! Keys that nothing reads: misspelled or misplaced.

use super::document::{Entry, Table, Value};
use super::reader::join;
use super::report::Problems;
use super::{file, suggest};

/// Records every key of the file that is not in [`file::KEYS`].
pub(super) fn check(table: &Table, problems: &Problems) {
    walk(table, "", "", problems);
}

/// `path` is what the operator wrote, `pattern` the same with `*` for names.
fn walk(table: &Table, path: &str, pattern: &str, problems: &Problems) {
    let known = file::names_below(pattern);
    for entry in &table.0 {
        let path = join(path, &entry.name);
        let name = if known.contains(&"*") { "*" } else { entry.name.as_str() };
        let pattern = if pattern.is_empty() { name.to_owned() } else { format!("{pattern}.{name}") };
        if known.contains(&name) {
            if !file::is_value(&pattern) {
                descend(&entry.node.value, &path, &pattern, problems);
            }
        } else {
            problems.add(&entry.key, format!("{path} is not a known key"), advice(entry, &pattern, &known));
        }
    }
}

fn descend(value: &Value, path: &str, pattern: &str, problems: &Problems) {
    match value {
        // Not a list at all: that is said when it is read.
        Value::Table(_) if file::LISTS.contains(&pattern) => {}
        Value::Table(table) => walk(table, path, pattern, problems),
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                if let Value::Table(table) = &item.value {
                    walk(table, &format!("{path}[{index}]"), pattern, problems);
                }
            }
        }
        _ => {}
    }
}

fn advice(entry: &Entry, pattern: &str, known: &[&str]) -> Option<String> {
    let name = entry.name.as_str();
    if let Some(section) = file::home_of(name).filter(|section| !pattern.starts_with(section)) {
        return Some(format!("`{name}` belongs in [{section}]"));
    }
    suggest::help(name, known.iter().copied())
}
