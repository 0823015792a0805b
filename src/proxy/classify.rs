//! What a request is: its class in the queue, its meaning for jobs, whose key it takes.

use http::{HeaderMap, Method, request};

use crate::config::{self, RouteAuth};
use crate::protocol::{Create, Family, Meaning, Protocol, wait};

use super::body::Held;
use super::create::idempotency::Key;
use super::headers::IDEMPOTENCY_KEY;
use super::queue::Class;
use super::rejection::Rejection;

/// Paths that servers read differently.
pub(crate) mod plain;

/// Longest `Idempotency-Key` of a create, in bytes; as long as those of the APIs that know it.
const LONGEST_KEY: usize = 255;

/// A classified request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) class: Class,
    pub(crate) family: Family,
    /// How it creates a job, if it does.
    pub(crate) create: Option<Create>,
    /// The job it asks about or cancels.
    pub(crate) job: Option<String>,
    /// It asks for a list of jobs.
    pub(crate) list: bool,
    pub(crate) auth: RouteAuth,
    /// It may be repeated without harm (RFC 9110 §9.2.2; PUT is left out, as the upstream's are not known to be). Asking about a job
    /// and cancelling it always may, whatever the method.
    pub(crate) repeatable: bool,
    /// How long the upstream may hold the answer, because the caller said `Prefer: wait` and the upstream understands it.
    pub(crate) held_secs: u16,
}

impl Call {
    /// By method and path alone.
    pub(crate) fn classify(protocol: &Protocol, routes: &[config::Route], request: &request::Parts) -> Self {
        let path = request.uri.path();
        // HEAD means what GET means (RFC 9110 §9.3.2), but the upstream's answer to it tells nothing of the job.
        let bodiless = request.method == Method::HEAD;
        let meaning = protocol.meaning(if bodiless { &Method::GET } else { &request.method }, path);
        let (class, create, job) = match meaning {
            Meaning::Create(kind) => (Class::Create, Some(kind), None),
            Meaning::Status(id) if bodiless => (Class::Other, None, Some(id.to_owned())),
            Meaning::Status(id) => (Class::Poll, None, Some(id.to_owned())),
            Meaning::Cancel(id) => (Class::Cancel, None, Some(id.to_owned())),
            Meaning::About(id) => (Class::Other, None, Some(id.to_owned())),
            Meaning::List | Meaning::Nothing => (Class::Other, None, None),
        };
        let route = routes.iter().find(|route| path.starts_with(&route.prefix));
        Self {
            class,
            family: protocol.family(path),
            create,
            job,
            list: meaning == Meaning::List && !bodiless,
            auth: route.map_or(RouteAuth::Account, |route| route.auth),
            repeatable: matches!(class, Class::Poll | Class::Cancel)
                || matches!(request.method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS),
            held_secs: (protocol.prefer_wait && class == Class::Create)
                .then(|| wait::offered(&request.headers))
                .flatten()
                .map_or(0, |wait| u16::try_from(wait.as_secs()).unwrap_or(u16::MAX)),
        }
    }

    /// A look at a job by the proxy itself.
    pub(crate) fn look(id: &str) -> Self {
        Self {
            class: Class::Poll,
            family: Family::Native,
            create: None,
            job: Some(id.to_owned()),
            list: false,
            auth: RouteAuth::Account,
            repeatable: true,
            held_secs: 0,
        }
    }

    /// Whether a create's key can be one: a field, not empty, of at most `LONGEST_KEY` bytes.
    pub(crate) fn check_idempotency_key(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        if self.create.is_none() {
            return Ok(());
        }
        let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(key) = keys.next() else { return Ok(()) };
        Err(Rejection::BadRequest(match key.len() {
            _ if keys.next().is_some() => "more than one Idempotency-Key field; send one",
            0 => "the Idempotency-Key is empty; send one of 1 to 255 bytes, or none",
            1..=LONGEST_KEY => return Ok(()),
            _ => "the Idempotency-Key is longer than 255 bytes; take a shorter one, like a UUID",
        }))
    }

    /// A create's key, where the caller brought one and the body is here to be compared.
    pub(crate) fn idempotency_key(
        &self,
        account: usize,
        client: usize,
        head: &request::Parts,
        body: &Held,
    ) -> Option<Key> {
        if self.create.is_none() || !matches!(body, Held::Whole(..)) {
            return None;
        }
        let key = head.headers.get(IDEMPOTENCY_KEY)?;
        Some(Key { account, client, name: key.as_bytes().escape_ascii().to_string() })
    }

    /// Its answer is read by us before it is passed on.
    pub(crate) fn observed(&self) -> bool {
        self.class != Class::Other || self.list
    }
}
