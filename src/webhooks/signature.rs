//! Both signatures: the upstream's own scheme and Standard Webhooks, made on the way out and checked on the way in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{constant_time, hmac};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Secret;

/// Lower-case hex of HMAC-SHA256 over the body.
pub(crate) const SIGNATURE: HeaderName = HeaderName::from_static("x-webhook-signature");
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const STANDARD: HeaderName = HeaderName::from_static("webhook-signature");
/// How far a signed timestamp may be from now (Standard Webhooks' own libraries use the same).
const TOLERANCE: Duration = Duration::from_secs(300);
/// What secrets of Standard Webhooks begin with; base64 follows.
const PREFIX: &str = "whsec_";

/// The secret, ready to sign.
#[derive(Clone)]
pub(crate) struct Keys {
    /// The secret's text as it is.
    plain: hmac::Key,
    /// The same, or what its base64 says where it begins with `whsec_`.
    standard: hmac::Key,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Keys {
    /// `None` where `whsec_` is not followed by base64.
    pub(crate) fn new(secret: &Secret) -> Option<Self> {
        let text = secret.expose();
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let standard = match text.strip_prefix(PREFIX) {
            Some(encoded) => key(&base64::decode(encoded)?),
            None => key(text.as_bytes()),
        };
        Some(Self { plain: key(text.as_bytes()), standard })
    }

    /// Puts both signatures of a message into the fields of its request.
    pub(crate) fn sign(&self, headers: &mut HeaderMap, id: &str, now: SystemTime, body: &[u8]) {
        let timestamp = epoch_secs(now).to_string();
        let standard = format!("v1,{}", base64::encode(self.standard(id, &timestamp, body).as_ref()));
        let fields = [(SIGNATURE, self.hex(body)), (ID, id.to_owned()), (TIMESTAMP, timestamp), (STANDARD, standard)];
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }

    /// Whether a request that came in is the upstream's. Both schemes are understood; all comparisons take constant time.
    pub(crate) fn verify(&self, headers: &HeaderMap, now: SystemTime, body: &[u8]) -> bool {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(signature) = text(&SIGNATURE) {
            let signature = signature.trim();
            let hex = signature.strip_prefix("sha256=").unwrap_or(signature).to_ascii_lowercase();
            return same(hex.as_bytes(), self.hex(body).as_bytes());
        }
        let (Some(id), Some(timestamp), Some(signatures)) = (text(&ID), text(&TIMESTAMP), text(&STANDARD)) else {
            return false;
        };
        let recent = timestamp.parse().is_ok_and(|at: u64| at.abs_diff(epoch_secs(now)) <= TOLERANCE.as_secs());
        let expected = format!("v1,{}", base64::encode(self.standard(id, timestamp, body).as_ref()));
        recent && signatures.split(' ').any(|signature| same(signature.as_bytes(), expected.as_bytes()))
    }

    fn hex(&self, body: &[u8]) -> String {
        super::hex(hmac::sign(&self.plain, body).as_ref())
    }

    fn standard(&self, id: &str, timestamp: &str, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.standard);
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        context.sign()
    }
}

fn same(left: &[u8], right: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(left, right).is_ok()
}

fn epoch_secs(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Base64 with the standard alphabet (RFC 4648 §4): thirty lines, for two calls.
mod base64 {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub(super) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for place in 0..4_usize {
                let symbol = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
                text.push(if place <= chunk.len() { char::from(symbol) } else { '=' });
            }
        }
        text
    }

    /// With or without padding.
    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        let text = text.trim_end_matches('=');
        let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
        let (mut bits, mut held) = (0_u32, 0);
        for symbol in text.bytes() {
            let value = ALPHABET.iter().position(|known| *known == symbol)?;
            bits = bits << 6 | u32::try_from(value).ok()?;
            held += 6;
            if held >= 8 {
                held -= 8;
                bytes.push(u8::try_from(bits >> held & 255).ok()?);
            }
        }
        (held < 6 && !bytes.is_empty()).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &[u8] = br#"{"id":"pred_demo1","status":"succeeded","output":["https://cdn.example.test/boat.png"]}"#;
    const HEX: &str = "006139d41bb109c2d3c004092d6ca20540a0f37de21e3160e3ec0066a5d3e7e1";

    fn keys(secret: &str) -> Keys {
        Keys::new(&Secret::new(secret)).expect("a fit secret")
    }

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn signed(keys: &Keys) -> HeaderMap {
        let mut headers = HeaderMap::new();
        keys.sign(&mut headers, "msg_1", at(1_700_000_000), BODY);
        headers
    }

    #[test]
    fn the_upstream_s_test_vector_holds() {
        let headers = signed(&keys("demo-webhook-secret"));
        assert_eq!(headers[SIGNATURE], HEX);
        assert_eq!((&headers[ID], &headers[TIMESTAMP]), (&"msg_1".parse().unwrap(), &"1700000000".parse().unwrap()));
    }

    #[test]
    fn the_standard_s_test_vector_holds() {
        // From the specification's reference libraries.
        let keys = keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let mut headers = HeaderMap::new();
        keys.sign(&mut headers, "msg_p5jXN8AQM9LWM0D4loKWxJek", at(1_614_265_330), br#"{"test": 2432232314}"#);
        assert_eq!(headers[STANDARD], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn both_schemes_are_accepted_and_nothing_else() {
        let (ours, other) = (keys("demo-webhook-secret"), keys("another"));
        let now = at(1_700_000_010);
        let with = |pairs: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(name, value.parse().unwrap());
            }
            headers
        };
        let upper = HEX.to_ascii_uppercase();
        for good in [HEX.to_owned(), format!("sha256={HEX}"), upper] {
            assert!(ours.verify(&with(&[(SIGNATURE, &good)]), now, BODY), "{good}");
        }
        let mut standard = signed(&ours);
        standard.remove(SIGNATURE);
        assert!(ours.verify(&standard, now, BODY));
        let several = format!("v1,AAAA {}", standard[STANDARD].to_str().unwrap());
        standard.insert(STANDARD, several.parse().unwrap());
        assert!(ours.verify(&standard, now, BODY));
        assert!(!ours.verify(&standard, at(1_700_000_400), BODY), "too old to be new");
        assert!(!ours.verify(&standard, now, b"{}"));
        for wrong in ["", "sha256=", &HEX[..62], &format!("{HEX}00"), &HEX.replace('0', "1")] {
            assert!(!ours.verify(&with(&[(SIGNATURE, wrong)]), now, BODY), "{wrong}");
        }
        assert!(!ours.verify(&HeaderMap::new(), now, BODY) && !ours.verify(&signed(&other), now, BODY));
        assert!(!format!("{ours:?}").contains("demo"));
    }

    #[test]
    fn a_prefixed_secret_must_be_base64() {
        assert!(Keys::new(&Secret::new("whsec_!!")).is_none() && Keys::new(&Secret::new("whsec_")).is_none());
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in prop::collection::vec(any::<u8>(), 1..100)) {
            prop_assert_eq!(base64::decode(&base64::encode(&bytes)), Some(bytes));
        }
    }
}
