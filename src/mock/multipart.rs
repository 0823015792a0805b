//! A tolerant reader of multipart forms in bounded memory: small fields are kept, files only measured.

use std::collections::BTreeMap;

/// Longest field kept; the rest of a longer one is dropped.
const FIELD_BYTES: usize = 1024 * 1024;
/// Longest head of a part; a longer one ends the reading.
const HEAD_BYTES: usize = 16 * 1024;

/// A form, fed piece by piece.
pub(super) struct Multipart {
    /// What ends a part: line break, two dashes, boundary.
    delimiter: Vec<u8>,
    /// Bytes not understood yet: at most a part's head, or less than a delimiter.
    rest: Vec<u8>,
    state: State,
    fields: BTreeMap<String, Vec<u8>>,
    files: Vec<(String, u64)>,
}

enum State {
    /// Before the first delimiter.
    Preamble,
    /// In a part's head.
    Head,
    /// In the data of a field.
    Field(String),
    /// In the data of the last of the files.
    File,
    /// After the last delimiter, or nonsense.
    Done,
}

impl Multipart {
    /// `None`: the content type has no boundary.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        let (kind, parameters) = content_type.split_once(';')?;
        let boundary = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.trim().split_once('=')?;
            name.eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        })?;
        (kind.trim().eq_ignore_ascii_case("multipart/form-data") && !boundary.is_empty()).then(|| Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // The first delimiter has no line break before it, so one is put there.
            rest: b"\r\n".to_vec(),
            state: State::Preamble,
            fields: BTreeMap::new(),
            files: Vec::new(),
        })
    }

    /// The next piece of the body.
    pub(super) fn feed(&mut self, data: &[u8]) {
        self.rest.extend_from_slice(data);
        while self.step() {}
    }

    /// A field's bytes.
    pub(super) fn small(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(Vec::as_slice)
    }

    /// Keys and lengths of the files so far, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, bytes)| (name.as_str(), *bytes))
    }

    /// Understands a little more of the rest; false: more data is needed.
    fn step(&mut self) -> bool {
        match self.state {
            State::Done => {
                self.rest.clear();
                false
            }
            State::Head => self.head(),
            State::Preamble | State::Field(_) | State::File => self.data(),
        }
    }

    /// Reads a part's head, which starts right after a delimiter: `--` is the end of the form.
    fn head(&mut self) -> bool {
        if self.rest.starts_with(b"--") {
            self.state = State::Done;
            return true;
        }
        let Some(end) = find(&self.rest, b"\r\n\r\n") else {
            if self.rest.len() > HEAD_BYTES {
                self.state = State::Done;
            }
            return false;
        };
        let name = part_name(&String::from_utf8_lossy(&self.rest[..end]));
        self.state = match name.split_once(':') {
            Some(("file", key)) => {
                self.files.push((key.to_owned(), 0));
                State::File
            }
            _ => State::Field(name),
        };
        self.rest.drain(..end + 4);
        true
    }

    fn data(&mut self) -> bool {
        let end = find(&self.rest, &self.delimiter);
        // The beginning of a delimiter may be at the end of what is here.
        let known = end.unwrap_or_else(|| self.rest.len().saturating_sub(self.delimiter.len() - 1));
        match &self.state {
            State::Field(name) => {
                let field = self.fields.entry(name.clone()).or_default();
                let room = FIELD_BYTES.saturating_sub(field.len()).min(known);
                field.extend_from_slice(&self.rest[..room]);
            }
            State::File => {
                if let Some((_, bytes)) = self.files.last_mut() {
                    *bytes += known as u64;
                }
            }
            _ => {}
        }
        self.rest.drain(..known + end.map_or(0, |_| self.delimiter.len()));
        if end.is_some() {
            self.state = State::Head;
        }
        end.is_some()
    }
}

/// The `name` of a part's `Content-Disposition`.
fn part_name(head: &str) -> String {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition"));
    let value = line.and_then(|line| line.split(';').find_map(|piece| piece.trim().strip_prefix("name=")));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let first = *what.first()?;
    let mut from = 0;
    while let Some(at) = text.get(from..)?.iter().position(|&byte| byte == first) {
        if text[from + at..].starts_with(what) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nflux\r\n--XX\r\n\
        content-disposition: form-data; name=\"file:image\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n\
        \r\n--X\r\n\r\n12\r\n--XX\r\nContent-Disposition: form-data; name=\"input\"\r\n\r\n{}\r\n--XX--\r\n";

    #[test]
    fn a_form_is_read_whatever_the_pieces() {
        for size in [1, 2, 3, 7, 50, FORM.len()] {
            let mut form = Multipart::of("multipart/form-data; boundary=\"XX\"").expect("a boundary");
            FORM.chunks(size).for_each(|piece| form.feed(piece));
            assert_eq!(form.small("model"), Some(&b"flux"[..]), "pieces of {size}");
            assert_eq!(form.small("input"), Some(&b"{}"[..]), "pieces of {size}");
            assert_eq!(form.files().collect::<Vec<_>>(), [("image", 11)], "pieces of {size}");
            assert!(form.rest.len() < 8);
        }
    }

    #[test]
    fn other_bodies_are_no_forms() {
        assert!(Multipart::of("application/json").is_none());
        assert!(Multipart::of("multipart/form-data; boundary=").is_none());
    }
}
