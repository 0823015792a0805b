//! `[server]` and `[admin]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Context;
use crate::config::address;
use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text};
use crate::config::{Admin, Server, units};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

pub(super) fn server(root: &Section<'_>, context: &mut Context<'_>) -> Server {
    let section = root.section("server");
    let max_body_bytes = section.size("max_body", 64 * MIB, 1..=TIB);
    Server {
        listen: listen(root, &section, context),
        allow_open: section.flag("allow_open"),
        threads: NonZeroUsize::new(whole(section.count("threads", 0, 0..=1024))),
        allowed_hosts: section.list("allowed_hosts", |value| address::host(text(value)?)).unwrap_or_default(),
        allowed_origins: section.list("allowed_origins", |value| address::origin(text(value)?)).unwrap_or_default(),
        max_body_bytes,
        buffer_bytes: buffer(&section, max_body_bytes),
        header_timeout: section.duration("header_timeout", SECOND * 10, TIMEOUT),
        body_timeout: section.duration("body_timeout", SECOND * 30, TIMEOUT),
        drain_timeout: section.duration("drain_timeout", SECOND * 30, Duration::ZERO..=*TIMEOUT.end()),
        reload_interval: reload_interval(&section),
        max_connections: NonZeroUsize::new(whole(section.count("max_connections", 10_000, 1..=1_000_000)))
            .unwrap_or(NonZeroUsize::MIN),
    }
}

/// Zero, or what a disk is not troubled by.
fn reload_interval(section: &Section<'_>) -> Duration {
    let interval = section.duration("reload_interval", SECOND * 2, Duration::ZERO..=SECOND * 3600);
    if !interval.is_zero() && interval < Duration::from_millis(100) {
        section.complain("reload_interval", Complaint::new("must be 0s (only on SIGHUP) or at least 100ms"));
    }
    interval
}

fn listen(root: &Section<'_>, section: &Section<'_>, context: &mut Context<'_>) -> Vec<SocketAddr> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8787));
    let listen = section.list("listen", |value| address::listen(text(value)?)).unwrap_or_else(|| vec![default]);
    for (index, address) in listen.iter().enumerate() {
        if listen.iter().take(index).any(|earlier| earlier == address && address.port() != 0) {
            section.complain("listen", Complaint::new(format!("names {address} twice")));
        }
    }
    section.read("listen", |value| match value {
        Value::List(items) if items.is_empty() => Err(Complaint::new("must name at least one address")),
        _ => Ok(()),
    });
    let allow_open = section.flag("allow_open");
    // An empty list names nobody, which is everybody.
    let names_clients = |value: &Value| !matches!(value, Value::List(items) if items.is_empty());
    let has_clients = root.read("clients", |value| Ok(names_clients(value))).unwrap_or(false);
    let open = listen.iter().find(|address| !address.ip().is_loopback() && !has_clients);
    match open {
        Some(open) if allow_open => context
            .warnings
            .push(format!("server.listen {open} is open to other machines, and anyone may spend the quota")),
        Some(open) => {
            let complaint = Complaint::new(format!("= {open} lets every machine that reaches it spend the quota"));
            section.complain("listen", complaint.help("add [[clients]] with tokens, or set server.allow_open = true"));
        }
        None => {}
    }
    listen
}

fn buffer(section: &Section<'_>, max_body: u64) -> u64 {
    let default = (256 * MIB).max(max_body);
    let buffer = section.size("buffer", default, 1..=TIB);
    if buffer < max_body {
        let complaint = Complaint::new(format!("must be at least server.max_body, {}", units::show_size(max_body)));
        section.complain("buffer", complaint.help("one body of the longest kind has to fit"));
    }
    buffer
}

pub(super) fn admin(root: &Section<'_>, server: &Server, context: &mut Context<'_>) -> Admin {
    let section = root.section("admin");
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8788));
    let listen = section.read("listen", address_or_off).unwrap_or(Some(default));
    let health_listen = section.read("health_listen", address_or_off).flatten();
    let taken = |address: &SocketAddr| address.port() != 0 && server.listen.contains(address);
    if let Some(address) = listen.filter(taken) {
        section.complain("listen", Complaint::new(format!("= {address} is taken by server.listen")));
    }
    if let Some(address) =
        health_listen.filter(|address| taken(address) || (listen == Some(*address) && address.port() != 0))
    {
        let complaint = Complaint::new(format!("= {address} is taken by server.listen or admin.listen"));
        section.complain("health_listen", complaint);
    }
    if let Some(open) = listen.filter(|address| !address.ip().is_loopback()) {
        context.warnings.push(format!(
            "admin.listen {open} is open to other machines and asks for no password; for probes use admin.health_listen"
        ));
    }
    Admin { listen, health_listen }
}

pub(super) fn address_or_off(value: &Value) -> Result<Option<SocketAddr>, Complaint> {
    match value {
        Value::Bool(false) => Err(Complaint::new("must be an address or \"off\"").help("write \"off\" in quotes")),
        value => match text(value)? {
            "off" => Ok(None),
            text => address::listen(text).map(Some),
        },
    }
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
