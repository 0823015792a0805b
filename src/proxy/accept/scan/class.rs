//! Classes of bytes (RFC 9110 §5.6.2, RFC 3986), and the search for control characters, eight bytes at a time.

/// A letter of a token.
const TOKEN: u8 = 1;
/// May stand in a path.
const PATH: u8 = 2;
/// May stand in a query.
const QUERY: u8 = 4;
/// May stand in the name of a host.
const HOST: u8 = 8;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0x21_u8;
    while byte < 0x7f {
        let mut class = 0;
        let alphanumeric = byte.is_ascii_alphanumeric();
        if alphanumeric || is_one_of(byte, b"!#$%&'*+-.^_`|~") {
            class |= TOKEN;
        }
        // Wider than RFC 3986 by what browsers leave as it is, which is no one's delimiter; but no fragment.
        if !is_one_of(byte, b"#\"<>") {
            class |= QUERY;
            if !is_one_of(byte, b"\\`") {
                class |= PATH;
            }
        }
        if alphanumeric || is_one_of(byte, b"-._~!$&'()*+,;=") {
            class |= HOST;
        }
        table[byte as usize] = class;
        byte += 1;
    }
    table
}

const fn is_one_of(byte: u8, set: &[u8]) -> bool {
    let mut at = 0;
    while at < set.len() {
        if set[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

pub(super) fn is_token(byte: u8) -> bool {
    CLASSES[byte as usize] & TOKEN != 0
}

pub(super) fn is_path(byte: u8) -> bool {
    CLASSES[byte as usize] & PATH != 0
}

pub(super) fn is_query(byte: u8) -> bool {
    CLASSES[byte as usize] & QUERY != 0
}

pub(super) fn is_host(byte: u8) -> bool {
    CLASSES[byte as usize] & HOST != 0
}

/// How many bytes from `from` on are of this class: the index of the first that is not, or the end.
pub(super) fn run(bytes: &[u8], from: usize, class: impl Fn(u8) -> bool) -> usize {
    bytes[from..].iter().position(|byte| !class(*byte)).map_or(bytes.len(), |at| from + at)
}

/// The index of the first byte from `from` on that may not stand in a field's value (RFC 9110 §5.5: controls but HTAB), or the end.
pub(super) fn value_end(bytes: &[u8], mut from: usize) -> usize {
    loop {
        from = control(bytes, from);
        if bytes.get(from) != Some(&b'\t') {
            return from;
        }
        from += 1;
    }
}

/// The first control character.
fn control(bytes: &[u8], from: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let mut at = from;
    let (words, tail) = bytes[from..].as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let low = word.wrapping_sub(ONES * 0x20) & !word;
        let delete = word ^ (ONES * 0x7f);
        // Above the first hit a borrow may make false ones; the first is exact.
        let hits = (low | (delete.wrapping_sub(ONES) & !delete)) & HIGHS;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    tail.iter().position(u8::is_ascii_control).map_or(bytes.len(), |tail| at + tail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_control_is_found(bytes in prop::collection::vec(prop_oneof![4 => 0x20_u8..=0xff, 1 => any::<u8>()], 0..40)) {
            let plain = bytes.iter().position(|byte| byte.is_ascii_control() && *byte != b'\t').unwrap_or(bytes.len());
            prop_assert_eq!(value_end(&bytes, 0), plain);
        }
    }
}
