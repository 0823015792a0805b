//! What reads bytes of strangers, one function each, for `fuzz/` and `tests/it/fuzz.rs`. Each panics where a property does not hold. Not part
//! of the library's interface.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header, request};

use crate::config;
use crate::credits::tokens;
use crate::protocol::pattern::Pattern;
use crate::protocol::{Protocol, core_today, replicate, wait};
use crate::proxy::accept::scan::{Scanner, Then};
use crate::proxy::classify::Call;
use crate::proxy::guard::Guard;
use crate::proxy::headers;
use crate::proxy::identify::Clients;
use crate::proxy::quota::feedback::Feedback;
use crate::webhooks::intake::Shape;

/// It stands in no report, whether it comes from the environment or was written into the file.
const KEY: &str = "cdt_9f8e7d6c5b4a39281706f5e4";

/// Reads some bytes, and panics where a property does not hold.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 8] = [
    ("head", head),
    ("pattern", pattern),
    ("feedback", feedback),
    ("usage", usage),
    ("config", config),
    ("job_answer", job_answer),
    ("create_body", create_body),
    ("framing", framing),
];

/// The head of a request: what it means, who calls, what of it goes on.
pub fn head(data: &[u8]) {
    let Some(head) = parsed(data) else { return };
    for protocol in [core_today(), replicate()] {
        let call = Call::classify(&protocol, &[], &head);
        if let Some(id) = &call.job {
            assert!(!id.is_empty() && !id.contains('/'), "a job named {id:?}");
            let own = protocol.status_request(id, "unknown").expect("a way to ask");
            let uri: http::Uri = own.1.parse().expect("our own path is one");
            let mut own_head = Request::new(()).into_parts().0;
            (own_head.method, own_head.uri) = (own.0, uri);
            assert!(Call::classify(&protocol, &[], &own_head).job.is_some(), "{id:?} is not found again");
        }
        let mut goes_on = head.headers.clone();
        headers::strip_hop_by_hop(&mut goes_on);
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE] {
            assert!(!goes_on.contains_key(&name), "{name} goes on");
        }
        wait::withdraw(&mut goes_on);
        assert!(wait::offered(&goes_on).is_none(), "a wish to wait goes on");
        let _ = Clients::new(&[], (vec!["local".into()], vec![0]), &protocol).identify(&head.headers, head.uri.query());
    }
    let _ = GUARD.check(&head);
    let id = headers::request_id(&head.headers);
    assert!(id.to_str().is_ok_and(|id| !id.is_empty() && id.len() <= 256), "a request id {id:?}");
}

/// `METHOD target` and a field a line.
fn parsed(data: &[u8]) -> Option<request::Parts> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = Method::from_bytes(method.as_bytes()).ok()?;
    head.uri = target.parse().ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        head.headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some(head)
}

static GUARD: LazyLock<Guard> = LazyLock::new(|| {
    let config = config::load_text(config::TEMPLATE, &env()).expect("the template is good");
    Guard::new(&config.server, &config.server.listen)
});

fn env() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("CORE_API_KEY".to_owned(), "cdt_fuzz".to_owned()),
        ("KEY".to_owned(), KEY.to_owned()),
        ("HOME".to_owned(), "/nonexistent".to_owned()),
    ])
}

/// A form of paths, and a path.
pub fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (form, path) = text.split_once('\n').unwrap_or((text, "/v1/predictions/p1"));
    let Ok(form) = Pattern::path(form) else { return };
    if !form.matches(path) {
        return;
    }
    let groups: BTreeMap<&str, &str> = form.groups().filter_map(|name| Some((name, form.group(path, name)?))).collect();
    assert!(groups.values().all(|value| !value.is_empty()), "an empty group in {path:?}");
    let filled = form.fill(|name| groups.get(name).copied()).expect("every group has a value");
    assert!(form.matches(&filled), "{filled:?}, made of {path:?}, does not match");
    if path.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'/') {
        assert_eq!(filled, path);
    }
}

