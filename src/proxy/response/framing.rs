//! Whether it is certain where an upstream's answer ends. Where it is not, nothing of it is passed on and its connection is closed: what
//! one side takes for a body, another may take for the next answer.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode, response};

/// Refuses an answer that says two things about its length, or that asks for what we did not offer. Several equal lengths become one
/// (RFC 9110 §8.6).
pub(crate) fn check(head: &mut response::Parts) -> Result<(), &'static str> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switches protocols, which nobody asked for");
    }
    let length = length(&head.headers)?;
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        // RFC 9112 §6.3: "might indicate an attempt to perform request smuggling or response splitting".
        (Some(_), _) if length.is_some() => return Err("it has a length and a transfer coding"),
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {}
        _ => return Err("it has another transfer coding than chunked"),
    }
    if let Some((length, plain)) = length
        && !plain
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

/// The declared length, and whether it is said once and as we would say it.
fn length(headers: &HeaderMap) -> Result<Option<(u64, bool)>, &'static str> {
    let mut length: Option<(u64, bool)> = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for one in value.as_bytes().split(|byte| *byte == b',') {
            let digits = one.trim_ascii();
            let plain = digits.len() == value.len() && (digits.len() == 1 || !digits.starts_with(b"0"));
            let one = parse(digits).ok_or("its length is no number")?;
            length = match length {
                None => Some((one, plain)),
                Some((before, _)) if before == one => Some((one, false)),
                Some(_) => return Err("it has two lengths"),
            };
        }
    }
    Ok(length)
}

fn parse(digits: &[u8]) -> Option<u64> {
    let all_digits = digits.iter().all(u8::is_ascii_digit); // `parse` alone takes a sign
    std::str::from_utf8(digits).ok().filter(|_| all_digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Response};
    use proptest::prelude::*;

    use super::*;

    fn checked(status: u16, fields: &[(&'static str, &'static str)]) -> Result<Vec<String>, &'static str> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(HeaderName::from_static(name), *value);
        }
        let (mut head, ()) = response.body(()).expect("a response").into_parts();
        check(&mut head)?;
        let lengths = head.headers.get_all(CONTENT_LENGTH).iter();
        Ok(lengths.map(|value| value.to_str().expect("digits").to_owned()).collect())
    }

    #[test]
    fn an_answer_has_one_length_or_is_chunked_or_neither() {
        assert_eq!(checked(200, &[("content-length", "5")]), Ok(vec!["5".into()]));
        assert_eq!(checked(200, &[("content-length", "5"), ("content-length", "5")]), Ok(vec!["5".into()]));
        assert_eq!(checked(200, &[("content-length", "5, 5")]), Ok(vec!["5".into()]));
        assert_eq!(checked(200, &[("transfer-encoding", "Chunked")]), Ok(vec![]));
        assert_eq!(checked(200, &[]), Ok(vec![]));
    }

    #[test]
    fn doubt_about_the_end_is_refused() {
        for fields in [
            &[("content-length", "5"), ("content-length", "6")][..],
            &[("content-length", "5, 6")],
            &[("content-length", "+5")],
            &[("content-length", "")],
            &[("content-length", "5,")],
            &[("content-length", "0x5")],
            &[("content-length", "99999999999999999999")],
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "gzip")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert!(checked(200, fields).is_err(), "{fields:?}");
        }
        assert!(checked(101, &[("upgrade", "websocket"), ("connection", "upgrade")]).is_err());
    }

    proptest! {
        #[test]
        fn lengths_are_numbers_or_refused(value in "[ -~]{0,24}") {
            let mut headers = HeaderMap::new();
            headers.append(CONTENT_LENGTH, HeaderValue::try_from(value.as_str()).expect("visible"));
            if let Ok(Some((length, plain))) = length(&headers) {
                let all = value.split(',').all(|one| one.trim_start_matches([' ', '0']).trim() == length.to_string() || (length == 0 && !one.trim().is_empty()));
                prop_assert!(all, "{value} is not {length}");
                prop_assert_eq!(plain, value == length.to_string());
            }
        }
    }
}
