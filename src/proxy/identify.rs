//! Who calls. Credentials are looked for in a fixed order, matched against the clients, and never forwarded.

use std::borrow::Cow;
use std::collections::HashMap;

use aws_lc_rs::hmac;
use aws_lc_rs::rand;
use http::{HeaderMap, HeaderName, header};

use crate::config;
use crate::protocol::Protocol;
use crate::protocol::auth::Auth;

use super::rejection::Rejection;

const OWN_TOKEN: HeaderName = HeaderName::from_static("sluicegate-token");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const GOOGLE_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// The clients of this proxy.
pub(crate) struct Clients {
    /// By HMAC of the token. What is compared byte by byte is made with a key that dies with the process, so that its time tells nothing
    /// of any token.
    by_token: HashMap<[u8; 32], usize>,
    tags: hmac::Key,
    /// By index. Names that have left the configuration stay, for what they left behind.
    names: Vec<String>,
    /// Which of them are in the configuration.
    present: Vec<usize>,
    /// How SDKs of the upstream send a key, beyond the forms that all may use.
    forms: Vec<Auth>,
}

impl Clients {
    /// With the index of each; all names by index. No clients in the configuration: everyone is `local`.
    pub(crate) fn new(
        clients: &[config::Client],
        (names, present): (Vec<String>, Vec<usize>),
        protocol: &Protocol,
    ) -> Self {
        let mut key = [0; 32];
        // Without the system's randomness TLS would not work either; zeroes are still as good as a plain hash.
        let _ = rand::fill(&mut key);
        let tags = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let by_token = clients.iter().zip(&present);
        let by_token = by_token.map(|(client, index)| (tag(&tags, client.token.expose()), *index)).collect();
        Self {
            by_token,
            tags,
            names,
            present,
            forms: protocol.auths().filter(|form| !form.is_usual()).cloned().collect(),
        }
    }

    /// The one client that everyone is, where the configuration names none.
    pub(crate) fn everyone(&self) -> Option<usize> {
        self.by_token.is_empty().then(|| self.first())
    }

    /// Index of the client that sent this request.
    pub(crate) fn identify(&self, headers: &HeaderMap, query: Option<&str>) -> Result<usize, Rejection> {
        if let Some(everyone) = self.everyone() {
            return Ok(everyone);
        }
        let text = |name: &HeaderName| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let bearer = text(&header::AUTHORIZATION).filter_map(bearer_token);
        let keys = query.into_iter().flat_map(parameters).filter(|(_, name, _)| *name == "key");
        let forms = self.forms.iter().flat_map(|form| form.tokens(headers));
        let candidates = text(&OWN_TOKEN)
            .chain(text(&API_KEY))
            .chain(bearer)
            .chain(text(&GOOGLE_KEY))
            .chain(forms)
            .map(Cow::Borrowed);
        let candidates = candidates.chain(keys.map(|(_, _, value)| percent_decode(value)));
        let mut found = None;
        for candidate in candidates {
            if let Some(client) = self.by_token.get(&tag(&self.tags, &candidate)) {
                match found {
                    None => found = Some(*client),
                    Some(before) if before != *client => return Err(Rejection::AmbiguousCredentials),
                    Some(_) => {}
                }
            }
        }
        found.ok_or(Rejection::Unauthorized)
    }

    /// True where `Authorization` holds a client's token, which must not go on even where the caller's own `Authorization` does.
    pub(crate) fn is_token(&self, authorization: &http::HeaderValue) -> bool {
        let value = authorization.to_str().unwrap_or_default();
        // Whatever the scheme: `Bearer TOKEN`, `Key TOKEN`, or the token alone.
        let token = value.split_once(' ').map(|(_, token)| token.trim());
        [Some(value.trim()), token]
            .into_iter()
            .flatten()
            .any(|token| self.by_token.contains_key(&tag(&self.tags, token)))
    }

    /// A client's name in logs and metrics.
    pub(crate) fn name(&self, client: usize) -> &str {
        &self.names[client]
    }

    /// The first one of the configuration.
    pub(crate) fn first(&self) -> usize {
        self.present.first().copied().unwrap_or_default()
    }