/// What an answer's head says of limits, and a refusal's body.
pub fn feedback(data: &[u8]) {
    let mut headers = HeaderMap::new();
    let names = ["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset"];
    for (name, value) in names.into_iter().zip(data.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    }
    for wall in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1_800_000_000)] {
        let said = Feedback::read(&headers, || wall);
        assert!(said.retry_after.unwrap_or_default() <= Duration::from_secs(86_400));
        assert!(said.reset_in.unwrap_or_default() <= Duration::from_secs(3_600));
    }
    let asked = replicate().wait(data);
    assert!(asked.unwrap_or_default() <= Duration::from_secs(86_400));
}

/// The tokens of an answer: the same, in whatever pieces it comes.
pub fn usage(data: &[u8]) {
    let Some((&how, text)) = data.split_first() else { return };
    let form = if how & 1 == 0 { "application/json" } else { "text/event-stream" };
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(form))]);
    let tokens = |piece: usize| {
        let mut reader = tokens::Reader::new(&headers);
        text.chunks(piece).for_each(|piece| reader.feed(piece));
        reader.tokens()
    };
    let whole = tokens(text.len().max(1));
    if text.len() <= 32 * 1024 {
        assert_eq!(whole, tokens(usize::from(how) + 1), "in pieces of {}", usize::from(how) + 1);
    }
    let _ = tokens::of_answer(text);
}

/// A configuration that somebody left in the directory: read, checked, complained about.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Secrets may be files, and some files never end.
    if text.contains("/dev") || text.contains("/proc") || text.contains('\\') {
        return;
    }
    match config::load_text(text, &env()) {
        Ok(config) => {
            assert!(!config.accounts.is_empty() && config.default_account < config.accounts.len());
            assert!(config.clients.iter().all(|client| client.account < config.accounts.len()));
            assert!(config.server.buffer_bytes >= config.server.max_body_bytes);
        }
        Err(report) => {
            let report = report.to_string();
            assert!(!report.is_empty());
            assert!(!report.contains(KEY), "a key in {report}");
        }
    }
}

/// An answer about a job.
pub fn job_answer(data: &[u8]) {
    for protocol in [core_today(), replicate()] {
        let answer = protocol.read(data);
        if let Some(answer) = &answer {
            assert!(answer.id.as_deref() != Some(""), "an empty id");
            assert!(answer.ended.is_none() || answer.status.is_some(), "an end without a state");
        }
        let there =
            |url: &str| Some(format!("http://localhost:8787{}", url.strip_prefix("https://api.replicate.com")?));
        if let Some(turned) = protocol.rewrite(data, there) {
            assert_eq!(answer, protocol.read(&turned), "what it says of the job has changed");
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&turned).is_ok(), "it is no JSON any more");
        }
    }
}

/// The body of a create: the model that it names, and its webhook.
pub fn create_body(data: &[u8]) {
    let model = |protocol: &Protocol| protocol.model("/v1/predictions", data);
    assert!(model(&core_today()).as_deref() != Some(""), "a model without a name");
    let _ = model(&replicate());
    let _ = crate::proxy::body::model_part(data);
    for shape in [Shape::Json, Shape::Form("x".to_owned())] {
        if shape.asked(data).is_some()
            && let Some(without) = shape.rewritten(data, None)
        {
            assert!(shape.asked(&without).is_none(), "the webhook is still there");
        }
    }
}

/// The bytes of an HTTP/1 connection: whatever way they are split, the same of them pass.
pub fn framing(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let (mut whole, mut pieces) = (Scanner::default(), Scanner::default());
    let at_once = whole.feed(bytes);
    let (mut passed, mut end) = (0, 0);
    let then = loop {
        end = (end + 1 + usize::from(*cut)).min(bytes.len());
        let seen = pieces.feed(&bytes[passed..end]);
        passed += seen.passed;
        if !matches!(seen.then, Then::More | Then::Part) || end == bytes.len() {
            break seen.then;
        }
    };
    assert_eq!((at_once.passed, &at_once.then, whole.heads()), (passed, &then, pieces.heads()), "split by {cut}");
}
