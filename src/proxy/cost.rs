//! What a request costs: the price of its model, and for LLM calls the tokens that it may take.

use http::{Method, request};

use crate::config::RouteAuth;
use crate::credits::Cost;

use super::App;
use super::body::Held;
use super::classify::Call;
use super::parts::model_of;
use super::rules::members::members;
use super::rules::path_model;

/// Where requests say how long an answer may be; the last for Gemini, inside `generationConfig`.
const MOST_TOKENS: [&str; 4] = ["max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens"];

impl App {
    /// Creates and LLM calls with the account's key cost what their model costs; `None`: nothing.
    pub(crate) fn cost(
        &self,
        call: &Call,
        whose: (usize, usize),
        head: &request::Parts,
        body: &Held,
        model: Option<&str>,
    ) -> Option<Box<Cost>> {
        let path = head.uri.path();
        // Counting tokens beforehand is free.
        let counts = path.ends_with("/count_tokens") || path.ends_with(":countTokens");
        let llm = call.family.is_llm() && head.method == Method::POST && !counts;
        if call.auth != RouteAuth::Account || !(llm || call.create.is_some()) || !self.credits.has_prices() {
            return None;
        }
        let (account, client) = whose;
        let tokens = || most_tokens(body.bytes());
        match (model, path_model(call.family, path)) {
            (Some(model), _) => self.credits.cost(account, client, Some(model), tokens),
            (None, Some(place)) => self.credits.cost(account, client, Some(&path[place]), tokens),
            (None, None) => self.credits.cost(account, client, model_of(body.bytes()).as_deref(), tokens),
        }
    }
}

fn most_tokens(body: &[u8]) -> Option<u64> {
    let of = |body: &[u8]| {
        let (_, place) = members(body)?.into_iter().rfind(|(key, _)| MOST_TOKENS.contains(&key.as_str()))?;
        str::from_utf8(&body[place]).ok()?.parse().ok()
    };
    of(body).or_else(|| {
        let (_, place) = members(body)?.into_iter().rfind(|(key, _)| key == "generationConfig")?;
        of(&body[place])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_how_many_tokens_they_may_take() {
        let most = |body: &str| most_tokens(body.as_bytes());
        assert_eq!(most(r#"{"messages":[],"max_tokens":12}"#), Some(12));
        assert_eq!(most(r#"{"max_completion_tokens":7}"#), Some(7));
        assert_eq!(most(r#"{"generationConfig":{"maxOutputTokens":5}}"#), Some(5));
        for none in [r#"{"max_tokens":null}"#, r#"{"max_tokens":-1}"#, "[]", "", "{}"] {
            assert_eq!(most(none), None, "{none}");
        }
    }
}
