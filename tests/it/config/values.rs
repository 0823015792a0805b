//! What is written arrives, and what follows from it.

use std::time::Duration;

use sluicegate::config::{
    self, Amount, Config, Http2, Llm, LogFormat, Models, Pacing, Price, Refund, RetryCreates, RouteAuth, State,
};

use super::{MINIMAL, Scratch, seconds, valid};

#[test]
fn every_value_arrives() {
    let loaded = valid("everything");
    let Config {
        server,
        admin,
        upstream,
        routes,
        accounts,
        clients,
        queue,
        retry,
        jobs,
        models,
        webhooks,
        state,
        log,
        ..
    } = &loaded.config;
    let listen: Vec<String> = server.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:1000", "[::1]:1001", "0.0.0.0:1002"]);
    assert_eq!(server.threads.map(std::num::NonZeroUsize::get), Some(3));
    assert_eq!(server.allowed_hosts, ["proxy.internal", "[::1]"]);
    assert_eq!(server.allowed_origins, ["http://localhost:3000"]);
    assert_eq!((server.max_body_bytes, server.buffer_bytes), (1_000_000, 2_000_000));
    assert_eq!((server.header_timeout, server.body_timeout), (seconds(1), seconds(2)));
    assert_eq!((server.drain_timeout, server.max_connections.get()), (seconds(0), 4));
    assert_eq!((admin.listen, admin.health_listen), (None, Some("0.0.0.0:1003".parse().unwrap())));
    assert_eq!(upstream.url, "http://core.internal:81/base");
    assert_eq!((upstream.connect_timeout, upstream.attempt_timeout), (Duration::from_millis(1500), seconds(90)));
    assert_eq!((upstream.total_timeout, upstream.idle_timeout), (seconds(120), Duration::from_millis(250)));
    assert_eq!(upstream.http2, Http2::Never);
    let routes: Vec<_> = routes.iter().map(|route| (route.prefix.as_str(), route.auth)).collect();
    assert_eq!(routes, [("/v1/reports/", RouteAuth::Client), ("/", RouteAuth::Account)]);
    let [prod, batch] = accounts.as_slice() else { panic!("the unused account is left out") };
    assert_eq!(
        (prod.name.as_str(), prod.key.expose(), prod.description.as_deref()),
        ("prod", "from-file", Some("production"))
    );
    assert!(prod.key_origin.starts_with("file ") && prod.key_origin.ends_with("secret.txt"), "{}", prod.key_origin);
    assert_eq!(
        (batch.name.as_str(), batch.key.expose(), batch.key_origin.as_str()),
        ("batch", "from-command", "command printf")
    );
    assert_eq!((prod.plan.pacing, prod.plan.concurrent_jobs), (Pacing::Burst, None));
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(prod.rules.substitute, [pair("flux-pro", "flux-schnell"), pair("a/b", "c")]);
    let caps: Vec<_> = prod.rules.caps.iter().map(|(field, most)| format!("{field} {most}")).collect();
    assert_eq!(caps, ["duration 5", "guidance 7.5"]);
    assert_eq!(prod.rules.models, Models::Not(vec!["kling".into()]));
    assert_eq!(batch.rules.models, Models::Only(vec!["flux-schnell".into()]));
    let requests = batch.plan.requests.unwrap();
    assert_eq!((requests.limit.get(), requests.window, requests.jitter), (10, seconds(1), seconds(0)));
    assert_eq!((batch.plan.pacing, batch.plan.llm), (Pacing::Paced, Llm::Unmetered));
    let [web, app] = clients.as_slice() else { panic!("two clients") };
    assert_eq!((web.name.as_str(), web.token.expose(), web.account, web.weight.get()), ("web", "web-token", 1, 7));
    assert_eq!(web.plan.as_ref(), Some(&batch.plan));
    assert_eq!((app.account, app.plan.is_none(), app.weight.get()), (loaded.config.default_account, true, 1));
    assert_eq!((queue.max_wait, queue.max_waiting.get()), (seconds(0), 5));
    assert_eq!((retry.max_attempts.get(), retry.budget_floor, retry.creates), (1, 0, RetryCreates::Safe));
    assert_eq!((retry.initial_backoff, retry.max_backoff), (Duration::from_millis(10), Duration::from_millis(20)));
    assert_eq!(retry.statuses, [429, 503]);
    assert!((retry.budget - 1.0).abs() < f64::EPSILON);
    assert_eq!((jobs.max_age, jobs.uncertain, jobs.shared), (seconds(3600), seconds(0), true));
    let models: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.poll)).collect();
    assert_eq!(models, [("flux-schnell", Duration::from_millis(500)), ("plain", seconds(1))]);
    assert_eq!(webhooks.secret.as_ref().map(config::Secret::expose), Some("hook-secret"));
    let inbound = webhooks.inbound.as_ref().unwrap();
    assert_eq!(
        (inbound.listen.port(), inbound.public_url.to_string().as_str()),
        (1004, "https://hooks.example.com/in")
    );
    let allow: Vec<_> = webhooks.allow.iter().map(|allow| (allow.host.as_str(), allow.port)).collect();
    let expected =
        [("localhost", Some(3000)), ("localhost", None), ("my-svc.default.svc", Some(8080)), ("::1", Some(80))];
    assert_eq!(allow, expected);
    let prices: Vec<_> = loaded.config.models.iter().map(|model| model.price).collect();
    assert_eq!(prices, [Amount::of(0.25).map(Price::Call), Amount::of(2.0).map(Price::ThousandTokens)]);
    assert_eq!((prod.plan.credits_per_day, batch.plan.credits_per_day), (Some(Amount::whole(50)), Amount::of(0.5)));
    let credits = &loaded.config.credits;
    assert_eq!((credits.utc_offset_secs, &*credits.refund), (-19_800, &[Refund::Gone, Refund::Failed][..]));
    assert!(matches!(state, State::Local(path) if path.ends_with("state")));
    assert_eq!((log.format, log.level.as_str()), (LogFormat::Json, "info,sluicegate=trace"));
}

