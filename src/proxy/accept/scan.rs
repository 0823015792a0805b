//! Follows the messages of an HTTP/1 connection byte by byte, more strictly than hyper parses them: what is passed has one meaning only.
//!
//! It does no I/O and knows no time. Whatever way the bytes are split over calls, the verdict is the same.

use crate::proxy::rejection::Rejection;

use self::chunked::{Chunked, Progress};
use self::head::{Framing, Head};

/// Classes of bytes.
mod class;

/// Request line and fields.
mod head;

/// The chunked transfer coding.
mod chunked;

/// Where a connection is.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    /// Heads passed so far.
    heads: u64,
    /// The last of them, unless it was long, and how its body's end is found. Whoever polls sends the same again and again.
    last: Vec<u8>,
    then: Framing,
}

/// Heads up to this size are compared with the next one.
const COMPARED_BYTES: usize = 512;

#[derive(Debug)]
enum State {
    /// In front of a head or in it. `blank`: the empty line that may stand before it has been passed.
    Head {
        head: Head,
        blank: bool,
    },
    /// So much of a body is left.
    Length(u64),
    Chunked(Chunked),
}

/// What the scanner says of some bytes: so many may be passed on, and then?
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) passed: usize,
    pub(crate) then: Then,
}

/// What comes after the bytes that may be passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing: these were all.
    More,
    /// A head that is not whole. The next call must begin with it.
    Part,
    /// A head that must not be passed on.
    BadHead(Rejection),
    /// A body that is not what its head said.
    BadBody,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::next(), heads: 0, last: Vec::new(), then: Framing::None }
    }
}

impl Scanner {
    /// Heads passed so far.
    pub(crate) fn heads(&self) -> u64 {
        self.heads
    }

    /// Between two messages.
    pub(crate) fn between(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Looks at the next bytes. After a bad head or body it must not be called again.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Seen {
        let mut passed = 0;
        loop {
            let rest = &bytes[passed..];
            if rest.is_empty() {
                return Seen { passed, then: Then::More };
            }
            match &mut self.state {
                State::Head { head, blank } => {
                    if rest[0] == b'\r' && !*blank {
                        // RFC 9112 §2.2: an empty line before a request line is ignored. One is enough.
                        match rest.get(1) {
                            None => return Seen { passed, then: Then::Part },
                            Some(b'\n') => {
                                *blank = true;
                                passed += 2;
                                continue;
                            }
                            Some(_) => {}
                        }
                    }
                    let again = head.is_new() && !self.last.is_empty() && rest.starts_with(&self.last);
                    let seen = if again { Ok(Some((self.last.len(), self.then))) } else { head.scan(rest) };
                    match seen {
                        Ok(Some((length, framing))) => {
                            passed += length;
                            self.heads += 1;
                            if !again {
                                self.last.clear();
                                self.last.extend_from_slice(if length > COMPARED_BYTES {
                                    &[]
                                } else {
                                    &rest[..length]
                                });
                                self.then = framing;
                            }
                            self.state = match framing {
                                Framing::None | Framing::Length(0) => State::next(),
                                Framing::Length(length) => State::Length(length),
                                Framing::Chunked => State::Chunked(Chunked::default()),
                            };
                        }
                        Ok(None) => return Seen { passed, then: Then::Part },
                        Err(rejection) => return Seen { passed, then: Then::BadHead(rejection) },
                    }
                }
                State::Length(left) => {
                    let here = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    *left -= here as u64;
                    passed += here;
                    if *left == 0 {
                        self.state = State::next();
                    }
                }
                State::Chunked(chunked) => match chunked.feed(rest) {
                    Progress::Whole(length) => {
                        passed += length;
                        self.state = State::next();
                    }
                    Progress::More => return Seen { passed: bytes.len(), then: Then::More },
                    Progress::Bad(at) => return Seen { passed: passed + at, then: Then::BadBody },
                },
            }
        }
    }
}

impl State {
    fn next() -> Self {
        Self::Head { head: Head::default(), blank: false }
    }
}

#[cfg(test)]
mod tests;
