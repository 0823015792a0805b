//! What a request takes while it waits for its turn: a few hundred bytes of its own.
//!
//! hyper's heads and the bodies that come with them are slices of the buffer they were read into, and keep all 8 KiB of it. A map of
//! fields takes a kilobyte.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, request};

use crate::proxy::body::Held;

/// Bodies up to this size may lie in the buffer of their head.
const SHORT_BYTES: usize = 8 * 1024;
/// Between a name and a value that is secret, in place of the colon. Neither byte can be in a name.
const SECRET: u8 = b'=';

/// The fields of a head that waits, as text.
pub(super) struct Packed(Bytes);

impl Packed {
    /// Takes the fields out of `head`. What is left of it, and of `body`, is then in no buffer of others.
    pub(super) fn take(head: &mut request::Parts, body: &mut Held) -> Self {
        let packed = Self::of(&std::mem::take(&mut head.headers));
        if let Ok(own) = head.uri.to_string().parse() {
            head.uri = own;
        }
        if let Some(bytes) = body.front_mut().filter(|bytes| bytes.len() <= SHORT_BYTES) {
            *bytes = Bytes::copy_from_slice(bytes);
        }
        packed
    }

    /// Puts them back.
    pub(super) fn give_back(self, head: &mut request::Parts) {
        head.headers = self.fields();
    }

    fn of(fields: &HeaderMap) -> Self {
        let mut text =
            Vec::with_capacity(fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 2).sum());
        for (name, value) in fields {
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(if value.is_sensitive() { SECRET } else { b':' });
            text.extend_from_slice(value.as_bytes());
            // Which no value has in it (RFC 9110 §5.5).
            text.push(b'\n');
        }
        Self(text.into())
    }

    fn fields(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for line in self.0.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let colon = line.iter().position(|byte| matches!(*byte, b':' | SECRET)).expect("each line has one");
            let name = HeaderName::from_bytes(&line[..colon]).expect("it was a name");
            let value = self.0.slice_ref(&line[colon + 1..]);
            let mut value = HeaderValue::from_maybe_shared(value).expect("it was a value");
            value.set_sensitive(line[colon] == SECRET);
            fields.append(name, value);
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Uri};
    use proptest::prelude::*;

    use crate::proxy::body::Place;
    use crate::proxy::finish::Record;

    use super::*;

    proptest! {
        #[test]
        fn fields_come_back_as_they_were(
            fields in prop::collection::vec(
                ("[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,20}", "[\\t -~\u{80}-\u{ff}]{0,30}", any::<bool>()),
                0..12,
            )
        ) {
            let mut map = HeaderMap::new();
            for (name, value, secret) in &fields {
                let mut value = HeaderValue::from_str(value).or_else(|_| HeaderValue::from_bytes(value.as_bytes())).unwrap();
                value.set_sensitive(*secret);
                map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
            let back = Packed::of(&map).fields();
            let secrets = |map: &HeaderMap| map.values().map(HeaderValue::is_sensitive).collect::<Vec<_>>();
            prop_assert_eq!(&back, &map);
            prop_assert_eq!(back.keys().collect::<Vec<_>>(), map.keys().collect::<Vec<_>>());
            prop_assert_eq!(secrets(&back), secrets(&map));
        }
    }

    #[test]
    fn a_waiter_keeps_nothing_of_the_buffer_it_was_read_into() {
        let buffer = Bytes::from(b"/v1/predictions?x=1 some-value {}".to_vec());
        let value = || HeaderValue::from_maybe_shared(buffer.slice(20..30)).unwrap();
        let uri = Uri::from_maybe_shared(buffer.slice(..19)).unwrap();
        let request = Request::builder().uri(uri.clone()).header("some", value()).body(()).unwrap();
        let (mut head, ()) = request.into_parts();
        let mut body = Held::Whole(buffer.slice(31..), Place::default());
        let mut record = Record::new(value(), Method::GET, uri);
        record.origin = Some(value());

        let packed = Packed::take(&mut head, &mut body);
        record.detach();
        assert!(buffer.is_unique());
        packed.give_back(&mut head);
        assert_eq!((head.uri.to_string(), body.bytes()), ("/v1/predictions?x=1".to_owned(), &b"{}"[..]));
        assert_eq!((&head.headers["some"], &record.request_id, record.origin), (&value(), &value(), Some(value())));
    }
}
