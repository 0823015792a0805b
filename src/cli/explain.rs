//! `sluicegate explain`: the sections of docs/errors.md.

use crate::config::suggest;

use super::{Failure, say};

const PAGE: &str = include_str!("../../docs/errors.md");

/// A code and what the page says of it, heading included.
#[derive(Debug, Clone, Copy)]
struct Section {
    code: &'static str,
    text: &'static str,
}

impl Section {
    /// The first sentence below the heading: status and meaning.
    fn summary(self) -> String {
        let paragraph =
            self.text.lines().skip(1).skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
        let text = paragraph.collect::<Vec<_>>().join(" ");
        let end = text.find(". ").map_or(text.len(), |dot| dot + 1);
        text.get(..end).unwrap_or_default().to_owned()
    }
}

/// Columns of the list, and of the codes in it.
const WIDTH: usize = 100;
const CODES_WIDTH: usize = 23;

/// The code, and what it means beside it in lines of their own.
fn entry(code: &str, summary: &str) -> String {
    let mut lines = vec![format!("{code:<CODES_WIDTH$}")];
    for word in summary.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() <= CODES_WIDTH => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => line.extend([" ", word]),
            _ => lines.push(format!("{:CODES_WIDTH$}{word}", "")),
        }
    }
    lines.join("\n")
}

pub(super) fn explain(code: Option<&str>) -> Result<u8, Failure> {
    let Some(code) = code else {
        for section in sections() {
            say(entry(section.code, &section.summary()));
        }
        return Ok(0);
    };
    if let Some(section) = sections().find(|section| section.code == code) {
        say(section.text.trim_end());
        return Ok(0);
    }
    let near = suggest::nearest(code, sections().map(|section| section.code));
    let help =
        near.map_or_else(|| "`sluicegate explain` lists all codes".to_owned(), |near| format!("did you mean {near}?"));
    Err(Failure::wrong(format_args!("there is no code `{}`; {help}", code.escape_debug())))
}

fn sections() -> impl Iterator<Item = Section> {
    PAGE.match_indices("\n## ").map(|(at, _)| {
        let text = PAGE.get(at + 1..).unwrap_or_default();
        let end = text.find("\n## ").unwrap_or(text.len());
        let text = text.get(..end).unwrap_or_default();
        let heading = text.lines().next().unwrap_or_default();
        Section { code: heading.trim_start_matches("## ").trim(), text }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::proxy::rejection::CODES;

    use super::*;

    /// The words of `Rejection::code`, read from its source.
    fn codes_of_the_source() -> BTreeSet<&'static str> {
        let source = include_str!("../proxy/rejection.rs");
        let body = source.split("fn code(&self)").nth(1).expect("Rejection::code is there");
        let body = body.split("\n    }\n").next().expect("it ends");
        let words = body.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
        words.collect()
    }

    #[test]
    fn every_code_has_a_section_and_every_section_a_code() {
        let source = codes_of_the_source();
        assert!(source.len() > 15, "{source:?}");
        let page: Vec<_> = sections().map(|section| section.code).collect();
        assert_eq!(page.iter().copied().collect::<BTreeSet<_>>(), source);
        assert_eq!(page.len(), source.len(), "no section stands twice");
        assert_eq!(CODES.into_iter().collect::<BTreeSet<_>>(), source, "the list of all codes");
    }

    #[test]
    fn the_list_has_whole_sentences_in_lines_of_a_terminal_s_width() {
        for section in sections() {
            let (summary, told) = (section.summary(), entry(section.code, &section.summary()));
            assert!(summary.ends_with('.'), "{summary}");
            assert!(told.lines().all(|line| line.len() <= WIDTH), "{told}");
            assert!(told.lines().skip(1).all(|line| line.starts_with(&" ".repeat(CODES_WIDTH))), "{told}");
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&told)[1..], words(&summary), "nothing is lost");
        }
        let timeout = sections().find(|section| section.code == "client_timeout").expect("there").summary();
        assert!(timeout.ends_with("slower than 1024 bytes a second on average."), "{timeout}");
    }

    #[test]
    fn every_section_begins_with_its_status_and_says_what_to_do() {
        for section in sections() {
            let summary = section.summary();
            let status = summary.split(' ').next().and_then(|word| word.parse::<u16>().ok());
            assert!(status.is_some_and(|status| (400..600).contains(&status)), "{summary}");
            for part in ["**Sent and spent:**", "**What to do:**"] {
                assert!(section.text.contains(part), "{} lacks {part}", section.code);
            }
        }
    }
}
