//! What an environment may ask for: models replaced or refused, inputs capped. Each rule that was applied is told in the answer's head.
//!
//! Creates' JSON is rewritten where a rule asks for it, and only there: all other bytes stay as they came. Multipart creates and bodies
//! that are not held are looked at, not rewritten.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, header, request};

use crate::config::{Models, RouteAuth, Rules};
use crate::protocol::{Create, Family};

use super::App;
use super::body::Held;
use super::classify::Call;
use super::rejection::Rejection;

use self::members::{members, string};

/// The members of a JSON object, with their places.
pub(crate) mod members;

const SUBSTITUTED: HeaderName = HeaderName::from_static("sluicegate-substituted");
const CAPPED: HeaderName = HeaderName::from_static("sluicegate-capped");
/// Fields that describe the bytes of a body, and lie once they are changed.
const OF_THE_BYTES: [HeaderName; 5] = [
    header::CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// A rule that was applied, as a header of the answer.
pub(crate) type Applied = (HeaderName, HeaderValue);

impl App {
    /// Applies the account's rules and finds out which model is asked for. Refuses what may not be sent.
    pub(crate) fn apply_rules(
        &self,
        call: &Call,
        account: usize,
        head: &mut request::Parts,
        body: &mut Held,
        model: &mut Option<String>,
    ) -> Result<Box<[Applied]>, Rejection> {
        let rules = &self.accounts[account].rules;
        let llm = call.family.is_llm() && head.method == Method::POST;
        if call.auth != RouteAuth::Account || *rules == Rules::default() || !(llm || call.create.is_some()) {
            return Ok(Box::default());
        }
        let mut applied = Vec::new();
        if let Some(place) = path_model(call.family, head.uri.path()) {
            let asked = &head.uri.path()[place.clone()];
            if let Some(to) = rules.substitute_for(asked) {
                applied.push(told(SUBSTITUTED, asked, to));
                head.uri = with_model(&head.uri, place, to)?;
                *model = Some(to.to_owned());
            } else {
                *model = Some(asked.to_owned());
            }
        } else if matches!(body, Held::Whole(..)) && call.create != Some(Create::Multipart) {
            let changed = rules.change(body.bytes(), call.create.is_some());
            if let Some(bytes) = changed.body {
                if let Some(held) = body.whole_mut() {
                    *held = bytes;
                }
                for name in &OF_THE_BYTES {
                    head.headers.remove(name);
                }
            }
            (*model, applied) = (changed.model, changed.applied);
        }
        // What cannot be read is refused for creates only: below /llm much else than models is asked for.
        if rules.allow(model.as_deref()) || (model.is_none() && llm) {
            Ok(applied.into())
        } else {
            Err(Rejection::ModelDenied { model: model.clone().unwrap_or_default() })
        }
    }
}

/// What rules make of a JSON body.
#[derive(Debug, Default)]
struct Changed {
    /// The model that is to be sent; `None` where none can be read.
    model: Option<String>,
    /// The body, if it is another one now.
    body: Option<Bytes>,
    applied: Vec<Applied>,
}

impl Rules {
    /// Whether this model may be sent. One that cannot be read may be any.
    fn allow(&self, model: Option<&str>) -> bool {
        let is_in = |names: &[String]| model.is_some_and(|model| names.iter().any(|name| means(name, model)));
        match &self.models {
            Models::Any => true,
            Models::Only(names) => is_in(names),
            Models::Not(names) => model.is_some_and(|model| !model.contains('%')) && !is_in(names),
        }
    }

    fn substitute_for(&self, model: &str) -> Option<&str> {
        self.substitute.iter().find(|(from, _)| means(from, model)).map(|(_, to)| to.as_str())
    }

    /// Substitutes the model and, for creates, caps fields of `input`. A key that stands twice is changed twice: nobody knows which
    /// one the upstream reads. Of two models the one that is not allowed counts.
    fn change(&self, body: &[u8], creates: bool) -> Changed {
        let mut changed = Changed::default();
        let Some(fields) = members(body) else { return changed };
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        for (key, place) in fields {
            match key.as_str() {
                "model" => {
                    let Some(asked) = string(&body[place.clone()]) else { continue };
                    let to = self.substitute_for(&asked);
                    if let Some(to) = to {
                        changed.applied.push(told(SUBSTITUTED, &asked, to));
                        edits.push((place, serde_json::Value::from(to).to_string()));
                    }
                    let sent = to.map_or(asked.clone(), str::to_owned);
                    if changed.model.as_deref().is_none_or(|earlier| self.allow(Some(earlier))) {
                        changed.model = Some(sent);
                    }
                }
                "input" if creates => self.cap(body, place, &mut edits, &mut changed.applied),
                _ => {}
            }
        }
        if !edits.is_empty() {
            changed.body = Some(spliced(body, &edits));
        }
        changed
    }

    fn cap(
        &self,
        body: &[u8],
        input: Range<usize>,
        edits: &mut Vec<(Range<usize>, String)>,
        applied: &mut Vec<Applied>,
    ) {
        for (key, place) in members(&body[input.clone()]).unwrap_or_default() {
            let Some((field, most)) = self.caps.iter().find(|(field, _)| *field == key) else { continue };
            let place = input.start + place.start..input.start + place.end;
            let raw = &body[place.clone()];
            // Some models take their numbers as text.
            let quoted = string(raw);
            let Some(text) = quoted.as_deref().or_else(|| str::from_utf8(raw).ok()) else { continue };
            let (asked, limit) = (text.trim().parse::<f64>(), most.as_f64());
            if let (Ok(asked), Some(limit)) = (asked, limit)
                && asked > limit
            {
                applied.push(told(CAPPED, &format!("{field} {}", text.trim()), &most.to_string()));
                edits.push((place, if quoted.is_some() { format!("\"{most}\"") } else { most.to_string() }));
            }
        }
    }
}

/// Whether a name of the configuration means this model: whole, or by its last segments (`name`, `owner/name`, `provider/owner/name`).
pub(crate) fn means(name: &str, model: &str) -> bool {
    let (name, model) = (name.as_bytes(), model.as_bytes());
    let Some(rest) = model.len().checked_sub(name.len()) else { return false };
    model[rest..].eq_ignore_ascii_case(name) && (rest == 0 || model[rest - 1] == b'/')
}

/// Where Gemini's own routes name the model: `/models/NAME:action`.
pub(crate) fn path_model(family: Family, path: &str) -> Option<Range<usize>> {
    if family != Family::Gemini {
        return None;
    }
    let start = path.find("/models/")? + "/models/".len();
    let end = start + path[start..].rfind(':')?;
    (start < end).then_some(start..end)
}

fn with_model(uri: &Uri, place: Range<usize>, to: &str) -> Result<Uri, Rejection> {
    let path = uri.path();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = format!("{}{to}{}{query}", &path[..place.start], &path[place.end..]);
    target.parse().map_err(|_| Rejection::BadRequest("the model's substitute does not fit into a path"))
}

/// Names come from callers: nothing but visible ASCII goes into a header.
fn told(name: HeaderName, from: &str, to: &str) -> Applied {
    let text = format!("{} -> {to}", from.chars().take(200).collect::<String>().escape_default());
    (name, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("yes")))
}