    /// Those that are in the configuration, by index.
    pub(crate) fn present(&self) -> &[usize] {
        &self.present
    }

    /// All names, by index.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

fn bearer_token(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn tag(key: &hmac::Key, token: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(hmac::sign(key, token.as_bytes()).as_ref());
    out
}

/// The query without its `key` parameters, byte for byte otherwise; `None` where nothing has to go.
pub(crate) fn without_key(query: &str) -> Option<String> {
    if !parameters(query).any(|(_, name, _)| name == "key") {
        return None;
    }
    let kept: Vec<&str> = parameters(query).filter(|(_, name, _)| *name != "key").map(|(whole, _, _)| whole).collect();
    Some(kept.join("&"))
}

/// Whole parameter, decoded name, raw value.
fn parameters(query: &str) -> impl Iterator<Item = (&str, Cow<'_, str>, &str)> {
    query.split('&').map(|whole| {
        let (name, value) = whole.split_once('=').unwrap_or((whole, ""));
        (whole, percent_decode(name), value)
    })
}

pub(crate) fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Secret;

    fn clients() -> Clients {
        let client = |name: &str, token: &str| config::Client {
            name: name.into(),
            token: Secret::new(token),
            account: 0,
            plan: None,
            weight: NonZeroU32::MIN,
        };
        let fal = Auth::parse("Authorization: Key {key}").expect("a form");
        let protocol = Protocol { llm_auth: Some(fal), ..crate::protocol::core_today() };
        let names = (["web", "batch"].map(str::to_owned).to_vec(), vec![0, 1]);
        Clients::new(&[client("web", "web token"), client("batch", "batch-token")], names, &protocol)
    }

    fn who(pairs: &[(&'static str, &'static str)], query: Option<&str>) -> Result<usize, Rejection> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        clients().identify(&headers, query)
    }

    #[test]
    fn every_place_for_a_credential_is_looked_at() {
        assert_eq!(who(&[("sluicegate-token", "batch-token")], None), Ok(1));
        assert_eq!(who(&[("x-api-key", "batch-token")], None), Ok(1));
        assert_eq!(who(&[("authorization", "bearer batch-token")], None), Ok(1));
        assert_eq!(who(&[("x-goog-api-key", "batch-token")], None), Ok(1));
        assert_eq!(who(&[("authorization", "Key batch-token")], None), Ok(1), "a form of the protocol");
        assert_eq!(who(&[], Some("alt=sse&key=web%20token")), Ok(0));
        assert_eq!(who(&[], Some("ke%79=web+token")), Ok(0));
    }

    #[test]
    fn a_placeholder_beside_a_token_is_ignored_but_two_clients_are_refused() {
        assert_eq!(who(&[("x-api-key", "sk-placeholder"), ("sluicegate-token", "web token")], None), Ok(0));
        let two = [("x-api-key", "batch-token"), ("sluicegate-token", "web token")];
        assert_eq!(who(&two, None), Err(Rejection::AmbiguousCredentials));
        assert_eq!(who(&[("authorization", "Bearer nobody")], None), Err(Rejection::Unauthorized));
        assert_eq!(who(&[("authorization", "Basic batch-token")], None), Err(Rejection::Unauthorized));
    }

    #[test]
    fn without_clients_everyone_is_local() {
        let nobody = Clients::new(&[], (vec!["local".into()], vec![0]), &crate::protocol::core_today());
        assert_eq!(nobody.identify(&HeaderMap::new(), None), Ok(0));
        assert_eq!(nobody.name(0), "local");
    }

    #[test]
    fn only_the_key_leaves_the_query() {
        assert_eq!(without_key("alt=sse"), None);
        assert_eq!(without_key("key=x"), Some(String::new()));
        assert_eq!(without_key("a=%41&key=x&b&&c=+"), Some("a=%41&b&&c=+".into()));
        assert_eq!(without_key("k%65y=x&monkey=1"), Some("monkey=1".into()));
    }

    proptest! {
        #[test]
        fn decoding_takes_anything(text in ".{0,60}") {
            percent_decode(&text);
            without_key(&text);
        }
    }
}
