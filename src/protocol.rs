//! The job protocol as data: how jobs are created, followed and ended, and how the upstream wants its key.
//!
//! Built once, from a preset or a `[protocols.NAME]` table, and only read afterwards. Matching a path allocates nothing.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use self::auth::Auth;
use self::pattern::Pattern;
use self::pointer::{Members, Pointer};
use self::took::{TellsTime, Took};
use self::wait::WaitField;

pub(crate) use self::auth::KeyHeaders;
pub(crate) use self::presets::{core_today, replicate, usual};

/// Paths with groups.
pub(crate) mod pattern;

/// Values of a JSON text as they stand there.
pub(crate) mod pointer;

/// URLs in answers, turned to us.
mod rewrite;

/// How long a job took.
pub(crate) mod took;

/// How long one waits.
pub(crate) mod wait;

/// Headers that carry a key.
pub(crate) mod auth;

/// Those that are built in.
mod presets;

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
    /// Something else about a job: it takes the key of the job's account, and its answer is not read.
    About(&'a str),
    /// A list of jobs: its answer is read, as it has URLs of the upstream.
    List,
    Nothing,
}

/// What the requests that a rule matches do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    Create(Create),
    Status,
    Cancel,
    About,
    List,
}

/// A method and a path, and what a request with both does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) method: Method,
    /// All but creates and lists have the group `id`.
    pub(crate) path: Pattern,
    pub(crate) does: Does,
}

/// Where a create names its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Model {
    Body(Pointer),
    /// Made of groups of the create's path.
    Path(Pattern),
}