/// `edits` come in the order of their places.
fn spliced(body: &[u8], edits: &[(Range<usize>, String)]) -> Bytes {
    let mut new = Vec::with_capacity(body.len() + 64);
    let mut kept = 0;
    for (place, text) in edits {
        new.extend_from_slice(&body[kept..place.start]);
        new.extend_from_slice(text.as_bytes());
        kept = place.end;
    }
    new.extend_from_slice(&body[kept..]);
    new.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> Rules {
        Rules {
            substitute: vec![("flux-pro".into(), "flux-schnell".into())],
            caps: vec![("duration".into(), 5.into())],
            models: Models::Not(vec!["kling".into()]),
        }
    }

    fn changed(body: &str) -> (String, Option<String>, Vec<String>) {
        let changed = rules().change(body.as_bytes(), true);
        let text = changed.body.map_or(body.to_owned(), |body| String::from_utf8(body.into()).expect("text"));
        let told = |(name, value): &Applied| format!("{name}: {}", value.to_str().expect("text"));
        (text, changed.model, changed.applied.iter().map(told).collect())
    }

    #[test]
    fn only_what_a_rule_names_is_changed() {
        let (body, model, told) =
            changed(r#"{ "input": {"z": 1e2,"duration" : 10.0, "a": "\u00e9"}, "model":"bfl/flux-pro" }"#);
        assert_eq!(body, r#"{ "input": {"z": 1e2,"duration" : 5, "a": "\u00e9"}, "model":"flux-schnell" }"#);
        assert_eq!(model.as_deref(), Some("flux-schnell"));
        assert_eq!(
            told,
            ["sluicegate-capped: duration 10.0 -> 5", "sluicegate-substituted: bfl/flux-pro -> flux-schnell"]
        );
        let same = r#"{"model": "other-flux-pro", "input": {"duration": 5, "nested": {"duration": 9}}, "duration": 9}"#;
        assert_eq!(changed(same), (same.to_owned(), Some("other-flux-pro".into()), Vec::new()));
    }

    #[test]
    fn numbers_may_be_written_as_text() {
        assert_eq!(changed(r#"{"input":{"duration":"10"}}"#).0, r#"{"input":{"duration":"5"}}"#);
        assert_eq!(changed(r#"{"input":{"duration":1e999}}"#).0, r#"{"input":{"duration":5}}"#);
        assert_eq!(changed(r#"{"input":{"duration":"long"}}"#).0, r#"{"input":{"duration":"long"}}"#);
    }

    #[test]
    fn no_spelling_of_a_key_gets_around_a_rule() {
        let (body, ..) = changed(r#"{"mod\u0065l":"flux-pro","model":"flux-pro","model":"x"}"#);
        assert_eq!(body, r#"{"mod\u0065l":"flux-schnell","model":"flux-schnell","model":"x"}"#);
        for body in [r#"{"model":"x","model":"kling"}"#, r#"{"model":"a/KLING","model":"x"}"#] {
            let model = changed(body).1;
            assert!(!rules().allow(model.as_deref()), "{body}");
        }
        for unreadable in ["", "[]", r#"{"model":"x""#, r#"{"model":NaN}"#, r#"{"model":3}"#] {
            assert!(!rules().allow(changed(unreadable).1.as_deref()), "{unreadable}");
        }
    }

    #[test]
    fn names_match_whole_or_by_their_last_segments() {
        assert!(means("kling", "kling") && means("kling", "a/b/kling") && means("b/kling", "a/b/kling"));
        assert!(!means("kling", "xkling") && !means("a/kling", "kling") && !means("b/kling", "ab/kling"));
    }

    #[test]
    fn gemini_names_the_model_in_the_path() {
        let path = "/llm/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent";
        let place = path_model(Family::Gemini, path).expect("a model");
        assert_eq!(&path[place.clone()], "gemini-2.5-flash");
        let uri = with_model(&format!("{path}?alt=sse").parse().expect("a target"), place, "tiny").expect("fits");
        assert_eq!(uri.to_string(), "/llm/gemini/v1beta/models/tiny:streamGenerateContent?alt=sse");
        assert_eq!(path_model(Family::OpenAi, path), None);
    }

    proptest! {
        #[test]
        fn a_changed_body_is_json_again_and_needs_no_second_change(
            model in "[a-z/]{0,6}(flux-pro)?",
            duration in prop_oneof![any::<i32>().prop_map(serde_json::Value::from), any::<f64>().prop_map(serde_json::Value::from)],
            other in "\\PC{0,12}",
        ) {
            let body = serde_json::json!({"model": model, "input": {"duration": duration, "other": other}}).to_string();
            let (body, sent, _) = changed(&body);
            let value: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            prop_assert_eq!(value["model"].as_str(), sent.as_deref());
            prop_assert_eq!(value["input"]["other"].as_str(), Some(&*other));
            prop_assert!(value["input"]["duration"].as_f64().is_none_or(|duration| duration <= 5.0));
            prop_assert_eq!(changed(&body).0, body.clone());
        }
    }
}