#[test]
fn jitter_follows_the_window() {
    let jitter = |name| valid(name).config.accounts[0].plan.requests.unwrap().jitter;
    assert_eq!(jitter("minimal"), Duration::from_millis(1500));
    assert_eq!(jitter("small-window"), Duration::from_millis(100));
    assert_eq!(valid("unlimited").config.accounts[0].plan.requests, None);
}

#[test]
fn a_preset_brings_its_url() {
    let load = |text: &str| Scratch::new().load("proxy.toml", &format!("{MINIMAL}{text}")).unwrap().config.upstream;
    assert_eq!(load("").url, "https://api.core.today");
    let replicate = load("[upstream]\nprotocol = \"replicate\"\n");
    assert_eq!(replicate.url, "https://api.replicate.com");
    assert_ne!(replicate.protocol, load("").protocol);
    let elsewhere = load("[upstream]\nprotocol = \"replicate\"\nurl = \"https://replicate.internal\"\n");
    assert_eq!((elsewhere.url.host(), elsewhere.protocol), (Some("replicate.internal"), replicate.protocol));
}

#[test]
fn open_ports_are_warned_about() {
    assert_eq!(valid("minimal").warnings, Vec::<String>::new());
    assert_eq!(valid("open-with-clients").warnings, Vec::<String>::new());
    assert_eq!(valid("everything").warnings, Vec::<String>::new());
    let open =
        format!("{MINIMAL}\n[server]\nlisten = \"0.0.0.0:1002\"\nallow_open = true\n[admin]\nlisten = \"[::]:1003\"\n");
    let warnings = Scratch::new().load("open.toml", &open).unwrap().warnings;
    assert!(
        warnings.len() == 2 && warnings[0].contains("0.0.0.0:1002") && warnings[1].contains("[::]:1003"),
        "{warnings:?}"
    );
}
