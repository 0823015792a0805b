//! The JSON Schema of `proxy.toml`, so that editors complete it and mark what is wrong.
//!
//! Made of the list of keys and of the tables in docs/configuration.md, which a test keeps equal. It knows less than the program: what
//! depends on another key, and the form of addresses and durations to the last letter, is left to `sluicegate check`.

use serde_json::{Value, json};

use super::file::{KEYS, Kind, LISTS};

const DOCS: &str = include_str!("../../docs/configuration.md");

/// The schema, in the draft that editors of TOML understand.
#[must_use]
pub fn schema() -> Value {
    let mut root = table();
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    root["$comment"] = json!("Written by `sluicegate schema`");
    root["title"] = json!("proxy.toml of sluicegate");
    for (path, kind) in KEYS {
        let row = Row::of(path);
        insert(&mut root, path, leaf(path, *kind, &row), row.default == "required");
    }
    root
}

/// What docs/configuration.md says of a key.
#[derive(Default)]
struct Row {
    form: &'static str,
    default: &'static str,
    meaning: &'static str,
}

impl Row {
    fn of(path: &str) -> Self {
        let first = format!("`{}`", path.replace('*', "NAME"));
        let rows = DOCS.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
        let mut cells = rows.map(|row| row.splitn(4, '|').map(str::trim));
        let row = cells.find_map(|mut row| (row.next()? == first).then_some(row));
        let Some(mut row) = row else { return Self::default() };
        let mut next = || row.next().unwrap_or_default();
        Self { form: next(), default: next(), meaning: next() }
    }

    /// `1 to 1024; ...`: the first two whole numbers of the meaning, where it begins with them.
    fn bounds(&self) -> Option<(u64, u64)> {
        let (least, rest) = self.meaning.split_once(" to ")?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        Some((least.parse().ok()?, rest.get(..digits)?.parse().ok()?))
    }

    /// The words to choose from: what stands in quotes in the form.
    fn words(&self) -> Vec<&'static str> {
        self.form.split('`').skip(1).step_by(2).filter_map(|word| word.strip_prefix('"')?.strip_suffix('"')).collect()
    }

    fn description(&self) -> String {
        match self.default {
            "" | "required" => self.meaning.to_owned(),
            default => format!("{}. Default: {default}", self.meaning),
        }
    }
}

/// A table that may hold nothing but what is put in later.
fn table() -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": {} })
}

/// Puts the schema of a value where `path` leads, and makes the tables on the way.
fn insert(root: &mut Value, path: &str, leaf: Value, required: bool) {
    let mut here = root;
    let mut walked = String::new();
    let mut segments = path.split('.').peekable();
    while let Some(segment) = segments.next() {
        walked = if walked.is_empty() { segment.to_owned() } else { format!("{walked}.{segment}") };
        let place = if segment == "*" {
            // Names of the operator's choice; nothing else stands beside them.
            if let Some(table) = here.as_object_mut() {
                table.remove("properties");
                if table["additionalProperties"] == json!(false) {
                    table.insert("additionalProperties".to_owned(), Value::Null);
                }
            }
            &mut here["additionalProperties"]
        } else {
            if required && segments.peek().is_none() {
                let list = here["required"].as_array().cloned().unwrap_or_default();
                here["required"] = list.into_iter().chain([json!(segment)]).collect();
            }
            &mut here["properties"][segment]
        };
        if segments.peek().is_none() {
            *place = leaf;
            return;
        }
        if place.is_null() {
            *place = inner(&walked);
        }
        here = if LISTS.contains(&walked.as_str()) { &mut place["items"] } else { place };
    }
}

/// A table, or a list of tables, on the way to a value.
fn inner(path: &str) -> Value {
    if LISTS.contains(&path) {
        return json!({ "type": "array", "items": table() });
    }
    let mut table = table();
    // Tables with exactly one of `env`, `file` and `command`.
    let secret = format!("{path}.command");
    if KEYS.iter().any(|(key, _)| *key == secret) {
        table["description"] = json!("where the secret is: one of env, file and command");
        (table["minProperties"], table["maxProperties"]) = (json!(1), json!(1));
    }
    table
}

fn leaf(path: &str, kind: Kind, row: &Row) -> Value {
    let item = match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Number if row.form == "size" => json!({ "type": ["string", "integer"], "pattern": "^\\s*[0-9]" }),
        Kind::Number | Kind::Numbers => number(row),
        Kind::Text | Kind::Texts => text(row),
    };
    let listed = matches!(kind, Kind::Texts | Kind::Numbers);
    let mut leaf = match listed {
        // A command has its arguments one by one; of everything else a lone value is a list of one.
        true if path.ends_with(".command") => json!({ "type": "array", "items": item, "minItems": 1 }),
        true => json!({ "anyOf": [item, { "type": "array", "items": item }] }),
        false => item,
    };
    leaf["description"] = json!(row.description());
    leaf
}

fn number(row: &Row) -> Value {
    let mut number = json!({ "type": "number" });
    if let Some((least, most)) = row.bounds() {
        (number["minimum"], number["maximum"]) = (json!(least), json!(most));
    } else if row.meaning.starts_with("above 0") {
        number["exclusiveMinimum"] = json!(0);
    }
    number
}

fn text(row: &Row) -> Value {
    let words = row.words();
    // "or a name", "address or": the words are some of many.
    let others = row.form.contains("or a ") || row.form.starts_with("address");
    match row.form {
        "duration" => json!({ "type": "string", "pattern": "^\\s*[0-9]" }),
        _ if words.is_empty() => json!({ "type": "string" }),
        _ if others => json!({ "anyOf": [{ "enum": words }, { "type": "string" }] }),
        _ => json!({ "enum": words }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_and_bounds_come_from_the_documentation() {
        let schema = schema();
        let server = &schema["properties"]["server"]["properties"];
        assert_eq!((&server["threads"]["minimum"], &server["threads"]["maximum"]), (&json!(0), &json!(1024)));
        assert_eq!(server["allow_open"]["type"], "boolean");
        assert_eq!(server["drain_timeout"]["type"], "string");
        assert!(server["listen"]["anyOf"][1]["items"]["type"] == "string");
        let plan = &schema["properties"]["plans"]["additionalProperties"]["properties"];
        assert_eq!(plan["pacing"]["enum"], json!(["auto", "paced", "burst"]));
        let account = &schema["properties"]["accounts"]["additionalProperties"];
        assert_eq!(account["required"], json!(["plan"]));
        assert_eq!(account["properties"]["key"]["maxProperties"], 1);
        assert_eq!(account["properties"]["key"]["properties"]["command"]["minItems"], 1);
        assert_eq!(account["properties"]["caps"]["additionalProperties"]["type"], "number");
        let clients = &schema["properties"]["clients"]["items"];
        assert_eq!(clients["required"], json!(["name"]));
        assert_eq!(clients["additionalProperties"], false);
        assert!(
            clients["properties"]["weight"]["description"].as_str().is_some_and(|text| text.ends_with("Default: `1`"))
        );
    }

    #[test]
    fn every_key_has_a_description() {
        for (path, kind) in KEYS {
            let leaf = leaf(path, *kind, &Row::of(path));
            assert!(leaf["description"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
        }
    }
}
