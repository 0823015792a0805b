//! One request head (RFC 9112 §3, §5, §6): its grammar, its size, and how long its body is.
//!
//! The first byte that is wrong decides, so that a head cut anywhere is judged as the whole one is. A line that is not whole is looked at
//! again from its beginning.

use std::net::Ipv6Addr;

use crate::proxy::guard::{MAX_HEAD_BYTES, MAX_TARGET_BYTES};
use crate::proxy::rejection::Rejection;

use super::class::{is_host, is_path, is_query, is_token, run, value_end};

/// Fields of one head; hyper has room for as many without allocating.
pub(crate) const MAX_FIELDS: u32 = 100;
/// Longest method, in bytes.
const MAX_METHOD_BYTES: usize = 32;

/// How the end of the body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// What is known of a head from the lines seen so far.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the first line not yet seen whole begins.
    at: usize,
    /// Where the fields begin; 0 before the request line has been seen.
    fields_at: usize,
    fields: u32,
    old: bool,
    hosts: u32,
    length: Option<u64>,
    coding: Option<Coding>,
}

/// What `Transfer-Encoding` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// `chunked` comes last, after one that we do not understand.
    UnknownThenChunked,
    /// The last is not `chunked`.
    Open,
    Malformed,
}

fn bad<T>(why: &'static str) -> Result<T, Rejection> {
    Err(Rejection::BadRequest(why))
}

impl Head {
    /// Nothing of it has been seen.
    pub(super) fn is_new(&self) -> bool {
        self.fields_at == 0
    }

    /// Looks at a head from its beginning; earlier calls saw a shorter piece of it. Its length once it is whole.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<Option<(usize, Framing)>, Rejection> {
        if self.fields_at == 0 {
            let Some(end) = self.request_line(bytes)? else { return Ok(None) };
            (self.at, self.fields_at) = (end, end);
        }
        // No further than the limit, so that a longer piece is not judged by what lies beyond.
        let limit = self.fields_at + MAX_HEAD_BYTES;
        let within = &bytes[..bytes.len().min(limit)];
        loop {
            match within.get(self.at..) {
                Some([b'\r', b'\n', ..]) => return Ok(Some((self.at + 2, self.framing()?))),
                Some([b'\r']) | None => break,
                Some(_) => {}
            }
            let Some(next) = self.field(within)? else { break };
            self.at = next;
        }
        if bytes.len() >= limit { Err(Rejection::HeadTooLarge { limit_bytes: MAX_HEAD_BYTES }) } else { Ok(None) }
    }

    /// The index after the request line, once it is whole.
    fn request_line(&mut self, bytes: &[u8]) -> Result<Option<usize>, Rejection> {
        let within = &bytes[..bytes.len().min(MAX_METHOD_BYTES + 1)];
        let method = run(within, 0, is_token);
        if method > MAX_METHOD_BYTES {
            return bad("the method is too long");
        }
        match within.get(method) {
            Some(b' ') if method > 0 => {}
            None => return Ok(None),
            Some(_) => return bad("the request line does not begin with a method"),
        }
        let start = method + 1;
        let within = &bytes[..bytes.len().min(start + MAX_TARGET_BYTES + 1)];
        let mut end = run(within, start, |byte| is_path(byte) && byte != b'?');
        if within.get(end) == Some(&b'?') {
            end = run(within, end, is_query);
        }
        match within.get(end) {
            Some(b' ') => {}
            None if end - start > MAX_TARGET_BYTES => {
                return Err(Rejection::TargetTooLong { limit_bytes: MAX_TARGET_BYTES });
            }
            None => return Ok(None),
            Some(_) => return bad("the request target has a character that is not allowed there"),
        }
        check_target(&bytes[..method], &bytes[start..end])?;
        self.version(&bytes[end + 1..]).map(|length| length.map(|length| end + 1 + length))
    }

    /// The length of `HTTP/1.1` and the line's end, once it is whole.
    fn version(&mut self, bytes: &[u8]) -> Result<Option<usize>, Rejection> {
        const NEW: &[u8; 10] = b"HTTP/1.1\r\n";
        const OLD: &[u8; 10] = b"HTTP/1.0\r\n";
        let here = &bytes[..bytes.len().min(NEW.len())];
        if !NEW.starts_with(here) && !OLD.starts_with(here) {
            return bad("the request line does not end with HTTP/1.1 or HTTP/1.0");
        }
        self.old = here.get(7) == Some(&b'0');
        Ok((here.len() == NEW.len()).then_some(NEW.len()))
    }

    /// Looks at the field line that begins at `self.at`; the index after it, once it is whole.
    fn field(&mut self, bytes: &[u8]) -> Result<Option<usize>, Rejection> {
        let name_end = run(bytes, self.at, is_token);
        match bytes.get(name_end) {
            Some(b':') if name_end > self.at => {}
            None => return Ok(None),
            Some(b' ' | b'\t') if name_end == self.at => {
                return bad("a field line is folded, or white space precedes it");
            }
            Some(_) => return bad("a field line does not begin with a name and a colon"),
        }
        let end = value_end(bytes, name_end + 1);
        match bytes.get(end..) {
            Some([b'\r', b'\n', ..]) => {}
            Some([] | [b'\r']) | None => return Ok(None),
            Some(_) => return bad("a field's value has a control character, or its line does not end with CR LF"),
        }
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Rejection::TooManyFields { limit_fields: MAX_FIELDS });
        }
        let name = &bytes[self.at..name_end];
        if matches!(name.len(), 4 | 14 | 17) {
            self.matters(name, bytes[name_end + 1..end].trim_ascii())?;
        }
        Ok(Some(end + 2))
    }

    /// Fields that say whom a request is for and where it ends.
    fn matters(&mut self, name: &[u8], value: &[u8]) -> Result<(), Rejection> {
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            if self.hosts > 1 {
                return bad("more than one Host field");
            }
            if !is_authority(value) {
                return bad("the Host field is not a host and a port");
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // RFC 9112 §6.3: a list of equal lengths could be taken for one. It is as easily a sign of smuggling.
            if self.length.is_some() {
                return bad("more than one Content-Length field");
            }
            self.length = Some(length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.coding = Some(Coding::then(self.coding, value));
        }
        Ok(())
    }

    fn framing(&self) -> Result<Framing, Rejection> {
        if self.hosts == 0 && !self.old {
            return bad("no Host field");
        }
        match (self.coding, self.length) {
            (None, None) => Ok(Framing::None),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (Some(_), Some(_)) => bad("both Content-Length and Transfer-Encoding"),
            (Some(_), None) if self.old => bad("Transfer-Encoding in HTTP/1.0"),
            (Some(Coding::Chunked), None) => Ok(Framing::Chunked),
            (Some(Coding::UnknownThenChunked), None) => Err(Rejection::BadTransferCoding),
            (Some(Coding::Open), None) => bad("the last transfer coding is not chunked"),
            (Some(Coding::Malformed), None) => bad("Transfer-Encoding is malformed, or lists chunked twice"),
        }
    }
}

