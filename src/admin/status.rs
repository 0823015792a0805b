//! What `/api/v1/status` and `/metrics` show of this moment.

use serde_json::{Value, json};

use crate::metrics::{ClientLevel, Levels};
use crate::proxy::App;

/// Limits, jobs and queue of every account.
pub(crate) fn status(app: &App) -> Value {
    let accounts = app.accounts.iter().filter(|account| !account.gone).map(|account| {
        let now = account.queue.snapshot();
        json!({
            "name": account.name,
            "plan": account.plan.name,
            // Accounts with one key share its quota.
            "same_key_as": Some(&account.queue.name).filter(|name| **name != account.name),
            "requests": now.view.map(|view| json!({
                "limit": view.limit,
                "window_secs": view.window.as_secs_f64(),
                "used": now.used,
                "remaining": view.remaining,
                "next_in_secs": view.reset_in.as_secs_f64(),
            })),
            "jobs": { "live": now.live, "limit": now.jobs_limit },
            "waiting": now.waiting,
            "paced": now.paced,
            "drift": now.drift,
            "attempts": now.attempts,
            "shared": account.queue.shared_view().map(|view| json!({
                "state": view.state,
                "replicas": view.replicas,
                "members": view.told.members,
                "away": view.told.away,
                "used": view.told.used,
                "jobs_live": view.told.live,
                "unspent": view.unspent.map(|(left, _)| left),
                "waits_for": view.told.why,
                "silent_secs": view.silent_secs,
                "credits": view.funds.map(|funds| json!({
                    "used": funds.used.json(), "used_here": funds.own.json(), "limit": funds.limit.json(), "frozen": funds.frozen,
                })),
            })),
            "counts": account.counters.totals(),
        })
    });
    let clients = app.clients.present().iter().map(|&client| {
        let name = app.clients.name(client);
        let (waiting, live) = app.accounts[app.account_of[client]].queue.client_snapshot(client);
        json!({"name": name, "account": app.accounts[app.account_of[client]].name, "waiting": waiting, "jobs_live": live})
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": !app.drain.is_cancelled(),
        "uptime_secs": app.metrics.uptime().as_secs_f64(),
        "in_flight": app.metrics.in_flight.get(),
        "connections": app.metrics.connections.get(),
        "config": app.reloads.snapshot(),
        "jobs_uncertain": app.jobs.uncertain(),
        "jobs_ended": app.metrics.ended(),
        "rejections": app.metrics.rejected(),
        "upstream": app.breaker.status(),
        "accounts": accounts.collect::<Vec<_>>(),
        "clients": clients.collect::<Vec<_>>(),
    })
}

impl App {
    pub(super) fn render_metrics(&self) -> String {
        let queues: Vec<_> = self.queues().map(|(name, queue)| (name.to_owned(), queue)).collect();
        self.credits.set_gauges();
        let clients = self.clients.present().iter().map(|&client| {
            let name = self.clients.name(client);
            let (waiting, jobs_live) = self.accounts[self.account_of[client]].queue.client_snapshot(client);
            ClientLevel { name, waiting, jobs_live }
        });
        let levels = Levels {
            clients: clients.collect(),
            jobs_uncertain: self.jobs.uncertain(),
            remembered: self.jobs.remembered(),
            held_bytes: self.bodies.held_bytes(),
            ready: !self.drain.is_cancelled(),
        };
        self.metrics.render(&queues, &levels)
    }
}
