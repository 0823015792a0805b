//! How the upstream wants its key, and therefore how its SDKs send one to us.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::config::Secret;

use super::{Family, Protocol};

/// A header that carries the key: `X-API-Key: {key}`, `Authorization: Bearer {key}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Auth {
    name: HeaderName,
    /// What stands before the key.
    prefix: String,
}

impl Auth {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "must be a header with {key} at its end, like \"Authorization: Bearer {key}\"";
        let (name, value) = text.split_once(':').ok_or(FORM)?;
        let prefix = value.trim_start().strip_suffix("{key}").ok_or(FORM)?;
        let name = HeaderName::from_bytes(name.trim_end().as_bytes()).map_err(|_| FORM)?;
        if super::is_reserved(&name) {
            return Err("names a header of the connection, which cannot carry a key");
        }
        let fit = prefix.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if fit { Ok(Self { name, prefix: prefix.to_owned() }) } else { Err(FORM) }
    }

    pub(crate) fn name(&self) -> &HeaderName {
        &self.name
    }

    /// One of the forms that callers may use whatever the protocol.
    pub(crate) fn is_usual(&self) -> bool {
        let bearer = self.name == header::AUTHORIZATION && self.prefix.eq_ignore_ascii_case("Bearer ");
        bearer || (self.name == "x-api-key" && self.prefix.is_empty())
    }

    /// `None` where the key has bytes that no header may carry.
    fn value(&self, key: &Secret) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("{}{}", self.prefix, key.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The tokens that a caller sent in this form. Schemes are compared without regard to case.
    pub(crate) fn tokens<'h>(&self, headers: &'h HeaderMap) -> impl Iterator<Item = &'h str> + use<'h, '_> {
        headers.get_all(&self.name).iter().filter_map(|value| value.to_str().ok()).filter_map(|value| {
            let (prefix, token) = value.split_at_checked(self.prefix.len())?;
            prefix.eq_ignore_ascii_case(&self.prefix).then_some(token.trim())
        })
    }
}

/// An account's key as headers, ready to be cloned into attempts and never shown.
#[derive(Clone)]
pub(crate) struct KeyHeaders {
    native: (HeaderName, HeaderValue),
    llm: (HeaderName, HeaderValue),
    /// Where the key begins in `native`.
    key_at: usize,
}

/// Shorter ones are no secrets, and are found where they are not meant.
const LEAST_SECRET_BYTES: usize = 16;

impl KeyHeaders {
    /// `None` where the key has bytes that no header may carry.
    pub(crate) fn new(key: &Secret, protocol: &Protocol) -> Option<Self> {
        let pair = |auth: &Auth| Some((auth.name.clone(), auth.value(key)?));
        Some(Self {
            native: pair(&protocol.auth)?,
            llm: pair(protocol.llm_auth.as_ref().unwrap_or(&protocol.auth))?,
            key_at: protocol.auth.prefix.len(),
        })
    }

    /// True where `value` holds the key.
    pub(crate) fn is_in(&self, value: &HeaderValue) -> bool {
        let key = self.native.1.as_bytes().get(self.key_at..).unwrap_or_default();
        (LEAST_SECRET_BYTES..=value.len()).contains(&key.len())
            && value.as_bytes().windows(key.len()).any(|part| part == key)
    }

    /// The header for a family of routes.
    pub(crate) fn header(&self, family: Family) -> (HeaderName, HeaderValue) {
        if family.is_llm() { self.llm.clone() } else { self.native.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    #[test]
    fn key_headers_print_no_key() {
        let key = KeyHeaders::new(&Secret::new("cdt_canary"), &protocol::core_today()).expect("valid");
        let (name, value) = key.header(Family::Native);
        assert_eq!((name.as_str(), value.as_bytes()), ("x-api-key", &b"cdt_canary"[..]));
        assert!(!format!("{value:?}").contains("canary"));
        let (name, value) = key.header(Family::Gemini);
        assert_eq!((name.as_str(), value.as_bytes()), ("authorization", &b"Bearer cdt_canary"[..]));
        let key = KeyHeaders::new(&Secret::new("cdt_canary_0123456789"), &protocol::core_today()).expect("valid");
        let told = |text| key.is_in(&HeaderValue::from_static(text));
        assert!(told("you sent cdt_canary_0123456789!") && !told("cdt_canary_012345678") && !told(""));
        assert!(KeyHeaders::new(&Secret::new("a\nb"), &protocol::core_today()).is_none());
    }

    #[test]
    fn forms_are_read_and_tokens_found_in_them() {
        let auth = Auth::parse("Authorization: Key {key}").expect("a form");
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static("key  abc"))]);
        assert_eq!(auth.tokens(&headers).collect::<Vec<_>>(), ["abc"]);
        assert_eq!(Auth::parse("Authorization: Bearer {key}").expect("a form").tokens(&headers).count(), 0);
        let bare = Auth::parse("x-key:{key}").expect("a form");
        assert_eq!((bare.name.as_str(), bare.prefix.as_str()), ("x-key", ""));
        for text in ["x-key", "x key: {key}", "x-key: {key}!", "Host: {key}", "x-key: \u{7}{key}", ": {key}"] {
            assert!(Auth::parse(text).is_err(), "{text}");
        }
    }
}