impl Coding {
    /// After one more field.
    fn then(before: Option<Self>, value: &[u8]) -> Self {
        value
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .fold(before, |before, coding| {
                Some(match before {
                    Some(Self::Malformed | Self::Chunked | Self::UnknownThenChunked) => Self::Malformed,
                    _ if coding.is_empty() || !coding.iter().all(|byte| is_token(*byte)) => Self::Malformed,
                    _ if !coding.eq_ignore_ascii_case(b"chunked") => Self::Open,
                    Some(Self::Open) => Self::UnknownThenChunked,
                    None => Self::Chunked,
                })
            })
            .unwrap_or(Self::Malformed)
    }
}

/// RFC 9112 §3.2: origin-form, absolute-form with a host, or `*` for OPTIONS. CONNECT is refused whatever its target.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Rejection> {
    if method == b"CONNECT" {
        return Err(Rejection::MethodRefused("CONNECT"));
    }
    match target {
        [b'/', ..] => return Ok(()),
        [b'*'] if method == b"OPTIONS" => return Ok(()),
        _ => {}
    }
    let scheme = target.iter().position(|byte| *byte == b':').unwrap_or_default();
    let rest = target[scheme..]
        .strip_prefix(b"://")
        .filter(|_| target[..scheme].eq_ignore_ascii_case(b"http") || target[..scheme].eq_ignore_ascii_case(b"https"));
    let authority = rest.and_then(|rest| rest.split(|byte| matches!(byte, b'/' | b'?')).next());
    if authority.is_some_and(is_authority) { Ok(()) } else { bad("the request target is neither a path nor a URL") }
}

/// RFC 9110 §4.2.1, §7.2: a host that is not empty, without user information, and perhaps a port.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = if text.first() == Some(&b'[') {
        let Some(end) = text.iter().position(|byte| *byte == b']') else { return false };
        let address = std::str::from_utf8(&text[1..end]).ok();
        if address.and_then(|address| address.parse::<Ipv6Addr>().ok()).is_none() {
            return false;
        }
        (&text[..=end], &text[end + 1..])
    } else {
        let end = run(text, 0, is_host);
        text.split_at(end)
    };
    match port {
        _ if host.is_empty() => false,
        [] | [b':'] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// RFC 9112 §6.2: digits, nothing else.
fn length(value: &[u8]) -> Result<u64, Rejection> {
    let digits = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|digits| digits.parse::<i64>().ok());
    match length.map(u64::try_from) {
        Some(Ok(length)) => Ok(length),
        _ => bad("Content-Length is not a number, or too large for one"),
    }
}
