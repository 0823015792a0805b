//! What `doctor` says: a line a check, with the way out where something is wrong. In words and as JSON.

use serde_json::{Value, json};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    /// Works, but not as one would want it.
    Warn,
    /// The proxy will not work.
    Fail,
    /// Not looked at, because of something else.
    Skip,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }

    /// As terminals colour it (ECMA-48 §8.3.117).
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "32",
            Self::Warn => "33",
            Self::Fail => "31",
            Self::Skip => "2",
        }
    }
}

/// One check's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// What was looked at: a stable word.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// May have several lines.
    pub(super) said: String,
    pub(super) way_out: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, said: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, said: said.into(), way_out: None }
    }

    pub(super) fn skip(check: &'static str, said: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Skip, said: said.into(), way_out: None }
    }

    pub(super) fn warn(check: &'static str, said: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, said: said.into(), way_out: Some(way_out.into()) }
    }

    pub(super) fn fail(check: &'static str, said: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, said: said.into(), way_out: Some(way_out.into()) }
    }

    fn lines(&self, colours: bool) -> String {
        let word = self.verdict.word();
        let word =
            if colours { format!("\x1b[{}m{word:<4}\x1b[0m", self.verdict.colour()) } else { format!("{word:<4}") };
        let indent = " ".repeat(20);
        let said = self.said.trim_end().replace('\n', &format!("\n{indent}"));
        let way_out =
            self.way_out.as_ref().map(|way| format!("\n{indent}-> {}", way.replace('\n', &format!("\n{indent}   "))));
        format!("{word}  {:<13} {said}{}", self.check, way_out.unwrap_or_default())
    }
}

/// Whether nothing has failed. What is only warned about is no failure.
pub(super) fn healthy(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Fail)
}

/// For people; ends with a line of counts.
pub(super) fn text(findings: &[Finding], colours: bool) -> String {
    let mut lines: Vec<String> = findings.iter().map(|finding| finding.lines(colours)).collect();
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (ok, warn, fail) = (count(Verdict::Ok), count(Verdict::Warn), count(Verdict::Fail));
    lines.push(format!("{ok} ok, {warn} to mend, {fail} failed"));
    lines.join("\n")
}

/// For programs.
pub(super) fn json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.word(),
            "said": finding.said,
            "way_out": finding.way_out,
        })
    };
    json!({ "healthy": healthy(findings), "findings": findings.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_stands_below_its_check() {
        let found = [Finding::ok("dns", "one\ntwo"), Finding::fail("key", "refused", "make\nanother")];
        let expected = "ok    dns           one\n                    two\n\
                        fail  key           refused\n                    -> make\n                       another\n\
                        1 ok, 0 to mend, 1 failed";
        assert_eq!(text(&found, false), expected);
        assert!(!healthy(&found) && healthy(&found[..1]));
        assert_eq!(json(&found)["findings"][1]["way_out"], "make\nanother");
        assert!(text(&found, true).starts_with("\x1b[32mok  \x1b[0m  dns"));
    }
}
