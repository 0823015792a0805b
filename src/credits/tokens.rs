//! How many tokens an answer says that it took, in the styles of `OpenAI`, Anthropic and Gemini: from a whole JSON body, or from the two ends
//! of one that streams past.

use http::{HeaderMap, header};
use serde_json::Value;

/// Kept of the beginning and of the end of an answer. Usage stands there: Anthropic's input at the begin, everything else at the end.
const END_BYTES: usize = 16 * 1024;

/// What one usage object says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    total: Option<u64>,
    input: Option<u64>,
    output: Option<u64>,
}

impl Usage {
    fn of(object: &Value) -> Self {
        let number = |names: [&str; 3]| names.iter().find_map(|name| object.get(*name)?.as_u64());
        Self {
            total: number(["total_tokens", "totalTokenCount", "totalTokens"]),
            input: number(["input_tokens", "prompt_tokens", "promptTokenCount"]),
            output: number(["output_tokens", "completion_tokens", "candidatesTokenCount"]),
        }
    }

    /// From an answer or an event; `OpenAI`'s events of responses and Anthropic's first one have it one level below.
    fn find(value: &Value) -> Option<Self> {
        let value = value.as_array().and_then(|list| list.last()).unwrap_or(value);
        let places = [Some(value), value.get("message"), value.get("response")];
        let objects =
            places.into_iter().flatten().filter_map(|place| place.get("usage").or(place.get("usageMetadata")));
        objects.filter(|object| object.is_object()).map(Self::of).next()
    }

    /// What is said later counts.
    fn then(self, later: Self) -> Self {
        Self {
            total: later.total.or(self.total),
            input: later.input.or(self.input),
            output: later.output.or(self.output),
        }
    }

    fn tokens(self) -> Option<u64> {
        self.total.or_else(|| match (self.input, self.output) {
            (None, None) => None,
            (input, output) => Some(input.unwrap_or_default().saturating_add(output.unwrap_or_default())),
        })
    }
}

/// Of a JSON answer that is here whole.
pub(crate) fn of_answer(body: &[u8]) -> Option<u64> {
    Usage::find(&serde_json::from_slice(body).ok()?)?.tokens()
}

/// Reads along while an answer is passed on.
#[derive(Debug)]
pub(crate) struct Reader {
    readable: bool,
    events: bool,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Something between the two was let go.
    cut: bool,
}

impl Reader {
    pub(crate) fn new(headers: &HeaderMap) -> Self {
        let is = |name, word: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.trim().starts_with(word))
        };
        let readable = !headers.contains_key(header::CONTENT_ENCODING) || is(header::CONTENT_ENCODING, "identity");
        let events = is(header::CONTENT_TYPE, "text/event-stream");
        Self { readable, events, head: Vec::new(), tail: Vec::new(), cut: false }
    }

    /// It is compressed: nothing can be read.
    pub(crate) fn is_blind(&self) -> bool {
        !self.readable
    }

    pub(crate) fn feed(&mut self, data: &[u8]) {
        if !self.readable {
            return;
        }
        let (head, rest) = data.split_at(data.len().min(END_BYTES - self.head.len()));
        self.head.extend_from_slice(head);
        let kept = &rest[rest.len().saturating_sub(END_BYTES)..];
        self.cut |= kept.len() < rest.len();
        self.tail.extend_from_slice(kept);
        if self.tail.len() > 2 * END_BYTES {
            self.tail.drain(..self.tail.len() - END_BYTES);
            self.cut = true;
        }
    }

    /// What the answer said, as far as it has come.
    pub(crate) fn tokens(&self) -> Option<u64> {
        let between: &[u8] = if self.cut { b"\n" } else { b"" };
        let text = [&self.head, between, &self.tail].concat();
        let found = if self.events {
            let data = text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
            let found = data.filter_map(|data| Usage::find(&serde_json::from_slice(data).ok()?));
            found.fold(Usage::default(), Usage::then)
        } else {
            serde_json::from_slice(&text).ok().as_ref().and_then(Usage::find).unwrap_or_default()
        };
        // A line or body longer than what is kept does not parse; its usage stands at its end.
        found.tokens().or_else(|| last_usage(&text)?.tokens())
    }
}

