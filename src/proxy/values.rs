//! Header values of our own answers, written one after another into one piece of memory, which a thread uses again when they are gone.
//! Formatting machinery costs more here than the rest of an answer (measured: 8,000 instructions of 63,000 a request).

use std::cell::Cell;
use std::mem;
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderValue;

/// Enough for the values of a few answers. A value that lives on, such as a request's id, keeps all of it.
const CAPACITY_BYTES: usize = 1024;

thread_local! {
    /// What is left of the piece in use.
    static PIECE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// Writes values; each ends with `take`.
pub(crate) struct Values(BytesMut);

impl Drop for Values {
    fn drop(&mut self) {
        PIECE.set(mem::take(&mut self.0));
    }
}

impl Values {
    /// Within another's life it writes into a piece of its own.
    pub(crate) fn new() -> Self {
        Self(PIECE.take())
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        if self.0.capacity() - self.0.len() < bytes.len() {
            self.0.reserve(bytes.len().max(CAPACITY_BYTES));
        }
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn number(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.text(itoa::Buffer::new().format(number))
    }

    /// Milliseconds with one decimal, the unit of `Server-Timing`.
    pub(crate) fn millis(&mut self, duration: Duration) -> &mut Self {
        // In 64 bits, which hold half a million years of microseconds.
        let micros = duration.as_secs().saturating_mul(1_000_000).saturating_add(duration.subsec_micros().into());
        let tenths = micros.saturating_add(50) / 100;
        self.number(tenths / 10).text(".").number(tenths % 10)
    }

    /// What was written since the last value. Bytes that no header may carry make it empty.
    pub(crate) fn take(&mut self) -> HeaderValue {
        HeaderValue::from_maybe_shared(self.0.split().freeze()).unwrap_or(HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_each_other() {
        let mut values = Values::new();
        assert_eq!(values.text("q=").number(60_u32).take(), "q=60");
        for (micros, text) in [(0, "0.0"), (49, "0.0"), (50, "0.1"), (12_000, "12.0"), (1_234_567, "1234.6")] {
            assert_eq!(values.millis(Duration::from_micros(micros)).take(), text);
        }
        assert_eq!(values.text("a\nb").take(), "");
        assert_eq!(values.text(&"x".repeat(1_000)).take().len(), 1_000);
    }
}
