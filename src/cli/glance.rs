//! A quick look at the configuration: addresses and names only.
//!
//! `env` and `healthcheck` must work where the key is not at hand and even where the file has mistakes, so they do not go through
//! `crate::config::load`. Nothing read here is trusted with a key.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use toml::{Table, Value};

use crate::config::{Sources, TEMPLATE};

/// What a glance tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glance {
    /// The data port's first address.
    pub(super) listen: SocketAddr,
    /// The admin port; `None`: off.
    pub(super) admin: Option<SocketAddr>,
    /// The health port; `None`: off.
    pub(super) health: Option<SocketAddr>,
    /// As `upstream.protocol` names it.
    pub(super) protocol: String,
    /// Callers need a token.
    pub(super) has_clients: bool,
    /// Environment variables that accounts take their keys from.
    pub(super) key_variables: Vec<String>,
}

/// Looks at flag, variable, file and default, in this order.
pub(super) fn glance(sources: &Sources) -> Result<Glance, String> {
    let text = match file(sources) {
        Some(path) => {
            std::fs::read_to_string(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?
        }
        None => TEMPLATE.to_owned(),
    };
    let table: Table =
        text.parse().map_err(|_| "the configuration is not TOML; `sluicegate check` says where".to_owned())?;
    let listen = flag_or(sources.flags.listen.as_ref(), sources, &table, "server", "listen");
    let admin = flag_or(None, sources, &table, "admin", "listen");
    let health = flag_or(None, sources, &table, "admin", "health_listen");
    let off = |text: &String| text == "off";
    Ok(Glance {
        listen: address(listen, "server.listen")?.unwrap_or((Ipv4Addr::LOCALHOST, 8787).into()),
        admin: match admin {
            Some(text) if off(&text) => None,
            admin => Some(address(admin, "admin.listen")?.unwrap_or((Ipv4Addr::LOCALHOST, 8788).into())),
        },
        health: address(health.filter(|text| !off(text)), "admin.health_listen")?,
        protocol: flag_or(None, sources, &table, "upstream", "protocol").unwrap_or_else(|| "core.today".to_owned()),
        has_clients: table.get("clients").and_then(Value::as_array).is_some_and(|list| !list.is_empty()),
        key_variables: key_variables(&table),
    })
}

fn file(sources: &Sources) -> Option<PathBuf> {
    let variable = sources.env.get("SLUICEGATE_CONFIG").filter(|path| !path.is_empty());
    let named = sources.flags.config.clone().or_else(|| variable.map(PathBuf::from));
    match named {
        Some(named) => Some(sources.cwd.join(named)),
        None => Some(sources.cwd.join("proxy.toml")).filter(|path| path.exists()),
    }
}

/// The first text that a flag, a variable or the file has for a key.
fn flag_or(flag: Option<&String>, sources: &Sources, table: &Table, section: &str, key: &str) -> Option<String> {
    let variable = format!("SLUICEGATE_{section}_{key}").to_ascii_uppercase();
    let first = |text: &String| text.split(',').next().unwrap_or_default().trim().to_owned();
    let above = flag.or_else(|| sources.env.get(&variable).filter(|text| !text.is_empty()));
    above.map(first).or_else(|| match table.get(section)?.get(key)? {
        Value::Array(list) => list.first()?.as_str().map(str::to_owned),
        value => value.as_str().map(str::to_owned),
    })
}

fn address(text: Option<String>, key: &str) -> Result<Option<SocketAddr>, String> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(format!("{key} is not an address like 127.0.0.1:8787; `sluicegate check` says more")),
    }
}

fn key_variables(table: &Table) -> Vec<String> {
    let accounts = table.get("accounts").and_then(Value::as_table);
    let names = accounts.into_iter().flatten().filter_map(|(_, account)| {
        let name = account.get("key")?.get("env")?;
        name.as_str().map(str::to_owned)
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use crate::config::Flags;

    use super::*;

    /// A directory that no file lies in.
    fn nowhere() -> Sources {
        Sources { cwd: "/dev/null".into(), ..Sources::default() }
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let glance = glance(&nowhere()).expect("a glance");
        assert_eq!(glance.listen.to_string(), "127.0.0.1:8787");
        assert_eq!(glance.admin.map(|address| address.port()), Some(8788));
        assert_eq!((glance.health, glance.has_clients), (None, false));
        assert_eq!(glance.key_variables, ["CORE_API_KEY", "CORE_STAGING_API_KEY"]);
    }

    #[test]
    fn flags_and_variables_stand_above() {
        let mut sources = nowhere();
        sources.env.insert("SLUICEGATE_SERVER_LISTEN".into(), "127.0.0.1:1".into());
        sources.env.insert("SLUICEGATE_ADMIN_LISTEN".into(), "off".into());
        sources.env.insert("SLUICEGATE_ADMIN_HEALTH_LISTEN".into(), "0.0.0.0:3".into());
        sources.flags = Flags { listen: Some("127.0.0.1:2, [::1]:2".into()), ..Flags::default() };
        let seen = glance(&sources).expect("a glance");
        assert_eq!((seen.listen.port(), seen.admin), (2, None));
        assert_eq!(seen.health.map(|address| address.port()), Some(3));
        sources.flags.listen = Some("$(reboot)".into());
        assert!(glance(&sources).is_err());
    }
}
