//! What stands above the file: flags, and `SLUICEGATE_<SECTION>_<KEY>` in the environment.

use std::collections::BTreeMap;

use super::document::{Node, Table, Value};
use super::file::{self, Kind};
use super::load::Flags;
use super::report::{Place, Problems};
use super::suggest;

/// The variable that names the file; it is no key.
pub(super) const CONFIG: &str = "SLUICEGATE_CONFIG";

/// Lays flags over variables over the file.
pub(super) fn apply(table: &mut Table, env: &BTreeMap<String, String>, flags: &Flags, problems: &Problems) {
    for (name, text) in env.iter().filter(|(name, text)| name.starts_with("SLUICEGATE_") && !text.is_empty()) {
        if name == CONFIG || is_service_link(name, text) {
            continue;
        }
        let place = Place::Variable(name.clone());
        match file::KEYS.iter().find(|(path, _)| file::variable(path).as_ref() == Some(name)) {
            Some((path, kind)) => set(table, path, place, *kind, text),
            None => report_unknown(name, &place, problems),
        }
    }
    let flags = [
        ("--account", "account", Kind::Text, &flags.account),
        ("--listen", "server.listen", Kind::Texts, &flags.listen),
        ("--upstream", "upstream.url", Kind::Text, &flags.upstream),
    ];
    for (flag, path, kind, text) in flags {
        if let Some(text) = text {
            set(table, path, Place::Flag(flag), kind, text);
        }
    }
}

fn set(table: &mut Table, path: &str, place: Place, kind: Kind, text: &str) {
    let path: Vec<&str> = path.split('.').collect();
    table.set(&path, Node { value: value(kind, text, &place), place });
}

/// The value that the text stands for; text that does not fit its kind stays text, for the reader to complain about.
fn value(kind: Kind, text: &str, place: &Place) -> Value {
    let text = text.trim();
    match kind {
        Kind::Text => Value::Text(text.to_owned()),
        Kind::Bool => text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Bool),
        Kind::Number => match (text.parse(), text.parse()) {
            (Ok(whole), _) => Value::Whole(whole),
            (_, Ok(real)) => Value::Real(real),
            _ => Value::Text(text.to_owned()),
        },
        Kind::Texts | Kind::Numbers => {
            let kind = if kind == Kind::Texts { Kind::Text } else { Kind::Number };
            let items = text.split(',').filter(|item| !item.trim().is_empty());
            Value::List(items.map(|item| Node { value: value(kind, item, place), place: place.clone() }).collect())
        }
    }
}

fn report_unknown(name: &str, place: &Place, problems: &Problems) {
    let known: Vec<String> = file::keys().filter_map(file::variable).chain([CONFIG.to_owned()]).collect();
    let help = suggest::nearest(name, known.iter().map(String::as_str)).map_or_else(
        || "variables are named SLUICEGATE_<SECTION>_<KEY>".to_owned(),
        |near| format!("did you mean {near}?"),
    );
    problems.add(place, format!("{name} is not a known variable"), Some(help));
}

/// Kubernetes puts variables like `SLUICEGATE_SERVICE_HOST` and `SLUICEGATE_PORT=tcp://…` into every pod when a Service is named
/// `sluicegate`. They are not meant for us.
fn is_service_link(name: &str, text: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let port_part = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| {
        name.contains("_PORT_") && (name.ends_with(protocol) || name.contains(&format!("{protocol}_")))
    });
    address || port_part || name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_are_not_ours() {
        for (name, text) in [
            ("SLUICEGATE_SERVICE_HOST", "10.0.0.1"),
            ("SLUICEGATE_SERVICE_PORT_HTTP", "8787"),
            ("SLUICEGATE_PORT", "tcp://10.0.0.1:8787"),
            ("SLUICEGATE_PORT_8787_TCP_ADDR", "10.0.0.1"),
            ("SLUICEGATE_ADMIN_PORT_8788_TCP", "tcp://10.0.0.1:8788"),
        ] {
            assert!(is_service_link(name, text), "{name}");
        }
        assert!(!is_service_link("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:1"));
        assert!(!is_service_link("SLUICEGATE_SERVER_PORT", "8787"));
    }
}
