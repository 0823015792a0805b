//! `[protocols.NAME]`: job protocols of other APIs, in the operator's words.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};

use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text};
use crate::config::report::{looks_like_key, quoted};
use crate::protocol::auth::Auth;
use crate::protocol::pattern::Pattern;
use crate::protocol::pointer::Pointer;
use crate::protocol::took::TellsTime;
use crate::protocol::wait::{WaitField, around};
use crate::protocol::{self, Create, Does, Model, Protocol, Rule, Signature};

/// The presets and all tables of the file, used or not. One with problems is in the list too, so that its name is known.
pub(super) fn read(root: &Section<'_>) -> Vec<Arc<Protocol>> {
    let mut known = vec![Arc::new(protocol::core_today()), Arc::new(protocol::replicate())];
    for (name, section) in root.named("protocols") {
        super::accounts::check_name(name, &section);
        if known.iter().any(|earlier| earlier.name == name) {
            section
                .complain_here(Complaint::new("is the name of a built-in protocol").help("give it a name of its own"));
        }
        known.push(Arc::new(one(name, &section)));
    }
    known
}

fn one(name: &str, section: &Section<'_>) -> Protocol {
    let usual = protocol::usual();
    let models = section.list("model", model).unwrap_or(usual.models);
    let words = |key| section.list(key, word).unwrap_or_default();
    section.demand("succeeded", "the words that say that a job has succeeded, like [\"completed\"]");
    let signatures = [("none", Signature::None), ("hex", Signature::Hex), ("standard", Signature::Standard)];
    let protocol = Protocol {
        name: name.to_owned(),
        url: None,
        rules: rules(section, &models),
        ids: section.list("id", single).unwrap_or(usual.ids),
        wrapper: section.read("wrapper", single),
        state: section.read("state", single).unwrap_or(usual.state),
        tells_time: tells_time(section),
        succeeded: words("succeeded"),
        failed: words("failed"),
        cancelled: words("cancelled"),
        models,
        auth: section.read("auth", auth).unwrap_or(usual.auth),
        llm_auth: section.read("llm_auth", auth),
        headers: headers(section),
        rewrite: section.list("rewrite", |value| pointer_of(text(value)?)).unwrap_or_default(),
        wait: wait(section),
        prefer_wait: section.flag("prefer_wait"),
        not_found: section.read("not_found", json).unwrap_or(usual.not_found),
        webhook: section.read("webhook", single),
        webhook_events: section.read("webhook_events", single),
        webhook_signature: section.choice("webhook_signature", &signatures).unwrap_or(usual.webhook_signature),
    };
    one_word_one_meaning(section, &protocol);
    protocol
}

/// `create`, `upload`, `status`, `cancel` and `about`.
fn rules(section: &Section<'_>, models: &[Model]) -> Vec<Rule> {
    if !section.has("create") && !section.has("upload") {
        section.demand("create", "the requests that create a job, like \"POST /v1/generations\"");
    }
    section.demand("status", "the request that asks about a job, like \"GET /v1/generations/{id}\"");
    let kinds = [
        ("create", Does::Create(Create::Json)),
        ("upload", Does::Create(Create::Multipart)),
        ("status", Does::Status),
        ("cancel", Does::Cancel),
        ("about", Does::About),
    ];
    let mut rules: Vec<Rule> = Vec::new();
    for (key, does) in kinds {
        section.list(key, |value| {
            let rule = rule(text(value)?, does)?;
            if rules.iter().any(|earlier| earlier.method == rule.method && earlier.path.same(&rule.path)) {
                return Err(Complaint::new("is the same request as another of this protocol"));
            }
            rules.push(rule);
            Ok(())
        });
    }
    let told = |name: &str| {
        name == "id"
            || models.iter().any(|model| matches!(model, Model::Path(form) if form.groups().any(|group| group == name)))
    };
    let asks: Vec<&Rule> = rules.iter().filter(|rule| rule.does == Does::Status).collect();
    if !asks.is_empty() && !asks.iter().any(|rule| rule.path.groups().all(told)) {
        let complaint = Complaint::new("has a group that the proxy cannot fill in when it asks by itself");
        section.complain("status", complaint.help("make it part of model, like model = \"{owner}/{name}\""));
    }
    let creates: Vec<&Rule> = rules.iter().filter(|rule| matches!(rule.does, Does::Create(_))).collect();
    for model in models {
        let Model::Path(form) = model else { continue };
        let fits = |rule: &&Rule| form.groups().all(|name| rule.path.groups().any(|group| group == name));
        if !creates.is_empty() && !creates.iter().any(fits) {
            section.complain("model", Complaint::new("has a group that no create has"));
        }
    }
    protocol::ordered(rules)
}