/// The last usage object in a text that is not whole. Inside of JSON strings quotes are escaped, so that none of theirs is found.
fn last_usage(text: &[u8]) -> Option<Usage> {
    let last = |name: &[u8]| text.windows(name.len()).rposition(|at| at == name).map(|at| at + name.len());
    let at = last(b"\"usage\"").max(last(b"\"usageMetadata\""))?;
    let object = text[at..].trim_ascii_start().strip_prefix(b":")?;
    let object = serde_json::Deserializer::from_slice(object).into_iter::<Value>().next()?.ok()?;
    object.is_object().then(|| Usage::of(&object))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(form: &'static str, text: &str, piece: usize) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
        let mut reader = Reader::new(&headers);
        text.as_bytes().chunks(piece).for_each(|piece| reader.feed(piece));
        assert!(reader.head.len() + reader.tail.len() <= 3 * END_BYTES);
        reader.tokens()
    }

    fn filler(bytes: usize) -> String {
        "x".repeat(bytes)
    }

    #[test]
    fn whole_answers_of_three_styles() {
        for (text, tokens) in [
            (r#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#, Some(7)),
            (r#"{"usage":{"input_tokens":3,"output_tokens":5},"stop":null}"#, Some(8)),
            (r#"[{"usageMetadata":{"totalTokenCount":1}},{"usageMetadata":{"totalTokenCount":9}}]"#, Some(9)),
            (r#"{"usage":null}"#, None),
            (r#"{"content":"\"usage\":{\"total_tokens\":5}"}"#, None),
            ("half {", None),
        ] {
            assert_eq!(of_answer(text.as_bytes()), tokens, "{text}");
            assert_eq!(read("application/json", text, 3), tokens, "{text}");
        }
    }

    #[test]
    fn long_answers_are_read_at_their_end() {
        let text = format!(r#"{{"choices":"{}","usage":{{"total_tokens":12}}}}"#, filler(200_000));
        assert_eq!(read("application/json", &text, 1_000), Some(12));
        assert_eq!(read("application/json", &text, 1_000_000), Some(12));
        let event =
            format!("data: {{\"candidates\":\"{}\",\"usageMetadata\":{{\"totalTokenCount\":8}}}}\n\n", filler(60_000));
        assert_eq!(read("text/event-stream", &event, 999), Some(8));
    }

    #[test]
    fn streams_say_it_in_their_last_events() {
        let openai = format!(
            "data: {{\"a\":\"{}\",\"usage\":null}}\n\ndata: {{\"usage\":{{\"total_tokens\":21}}}}\r\n\r\ndata: [DONE]\n\n",
            filler(40_000)
        );
        let anthropic = format!(
            "event: message_start\ndata: {{\"message\":{{\"usage\":{{\"input_tokens\":30,\"output_tokens\":1}}}}}}\n\n\
             event: x\ndata: \"{}\"\n\nevent: message_delta\ndata: {{\"usage\":{{\"output_tokens\":12}}}}\n\nevent: message_stop\ndata: {{}}\n\n",
            filler(100_000)
        );
        for piece in [1, 7, 16_384, 1 << 20] {
            assert_eq!(read("text/event-stream; charset=utf-8", &openai, piece), Some(21));
            assert_eq!(read("text/event-stream", &anthropic, piece), Some(42));
        }
        assert_eq!(read("text/event-stream", "data: {\"usage\":null}\n\ndata: [DONE]\n\n", 5), None);
    }

    #[test]
    fn compressed_answers_are_not_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut reader = Reader::new(&headers);
        reader.feed(br#"{"usage":{"total_tokens":7}}"#);
        assert!(reader.is_blind() && reader.tokens().is_none() && reader.head.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0_usize..400, events: bool) {
            let mut bytes = bytes;
            let at = at.min(bytes.len());
            bytes.splice(at..at, b"\"usage\": {\"total_tokens\":1}".iter().copied());
            let mut reader = Reader { readable: true, events, head: Vec::new(), tail: Vec::new(), cut: false };
            bytes.chunks(13).for_each(|piece| reader.feed(piece));
            reader.tokens();
        }
    }
}
