//! The job protocol as data: how jobs are created, followed and ended, and how the upstream wants its key.
//!
//! Facts about `api.core.today`: two dialects exist (`id`/`succeeded` and `job_id`/`completed`); both are understood at once.

use http::{HeaderName, HeaderValue, Method, header};
use serde_json::Value;

use crate::config::Secret;

/// A way to create a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Create {
    /// A JSON body, read whole before the queue.
    Json,
    /// A multipart body, left unread after its `model` part.
    Multipart,
}

/// What a request means for jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    Create(Create),
    Status(&'a str),
    Cancel(&'a str),
    Nothing,
}

/// A job protocol.
#[derive(Debug)]
pub(crate) struct Protocol {
    /// Exact paths that create a job.
    creates: &'static [(&'static str, Create)],
    /// What stands before the id in status and cancel requests.
    job_prefix: &'static str,
    /// Where the id is, first match first.
    ids: &'static [&'static str],
    /// Statuses that end a job, in any case. Anything else is running.
    succeeded: &'static [&'static str],
    failed: &'static [&'static str],
    cancelled: &'static [&'static str],
}

/// `api.core.today`.
pub(crate) static CORE_TODAY: Protocol = Protocol {
    creates: &[("/v1/predictions", Create::Json), ("/v1/predictions/upload", Create::Multipart)],
    job_prefix: "/v1/predictions/",
    ids: &["job_id", "id"],
    succeeded: &["succeeded", "completed"],
    failed: &["failed"],
    cancelled: &["cancelled", "canceled"],
};

impl Protocol {
    /// What a request means. Paths are matched exactly, `upload` before an id.
    pub(crate) fn meaning<'a>(&self, method: &Method, path: &'a str) -> Meaning<'a> {
        if *method == Method::POST {
            let create = self.creates.iter().find(|(create, _)| *create == path);
            return create.map_or(Meaning::Nothing, |(_, kind)| Meaning::Create(*kind));
        }
        let id = path.strip_prefix(self.job_prefix).filter(|id| !id.is_empty() && !id.contains('/'));
        match id {
            Some(id) if *method == Method::GET => Meaning::Status(id),
            Some(id) if *method == Method::DELETE => Meaning::Cancel(id),
            _ => Meaning::Nothing,
        }
    }

    /// The path of a status request.
    pub(crate) fn status_path(&self, id: &str) -> String {
        format!("{}{id}", self.job_prefix)
    }

    /// Reads an answer about a job; `None` where the body is not one.
    pub(crate) fn read(&self, body: &[u8]) -> Option<JobAnswer> {
        let value: Value = serde_json::from_slice(body).ok()?;
        // Some routes wrap their answer in {"success": true, "data": {...}}.
        let object = value.as_object()?;
        let object = match object.get("data").and_then(Value::as_object) {
            Some(inner) if self.ids.iter().all(|id| !object.contains_key(*id)) => inner,
            _ => object,
        };
        let id = self.ids.iter().find_map(|name| match object.get(*name)? {
            Value::String(id) if !id.is_empty() => Some(id.clone()),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        });
        let text = |name| object.get(name).and_then(Value::as_str).map(str::to_owned);
        let status = text("status");
        let ended = status.as_deref().and_then(|status| self.end(status));
        Some(JobAnswer { id, status, ended })
    }

    fn end(&self, status: &str) -> Option<End> {
        let is_in = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(status.trim()));
        let ends = [(self.succeeded, End::Succeeded), (self.failed, End::Failed), (self.cancelled, End::Cancelled)];
        ends.into_iter().find(|(words, _)| is_in(words)).map(|(_, end)| end)
    }
}

/// What an answer says about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobAnswer {
    pub(crate) id: Option<String>,
    /// As the upstream spells it.
    pub(crate) status: Option<String>,
    pub(crate) ended: Option<End>,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Succeeded,
    Failed,
    Cancelled,
    /// The upstream knows it no longer (404, 410).
    Gone,
    /// It was older than `jobs.max_age`: nobody knows.
    Expired,
}

impl End {
    /// The word in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Gone => "gone",
            Self::Expired => "expired",
        }
    }
}

/// Whose error form and whose key header a path wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Native,
    OpenAi,
    Anthropic,
    Gemini,
}