/// `POST /v1/models/{owner}/{name}/predictions`.
fn rule(text: &str, does: Does) -> Result<Rule, Complaint> {
    const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let form = || Complaint::new("must be a method and a path, like \"POST /v1/generations\"");
    let (method, path) = text.split_once(' ').ok_or_else(form)?;
    let method = METHODS.into_iter().find(|known| known.as_str() == method).ok_or_else(form)?;
    let path = Pattern::path(path.trim()).map_err(Complaint::new)?;
    let has_id = path.groups().any(|name| name == "id");
    match does {
        Does::Create(_) if has_id => Err(Complaint::new("has {id}, but a job that is being created has none yet")),
        Does::Status | Does::Cancel | Does::About if !has_id => {
            Err(Complaint::new("needs {id}, where the job's id stands")
                .help("for example \"GET /v1/generations/{id}\""))
        }
        _ => Ok(Rule { method, path, does }),
    }
}

/// A pointer into the body, or a form made of groups of the path.
fn model(value: &Value) -> Result<Model, Complaint> {
    let text = text(value)?;
    if text.starts_with('/') {
        return single(value).map(Model::Body);
    }
    let form = Pattern::parse(text).map_err(Complaint::new)?;
    if form.groups().next().is_none() {
        let complaint = Complaint::new("must be a JSON pointer like \"/model\", or made of groups of the path");
        return Err(complaint.help("for example model = [\"{owner}/{name}\", \"/model\"]"));
    }
    Ok(Model::Path(form))
}

fn pointer_of(text: &str) -> Result<Pointer, Complaint> {
    Pointer::parse(text).map_err(Complaint::new)
}

/// A pointer to one value.
fn single(value: &Value) -> Result<Pointer, Complaint> {
    let pointer = pointer_of(text(value)?)?;
    if pointer.is_single() { Ok(pointer) } else { Err(Complaint::new("must point to one value, without *")) }
}

fn word(value: &Value) -> Result<String, Complaint> {
    let word = text(value)?.trim();
    if word.is_empty() { Err(Complaint::new("must not be empty")) } else { Ok(word.to_owned()) }
}

fn auth(value: &Value) -> Result<Auth, Complaint> {
    Auth::parse(text(value)?).map_err(Complaint::new)
}

fn json(value: &Value) -> Result<String, Complaint> {
    let text = text(value)?;
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(Complaint::new("must be JSON, like '{\"detail\": \"Not found\"}'")),
    }
}

/// `[protocols.NAME.headers]`: never a credential, which `auth` is for.
fn headers(section: &Section<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let outer = section.section("headers");
    let mut headers = Vec::new();
    for name in outer.names() {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        let Some(parsed) = parsed.filter(|name| !protocol::is_reserved(name) && !is_credential(name)) else {
            let complaint = Complaint::new("is not a header that may be set here");
            outer.complain(
                name,
                complaint.help("the key goes into `auth`; host, length and connection are the proxy's"),
            );
            continue;
        };
        let value = outer.read(name, |value| {
            let value = text(value)?;
            if looks_like_key(value) {
                return Err(Complaint::new("looks like a key, which must not stand in the file").help("use `auth`"));
            }
            HeaderValue::from_str(value).map_err(|_| Complaint::new("must be text that a header may carry"))
        });
        headers.extend(value.map(|value| (parsed, value)));
    }
    headers
}

fn is_credential(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "authorization" | "proxy-authorization" | "cookie" | "x-api-key" | "x-goog-api-key" | "x-key"
    )
}

/// `wait` and `wait_text`.
fn wait(section: &Section<'_>) -> Option<WaitField> {
    let at = section.read("wait", single);
    let around = section.read("wait_text", |value| {
        let text = text(value)?;
        around(text).ok_or_else(|| {
            Complaint::new("must be what stands around the seconds, starting with some text")
                .help("for example \"~{seconds}s\"")
        })
    });
    if section.has("wait_text") && !section.has("wait") {
        section.complain(
            "wait_text",
            Complaint::new("needs wait, the field that it is in").help("for example wait = \"/detail\""),
        );
    }
    Some(WaitField { at: at?, around })
}

/// `run_time`, `began_at` and `ended_at`.
fn tells_time(section: &Section<'_>) -> TellsTime {
    let places = |key| section.list(key, single).unwrap_or_default();
    for (key, other) in [("began_at", "ended_at"), ("ended_at", "began_at")] {
        if section.has(key) && !section.has(other) {
            section.complain(key, Complaint::new(format!("needs {other}: a run time lies between the two")));
        }
    }
    TellsTime { secs: places("run_time"), begun: places("began_at"), ended: places("ended_at") }
}

/// No word may both succeed and fail.
fn one_word_one_meaning(section: &Section<'_>, protocol: &Protocol) {
    let sets = [("succeeded", &protocol.succeeded), ("failed", &protocol.failed), ("cancelled", &protocol.cancelled)];
    for (at, (key, words)) in sets.iter().enumerate() {
        for word in *words {
            let earlier =
                sets.iter().take(at).find(|(_, set)| set.iter().any(|other| other.eq_ignore_ascii_case(word)));
            if let Some((other, _)) = earlier {
                section.complain(key, Complaint::new(format!("has {}, which is in {other} too", quoted(word))));
            }
        }
    }
}