/// How the upstream signs its webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signature {
    /// `X-Webhook-Signature`: HMAC-SHA256 of the body in hex.
    Hex,
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`: Standard Webhooks.
    Standard,
    /// Not at all, or in a way that we do not know.
    None,
}

/// A job protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct Protocol {
    /// As `upstream.protocol` says it.
    pub(crate) name: String,
    /// A preset's own API.
    pub(crate) url: Option<&'static str>,
    /// In order of precedence, see [`ordered`].
    pub(crate) rules: Vec<Rule>,
    /// Where the id is, first match first.
    pub(crate) ids: Vec<Pointer>,
    /// Answers may be wrapped in this member; they are where they hold no id themselves.
    pub(crate) wrapper: Option<Pointer>,
    /// Where the word is that says how the job is.
    pub(crate) state: Pointer,
    /// Where the last answer tells how long the job took.
    pub(crate) tells_time: TellsTime,
    /// Words that end a job, in any case. Anything else is running.
    pub(crate) succeeded: Vec<String>,
    pub(crate) failed: Vec<String>,
    pub(crate) cancelled: Vec<String>,
    /// Where a create names its model, first match first.
    pub(crate) models: Vec<Model>,
    pub(crate) auth: Auth,
    /// `None`: there are no LLM routes below `/llm`.
    pub(crate) llm_auth: Option<Auth>,
    /// Sent with every attempt where the caller sent none, such as a version.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Where answers about jobs have URLs of the upstream.
    pub(crate) rewrite: Vec<Pointer>,
    /// Where a 429 says how long to wait, if not in `Retry-After`.
    pub(crate) wait: Option<WaitField>,
    /// The upstream understands `Prefer: wait` on creates.
    pub(crate) prefer_wait: bool,
    /// The body of its 404: what a client is told of others' jobs.
    pub(crate) not_found: String,
    /// Where a create names its webhook.
    pub(crate) webhook: Option<Pointer>,
    /// Where it says which events it wants to hear of.
    pub(crate) webhook_events: Option<Pointer>,
    pub(crate) webhook_signature: Signature,
}

/// Headers of one connection or body: no protocol may set them.
pub(crate) fn is_reserved(name: &HeaderName) -> bool {
    const RESERVED: [HeaderName; 8] = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::TRANSFER_ENCODING,
        header::EXPECT,
        header::UPGRADE,
        header::TE,
    ];
    RESERVED.contains(name)
}

/// Rules in order of precedence: fixed text before groups.
pub(crate) fn ordered(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.sort_by(|a, b| a.path.precedence(&b.path));
    rules
}

impl Protocol {
    /// What a request means.
    pub(crate) fn meaning<'a>(&self, method: &Method, path: &'a str) -> Meaning<'a> {
        let Some(rule) = self.rules.iter().find(|rule| rule.method == *method && rule.path.matches(path)) else {
            return Meaning::Nothing;
        };
        let id = || rule.path.group(path, "id").unwrap_or_default();
        match rule.does {
            Does::Create(create) => Meaning::Create(create),
            Does::Status => Meaning::Status(id()),
            Does::Cancel => Meaning::Cancel(id()),
            Does::About => Meaning::About(id()),
            Does::List => Meaning::List,
        }
    }

    /// Our own status request; groups other than the id are read out of the model's name, which was made of them. `None` where the
    /// model does not tell them.
    pub(crate) fn status_request(&self, id: &str, model: &str) -> Option<(Method, String)> {
        let value = |name: &str| {
            if name == "id" {
                return Some(id);
            }
            self.models.iter().find_map(|source| match source {
                Model::Path(form) if form.matches(model) => form.group(model, name),
                _ => None,
            })
        };
        self.rules.iter().filter(|rule| rule.does == Does::Status).find_map(|rule| {
            let path = rule.path.fill(value)?;
            Some((rule.method.clone(), path))
        })
    }

    /// The model that a create names, in its path or its body.
    pub(crate) fn model(&self, path: &str, body: &[u8]) -> Option<String> {
        let is_create = |rule: &&Rule| matches!(rule.does, Does::Create(_)) && rule.path.matches(path);
        let rule = self.rules.iter().find(is_create);
        let in_path = |form: &Pattern| form.fill(|name| rule?.path.group(path, name));
        let mut members = None;
        self.models.iter().find_map(|source| match source {
            Model::Path(form) => in_path(form),
            Model::Body(at) => {
                let members = members.get_or_insert_with(|| Members::of(body).unwrap_or_default());
                pointer::text(at.first(members)?).filter(|name| !name.is_empty())
            }
        })
    }

    /// The model of a job that this status request asks about, where models are made of paths.
    pub(crate) fn model_in(&self, path: &str) -> Option<String> {
        let rule = self.rules.iter().find(|rule| rule.does == Does::Status && rule.path.matches(path))?;
        self.models.iter().find_map(|source| match source {
            Model::Path(form) => form.fill(|name| rule.path.group(path, name)),
            Model::Body(_) => None,
        })
    }

    /// Reads an answer about a job; `None` where the body is not one.
    pub(crate) fn read(&self, body: &[u8]) -> Option<JobAnswer> {
        let outer = Members::of(body)?;
        let names_job = self.ids.iter().any(|id| id.first(&outer).is_some());
        let wrapped = self.wrapper.as_ref().filter(|_| !names_job).and_then(|wrapper| wrapper.first(&outer));
        let members = wrapped.and_then(Members::object).unwrap_or(outer);
        let id = self.ids.iter().find_map(|id| {
            let value = id.first(&members)?;
            match value.get().as_bytes().first()? {
                b'"' => pointer::text(value).filter(|id| !id.is_empty()),
                b'-' | b'0'..=b'9' => Some(value.get().to_owned()),
                _ => None,
            }
        });
        let status = self.state.first(&members).and_then(pointer::text);
        let ended = status.as_deref().and_then(|status| self.end(status));
        let took = ended.and_then(|_| self.tells_time.read(&members));
        Some(JobAnswer { id, status, ended, took })
    }

    fn end(&self, status: &str) -> Option<End> {
        let is_in = |words: &[String]| words.iter().any(|word| word.eq_ignore_ascii_case(status.trim()));
        let ends = [(&self.succeeded, End::Succeeded), (&self.failed, End::Failed), (&self.cancelled, End::Cancelled)];
        ends.into_iter().find(|(words, _)| is_in(words)).map(|(_, end)| end)
    }

    /// An answer about a job with the upstream's URLs through `turn`; `None` where nothing changes.
    pub(crate) fn rewrite(&self, body: &[u8], turn: impl Fn(&str) -> Option<String>) -> Option<Bytes> {
        rewrite::rewrite(body, &self.rewrite, turn)
    }

    /// How long the body of a 429 asks to wait.
    pub(crate) fn wait(&self, body: &[u8]) -> Option<Duration> {
        self.wait.as_ref()?.read(body)
    }

    /// Every header that carries a key in this protocol.
    pub(crate) fn auths(&self) -> impl Iterator<Item = &Auth> {
        [Some(&self.auth), self.llm_auth.as_ref()].into_iter().flatten()
    }

    /// Whose error form and whose key header a path wants.
    pub(crate) fn family(&self, path: &str) -> Family {
        if self.llm_auth.is_some() { Family::of(path) } else { Family::Native }
    }

    /// Adds the protocol's own headers where the caller sent none.
    pub(crate) fn dress(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}

/// What an answer says about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobAnswer {
    pub(crate) id: Option<String>,
    /// As the upstream spells it.
    pub(crate) status: Option<String>,
    pub(crate) ended: Option<End>,
    /// From its acceptance to its end, where the answer tells it.
    pub(crate) took: Option<Took>,
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
    pub(crate) const ALL: [Self; 5] = [Self::Succeeded, Self::Failed, Self::Cancelled, Self::Gone, Self::Expired];

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
    fn of(path: &str) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_may_tell_the_run_time() {
        let told = |body: &str| core_today().read(body.as_bytes()).and_then(|answer| answer.took);
        let ended = r#"{"id": "p1", "status": "succeeded", "metrics": {"total_time": 3.1, "queue_time": 0.4}}"#;
        assert_eq!(told(ended), Some(Took::exactly(Duration::from_secs_f64(3.1))));
        assert_eq!(told(&ended.replace("succeeded", "pending")), None, "it still runs");
        for odd in ["-1", "1e300", "\"3.1\"", "null"] {
            assert_eq!(told(&ended.replace("3.1", odd)), None, "{odd}");
        }
    }

    #[test]
    fn upload_is_not_an_id() {
        let protocol = core_today();
        let meaning = |method, path| protocol.meaning(&method, path);
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
    fn replicate_has_three_ways_to_create_and_cancels_by_post() {
        let protocol = replicate();
        let meaning = |method, path| protocol.meaning(&method, path);
        let create = Meaning::Create(Create::Json);
        assert_eq!(meaning(Method::POST, "/v1/predictions"), create);
        assert_eq!(meaning(Method::POST, "/v1/models/acme/boats/predictions"), create);
        assert_eq!(meaning(Method::POST, "/v1/deployments/acme/boats/predictions"), create);
        assert_eq!(meaning(Method::GET, "/v1/predictions/p1"), Meaning::Status("p1"));
        assert_eq!(meaning(Method::POST, "/v1/predictions/p1/cancel"), Meaning::Cancel("p1"));
        assert_eq!(meaning(Method::DELETE, "/v1/predictions/p1"), Meaning::Nothing);
        assert_eq!(meaning(Method::GET, "/v1/predictions"), Meaning::List);
        assert_eq!(meaning(Method::GET, "/v1/models/acme/boats/versions/1"), Meaning::Nothing);
        assert_eq!(protocol.family("/llm/openai/v1/chat/completions"), Family::Native);
        let request = (Method::GET, "/v1/predictions/p1".to_owned());
        assert_eq!(protocol.status_request("p1", "unknown"), Some(request));
    }

    #[test]
    fn the_model_is_in_the_path_or_the_body() {
        let protocol = replicate();
        let model = |path, body: &str| protocol.model(path, body.as_bytes());
        let body = r#"{"model": "in/body", "version": "hash", "input": {}}"#;
        assert_eq!(model("/v1/models/acme/boats/predictions", body).as_deref(), Some("acme/boats"));
        assert_eq!(model("/v1/predictions", body).as_deref(), Some("in/body"));
        assert_eq!(model("/v1/predictions", r#"{"version": "hash"}"#).as_deref(), Some("hash"));
        assert_eq!(model("/v1/predictions", "half {"), None);
        assert_eq!(core_today().model("/v1/predictions", br#"{"model": ""}"#), None);
    }

    #[test]
    fn what_the_model_was_made_of_is_known_again_for_our_own_status_requests() {
        let rule = |method, path, does| Rule { method, path: Pattern::path(path).expect("a path"), does };
        let form = |text| Model::Path(Pattern::parse(text).expect("a form"));
        let protocol = Protocol {
            rules: ordered(vec![
                rule(Method::POST, "/{owner}/{app}", Does::Create(Create::Json)),
                rule(Method::POST, "/{owner}/{app}/{sub*}", Does::Create(Create::Json)),
                rule(Method::GET, "/{owner}/{app}/requests/{id}/status", Does::Status),
                rule(Method::PUT, "/{owner}/{app}/requests/{id}/cancel", Does::Cancel),
                rule(Method::GET, "/{owner}/{app}/requests/{id}", Does::About),
            ]),
            models: vec![form("{owner}/{app}/{sub*}"), form("{owner}/{app}")],
            ..replicate()
        };
        for (path, model) in [("/fal-ai/flux", "fal-ai/flux"), ("/fal-ai/flux/dev/lora", "fal-ai/flux/dev/lora")] {
            assert_eq!(protocol.meaning(&Method::POST, path), Meaning::Create(Create::Json));
            assert_eq!(protocol.model(path, b"{}").as_deref(), Some(model));
            let request = (Method::GET, "/fal-ai/flux/requests/r1/status".to_owned());
            assert_eq!(protocol.status_request("r1", model), Some(request));
        }
        assert_eq!(protocol.status_request("r1", "unknown"), None);
        assert_eq!(protocol.model_in("/fal-ai/flux/requests/r1/status").as_deref(), Some("fal-ai/flux"));
        assert_eq!(protocol.model_in("/fal-ai/flux/requests/r1"), None);
        assert_eq!(replicate().model_in("/v1/predictions/r1"), None);
        assert_eq!(protocol.meaning(&Method::GET, "/fal-ai/flux/requests/r1"), Meaning::About("r1"));
        assert_eq!(protocol.meaning(&Method::PUT, "/fal-ai/flux/requests/r1/cancel"), Meaning::Cancel("r1"));
    }

    #[test]
    fn both_dialects_are_read_in_any_case() {
        let protocol = core_today();
        let read = |text: &str| protocol.read(text.as_bytes());
        let answer = |id: &str, status: &str, ended| {
            Some(JobAnswer { id: Some(id.into()), status: Some(status.into()), ended, took: None })
        };
        assert_eq!(read(r#"{"id":"a","status":"Succeeded"}"#), answer("a", "Succeeded", Some(End::Succeeded)));
        assert_eq!(read(r#"{"job_id":"b","id":"x","status":"processing"}"#), answer("b", "processing", None));
        assert_eq!(
            read(r#"{"success":true,"data":{"job_id":"c","status":"CANCELED"}}"#),
            answer("c", "CANCELED", Some(End::Cancelled))
        );
        assert_eq!(read(r#"{"id":12,"status":"odd words"}"#), answer("12", "odd words", None));
        assert_eq!(read(r#"{"id":"d","data":{"status":"failed"}}"#).map(|answer| answer.ended), Some(None));
        assert_eq!(read("[1]"), None);
        assert_eq!(read("half {"), None);
    }

    #[test]
    fn words_may_have_spaces() {
        let protocol = Protocol { failed: vec!["Request Moderated".into()], ..replicate() };
        let ended = |text: &str| protocol.read(text.as_bytes()).and_then(|answer| answer.ended);
        assert_eq!(ended(r#"{"status": "request moderated "}"#), Some(End::Failed));
        assert_eq!(ended(r#"{"status": "moderated"}"#), None);
    }

    #[test]
    fn families_follow_the_path() {
        assert_eq!(Family::of("/v1/predictions"), Family::Native);
        assert_eq!(Family::of("/llm/openai/v1/chat/completions"), Family::OpenAi);
        assert_eq!(Family::of("/llm/anthropic/v1/messages"), Family::Anthropic);
        assert_eq!(Family::of("/llm/gemini/v1beta/models/m:generateContent"), Family::Gemini);
        assert_eq!(Family::of("/llm/gemini/v1beta/openai/chat/completions"), Family::OpenAi);
    }
}
