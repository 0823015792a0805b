//! Scripted faults: what goes wrong, for which requests, how often.
//!
//! A fault strikes a request that was let in and counted like any other. Only then is it used up.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Deserializer};

use super::options::parse_duration;

/// One thing that can go wrong. `execute` means that the request is carried out all the same (a create makes its job).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// Another status than the true one.
    Status {
        /// The status.
        code: u16,
        /// Headers of the answer, over the usual ones.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// Whether the request is carried out.
        #[serde(default)]
        execute: bool,
    },
    /// The connection is closed after the request head; nothing is carried out. On HTTP/2 the stream is reset.
    ResetBefore,
    /// The request is carried out, then the connection is closed without an answer.
    ResetAfter,
    /// The full answer is announced, half of it is sent (300 bytes of a stream), then the connection is closed.
    HalfBody,
    /// No answer, ever.
    Hang {
        /// Whether the request is carried out.
        #[serde(default)]
        execute: bool,
    },
    /// The request is carried out; its answer starts late.
    SlowHead {
        /// How late, such as `"2.5s"`.
        #[serde(deserialize_with = "duration")]
        delay: Duration,
    },
    /// Bytes that are not HTTP, then the connection is closed.
    Garbage {
        /// Whether the request is carried out.
        #[serde(default)]
        execute: bool,
    },
    /// The request is carried out; the body of its answer is this instead.
    OtherBody {
        /// The body.
        body: String,
    },
    /// A good answer; shortly after its end the connection is closed without notice.
    CloseIdle,
}

impl Fault {
    /// Strikes the next request with this method (`""`: any) whose path starts with `path`.
    #[must_use]
    pub fn on(self, method: &str, path: &str) -> Planned {
        Planned { method: method.to_owned(), path: path.to_owned(), skip: 0, times: 1, fault: self }
    }
}

/// A fault and the requests it strikes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Planned {
    /// Method; empty: any.
    #[serde(default)]
    pub method: String,
    /// How the path starts.
    #[serde(default)]
    pub path: String,
    /// Matching requests to leave alone first.
    #[serde(default)]
    pub skip: u32,
    /// Matching requests to strike.
    #[serde(default = "once")]
    pub times: u32,
    /// What happens to them.
    #[serde(flatten)]
    pub fault: Fault,
}

impl Planned {
    /// Strikes this many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Leaves this many matching requests alone first.
    #[must_use]
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        (self.method.is_empty() || method.as_str().eq_ignore_ascii_case(&self.method)) && path.starts_with(&self.path)
    }
}

/// The faults still to come, in order; the first that matches strikes.
#[derive(Debug, Default)]
pub(super) struct Script(Vec<Planned>);

impl Script {
    pub(super) fn add(&mut self, faults: impl IntoIterator<Item = Planned>) {
        self.0.extend(faults.into_iter().filter(|planned| planned.times > 0));
    }

    /// The fault for this request, used up.
    pub(super) fn take(&mut self, method: &Method, path: &str) -> Option<Fault> {
        let place = self.0.iter().position(|planned| planned.matches(method, path))?;
        let planned = &mut self.0[place];
        if planned.skip > 0 {
            planned.skip -= 1;
            return None;
        }
        planned.times -= 1;
        if planned.times == 0 { Some(self.0.remove(place).fault) } else { Some(planned.fault.clone()) }
    }
}

fn once() -> u32 {
    1
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_strike_in_order_as_often_as_planned() {
        let mut script = Script::default();
        script.add([Fault::ResetBefore.on("POST", "/v1/predictions").after(1).times(2), Fault::HalfBody.on("", "/v1")]);
        let mut create = || script.take(&Method::POST, "/v1/predictions");
        assert_eq!(create(), None);
        assert_eq!([create(), create()], [Some(Fault::ResetBefore), Some(Fault::ResetBefore)]);
        assert_eq!([create(), create()], [Some(Fault::HalfBody), None]);
    }

    #[test]
    fn faults_are_read_from_json() {
        let text = r#"[{"method":"POST","path":"/v1","times":2,"fault":"status","code":503,"headers":{"retry-after":"1"}},
                       {"fault":"slow_head","delay":"1.5s"}]"#;
        let read: Vec<Planned> = serde_json::from_str(text).expect("valid faults");
        let headers = BTreeMap::from([("retry-after".to_owned(), "1".to_owned())]);
        assert_eq!(read[0], Fault::Status { code: 503, headers, execute: false }.on("POST", "/v1").times(2));
        assert_eq!(read[1], Fault::SlowHead { delay: Duration::from_millis(1_500) }.on("", ""));
    }
}
