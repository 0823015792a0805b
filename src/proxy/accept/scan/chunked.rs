//! The chunked transfer coding (RFC 9112 §7.1), without the liberties: no space around a size, no bare LF, few extensions and trailers.

use super::class::is_token;

/// All extensions of one body together, in bytes. They are dropped.
const MAX_EXTENSION_BYTES: u32 = 4 * 1024;
/// All trailers of one body together, in bytes. They are dropped.
const MAX_TRAILER_BYTES: u32 = 8 * 1024;
/// More hexadecimal digits than these are no size.
const MAX_DIGITS: u8 = 15;

/// Where a chunked body is.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    /// Of the chunk.
    left: u64,
    digits: u8,
    extension_bytes: u32,
    trailer_bytes: u32,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Size,
    /// After the semicolon.
    ExtensionName,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// What a call has found.
pub(super) enum Progress {
    /// It ended after so many bytes.
    Whole(usize),
    More,
    /// The byte at this index is wrong.
    Bad(usize),
}

impl Chunked {
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Progress {
        let mut at = 0;
        while at < bytes.len() {
            if let State::Data = self.state {
                let here = usize::try_from(self.left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                self.left -= here as u64;
                at += here;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            let byte = bytes[at];
            if let (State::EndLf, b'\n') = (self.state, byte) {
                return Progress::Whole(at + 1);
            }
            match self.step(byte) {
                Some(state) => self.state = state,
                None => return Progress::Bad(at),
            }
            at += 1;
        }
        Progress::More
    }

    fn step(&mut self, byte: u8) -> Option<State> {
        match (self.state, byte) {
            (State::Size, b'\r') if self.digits > 0 => Some(State::SizeLf),
            (State::Size, b';') if self.digits > 0 => self.extension(State::ExtensionName),
            (State::Size, _) => {
                let digit = char::from(byte).to_digit(16).filter(|_| self.digits < MAX_DIGITS)?;
                self.left = self.left << 4 | u64::from(digit);
                self.digits += 1;
                Some(State::Size)
            }
            (State::ExtensionName, _) if is_token(byte) => self.extension(State::Extension),
            (State::Extension, b'\r') => Some(State::SizeLf),
            (State::Extension, _) if is_text(byte) => self.extension(State::Extension),
            (State::SizeLf, b'\n') if self.left == 0 => Some(State::TrailerStart),
            (State::SizeLf, b'\n') => Some(State::Data),
            (State::DataCr, b'\r') => Some(State::DataLf),
            (State::DataLf, b'\n') => {
                self.digits = 0;
                Some(State::Size)
            }
            (State::TrailerStart, b'\r') => Some(State::EndLf),
            (State::TrailerName, b':') => self.trailer(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => self.trailer(State::TrailerName),
            (State::TrailerValue, b'\r') => Some(State::TrailerLf),
            (State::TrailerValue, _) if is_text(byte) => self.trailer(State::TrailerValue),
            (State::TrailerLf, b'\n') => self.trailer(State::TrailerStart),
            _ => None,
        }
    }

    fn extension(&mut self, next: State) -> Option<State> {
        self.extension_bytes += 1;
        (self.extension_bytes <= MAX_EXTENSION_BYTES).then_some(next)
    }

    fn trailer(&mut self, next: State) -> Option<State> {
        self.trailer_bytes += 1;
        (self.trailer_bytes <= MAX_TRAILER_BYTES).then_some(next)
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}
