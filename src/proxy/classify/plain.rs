//! Paths that servers read differently: with dot segments, empty segments, or letters that are percent-encoded without need. They go on as
//! they came where that makes no difference here. Where it would, they are refused: the upstream might see a create, or another client's
//! job, where we see nothing.

use std::borrow::Cow;

use http::Method;

use crate::protocol::{Meaning, Protocol};
use crate::proxy::rejection::Rejection;

/// Refuses a path that means something to a server which normalises paths, and something else to us.
pub(crate) fn check(protocol: &Protocol, method: &Method, path: &str) -> Result<(), Rejection> {
    let Cow::Owned(plain) = plain(path) else { return Ok(()) };
    let (seen, meant) = (protocol.meaning(method, path), protocol.meaning(method, &plain));
    let hidden = seen != meant && !matches!(meant, Meaning::Nothing | Meaning::List);
    if hidden || protocol.family(path) != protocol.family(&plain) {
        return Err(Rejection::BadRequest(
            "servers may read its path in two ways; send the plain path, without dot or empty segments or needless percent-encoding",
        ));
    }
    Ok(())
}

/// The path as a server may read it that decodes unreserved characters and slashes (RFC 3986 §6.2.2.2), removes dot segments (§5.2.4) and
/// leaves empty segments out. Borrowed where that is the path itself.
fn plain(path: &str) -> Cow<'_, str> {
    // Most have none of these anywhere.
    let bytes = path.as_bytes();
    let after_slash = |pair: &[u8]| matches!(pair, [b'/', b'/' | b'.']);
    if !bytes.contains(&b'%') && !bytes.ends_with(b"/") && !bytes.windows(2).any(after_slash) {
        return Cow::Borrowed(path);
    }
    let odd = |segment: &str| matches!(segment, "" | "." | "..") || segment.contains('%');
    if path == "/" || !path.strip_prefix('/').is_some_and(|rest| rest.split('/').any(odd)) {
        return Cow::Borrowed(path);
    }
    let decoded = decoded(path);
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let plain = format!("/{}", segments.join("/"));
    if plain == path { Cow::Borrowed(path) } else { Cow::Owned(plain) }
}

/// With the octets decoded that need no encoding in a segment, and slashes. Others stay as they are: `%3A` is how a `:` in an id may come.
fn decoded(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.push_str(before);
        let digits = after.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let octet = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(octet) = octet.filter(|octet| octet.is_ascii_alphanumeric() || b"-._~/".contains(octet)) {
            decoded.push(char::from(octet));
            rest = &after[2..];
        } else {
            decoded.push('%');
            rest = after;
        }
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::protocol::{core_today, replicate};

    use super::*;

    fn refused(method: &Method, path: &str) -> bool {
        check(&core_today(), method, path).is_err()
    }

    #[test]
    fn a_create_in_disguise_is_refused() {
        for path in [
            "/v1/./predictions",
            "/v1/x/../predictions",
            "/v1/predictions/.",
            "/v1/predictions/",
            "/v1/predictions/p1/..",
            "//v1/predictions",
            "/v1//predictions",
            "/v1/%70redictions",
            "/%76%31/predictions",
            "/v1/x/%2e%2E/predictions",
            "/v1/x/%2e./predictions",
            "/v1/%2e/predictions",
            "/v1%2Fpredictions",
            "/../v1/predictions",
            "/v1/predictions//upload",
        ] {
            assert!(refused(&Method::POST, path), "{path}");
        }
        assert!(check(&replicate(), &Method::POST, "/v1/models/acme/../acme/boats/predictions").is_err());
    }

    /// A job is looked up by its id as it stands: under another spelling it would be nobody's.
    #[test]
    fn a_job_under_another_spelling_is_refused() {
        for path in
            ["/v1/predictions/%61bc", "/v1/predictions/x/../abc", "/v1//predictions/abc", "/v1/predictions/abc/"]
        {
            assert!(refused(&Method::GET, path) && refused(&Method::DELETE, path), "{path}");
        }
        assert!(check(&replicate(), &Method::POST, "/v1/predictions/%61bc/cancel").is_err());
    }

    #[test]
    fn tokens_cannot_be_spent_in_disguise() {
        for path in ["//llm/openai/v1/chat/completions", "/x/../llm/anthropic/v1/messages", "/%6clm/openai/v1/x"] {
            assert!(refused(&Method::POST, path), "{path}");
        }
    }

    #[test]
    fn what_makes_no_difference_goes_on() {
        for path in [
            "/",
            "*",
            "/v1/predictions",
            "/v1/predictions/p%3A1",
            "/v1/predictions/p%2F1",
            "/v1/files/a%20b",
            "/v1/files//a/../b",
            "/v1/files/%41",
            "/v1/files/100%",
            "/v1/files/%zz%é",
        ] {
            assert!(!refused(&Method::GET, path), "{path}");
        }
        assert!(!refused(&Method::POST, "/v1/./predictions/p1"), "nothing is done by POST to a job");
    }

    proptest! {
        #[test]
        fn the_plain_path_is_plain(path in "/[/.%2eEfFp7é]{0,16}") {
            let once = plain(&path).into_owned();
            prop_assert!(once.starts_with('/') && !once.contains("//"));
            prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
        }

        #[test]
        fn encoding_letters_and_adding_segments_hides_nothing(cuts in prop::collection::vec(0_usize..14, 1..4), kind in 0..3) {
            let path = "/v1/predictions";
            let odd: String = path.char_indices().map(|(at, char)| match (cuts.contains(&at), char, kind) {
                (true, '/', 0) => "//".to_owned(),
                (true, '/', 1) => "/./".to_owned(),
                (true, '/', _) => "/x/%2e%2e/".to_owned(),
                (true, char, _) => format!("%{:02x}", u32::from(char)),
                (false, char, _) => char.to_string(),
            }).collect();
            prop_assert!(refused(&Method::POST, &odd), "{}", odd);
        }
    }
}