impl Family {
    /// By path prefix.
    pub(crate) fn of(path: &str) -> Self {
        let Some(llm) = path.strip_prefix("/llm/") else {
            return Self::Native;
        };
        match llm.split('/').next() {
            Some("anthropic") => Self::Anthropic,
            Some("gemini") if !llm.contains("/openai/") => Self::Gemini,
            _ => Self::OpenAi,
        }
    }

    /// True below `/llm`.
    pub(crate) fn is_llm(self) -> bool {
        self != Self::Native
    }
}

/// An account's key as headers, ready to be cloned into attempts and never shown.
#[derive(Clone)]
pub(crate) struct KeyHeaders {
    native: HeaderValue,
    bearer: HeaderValue,
}

impl KeyHeaders {
    /// `None` where the key has bytes that no header may carry.
    pub(crate) fn new(key: &Secret) -> Option<Self> {
        let mut native = HeaderValue::from_str(key.expose()).ok()?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose())).ok()?;
        native.set_sensitive(true);
        bearer.set_sensitive(true);
        Some(Self { native, bearer })
    }

    /// `X-API-Key` on native routes, `Authorization: Bearer` below `/llm`.
    pub(crate) fn header(&self, family: Family) -> (HeaderName, HeaderValue) {
        match family {
            Family::Native => (HeaderName::from_static("x-api-key"), self.native.clone()),
            _ => (header::AUTHORIZATION, self.bearer.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_is_not_an_id() {
        let meaning = |method, path| CORE_TODAY.meaning(&method, path);
        assert_eq!(meaning(Method::POST, "/v1/predictions/upload"), Meaning::Create(Create::Multipart));
        assert_eq!(meaning(Method::POST, "/v1/predictions"), Meaning::Create(Create::Json));
        assert_eq!(meaning(Method::GET, "/v1/predictions/upload"), Meaning::Status("upload"));
        assert_eq!(meaning(Method::GET, "/v1/predictions/p1"), Meaning::Status("p1"));
        assert_eq!(meaning(Method::DELETE, "/v1/predictions/p1"), Meaning::Cancel("p1"));
        assert_eq!(meaning(Method::GET, "/v1/predictions/p1/more"), Meaning::Nothing);
        assert_eq!(meaning(Method::GET, "/v1/predictions"), Meaning::Nothing);
        assert_eq!(meaning(Method::POST, "/v1/predictions/p1"), Meaning::Nothing);
    }

    #[test]
    fn both_dialects_are_read_in_any_case() {
        let read = |text: &str| CORE_TODAY.read(text.as_bytes());
        let answer =
            |id: &str, status: &str, ended| Some(JobAnswer { id: Some(id.into()), status: Some(status.into()), ended });
        assert_eq!(read(r#"{"id":"a","status":"Succeeded"}"#), answer("a", "Succeeded", Some(End::Succeeded)));
        assert_eq!(read(r#"{"job_id":"b","id":"x","status":"processing"}"#), answer("b", "processing", None));
        assert_eq!(
            read(r#"{"success":true,"data":{"job_id":"c","status":"CANCELED"}}"#),
            answer("c", "CANCELED", Some(End::Cancelled))
        );
        assert_eq!(read(r#"{"id":12,"status":"odd words"}"#), answer("12", "odd words", None));
        assert_eq!(read("[1]"), None);
        assert_eq!(read("half {"), None);
    }

    #[test]
    fn families_follow_the_path() {
        assert_eq!(Family::of("/v1/predictions"), Family::Native);
        assert_eq!(Family::of("/llm/openai/v1/chat/completions"), Family::OpenAi);
        assert_eq!(Family::of("/llm/anthropic/v1/messages"), Family::Anthropic);
        assert_eq!(Family::of("/llm/gemini/v1beta/models/m:generateContent"), Family::Gemini);
        assert_eq!(Family::of("/llm/gemini/v1beta/openai/chat/completions"), Family::OpenAi);
    }

    #[test]
    fn key_headers_print_no_key() {
        let key = KeyHeaders::new(&Secret::new("cdt_canary")).expect("valid");
        let (name, value) = key.header(Family::Native);
        assert_eq!((name.as_str(), value.as_bytes()), ("x-api-key", &b"cdt_canary"[..]));
        assert!(!format!("{value:?}").contains("canary"));
        assert!(KeyHeaders::new(&Secret::new("a\nb")).is_none());
    }
}
