//! Problems of a configuration, collected and then shown together.
//!
//! A line of the file is never shown when it may hold a secret: `Problems::hide` is told where secrets stand, and lines with words
//! that look like keys stay hidden too.

use std::cell::RefCell;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Bytes of the configuration file.
    File(Range<usize>),
    /// An environment variable.
    Variable(String),
    /// A command line flag, with its dashes.
    Flag(&'static str),
    /// Nothing that can be pointed at.
    Nowhere,
}

/// One thing to correct.
struct Problem {
    place: Place,
    message: String,
    help: Option<String>,
}

/// All problems found so far.
#[derive(Default)]
pub(super) struct Problems {
    found: RefCell<Vec<Problem>>,
    hidden: RefCell<Vec<Range<usize>>>,
}

impl Problems {
    /// Adds a problem.
    pub(super) fn add(&self, place: &Place, message: impl Into<String>, help: Option<String>) {
        let message = without_keys(&message.into());
        let problem = Problem { place: place.clone(), message, help: help.map(|help| without_keys(&help)) };
        self.found.borrow_mut().push(problem);
    }

    /// Marks bytes of the file whose lines are never shown.
    pub(super) fn hide(&self, place: &Place) {
        if let Place::File(span) = place {
            self.hidden.borrow_mut().push(span.clone());
        }
    }

    /// Whether nothing is wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// Renders what was found; `name` and `text` are the configuration file's.
    pub(super) fn into_report(self, name: &str, text: &str) -> Report {
        let mut found = self.found.into_inner();
        found.sort_by_key(|problem| match &problem.place {
            Place::Flag(_) => (0, 0),
            Place::Variable(_) => (1, 0),
            Place::File(span) => (2, span.start),
            Place::Nowhere => (3, 0),
        });
        let page = Page { name, text, hidden: self.hidden.into_inner() };
        Report {
            plain: page.render(&found, &Renderer::plain()),
            styled: page.render(&found, &Renderer::styled()),
            count: found.len(),
        }
    }
}

/// Why a configuration was refused: every problem, ready to be printed. It holds no secret.
#[derive(Clone)]
pub struct Report {
    plain: String,
    styled: String,
    count: usize,
}

impl Report {
    /// A report of one problem outside the file.
    pub(super) fn single(message: impl Into<String>, help: Option<String>) -> Self {
        let problems = Problems::default();
        problems.add(&Place::Nowhere, message, help);
        problems.into_report("", "")
    }

    /// How many problems there are; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The same text as `Display`, with colours for a terminal.
    #[must_use]
    pub fn styled(&self) -> &str {
        &self.styled
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.plain)
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.plain)
    }
}

impl std::error::Error for Report {}

/// The file that problems point into.
struct Page<'a> {
    name: &'a str,
    text: &'a str,
    hidden: Vec<Range<usize>>,
}

impl Page<'_> {
    fn render(&self, problems: &[Problem], renderer: &Renderer) -> String {
        let mut out = String::new();
        for problem in problems {
            out.push_str(&renderer.render(&self.groups(problem)));
            out.push_str("\n\n");
        }
        let count = problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        format!("{out}{count} {noun}; nothing was started")
    }

    fn groups<'b>(&'b self, problem: &'b Problem) -> Vec<Group<'b>> {
        let title = Level::ERROR.primary_title(problem.message.as_str());
        let help = problem.help.as_deref().map(|help| Level::HELP.message(help));
        let group = match &problem.place {
            Place::File(span) => {
                let span = self.one_line(span);
                let (line, column) = self.position(span.start);
                match self.shown(&span) {
                    Some(shown) => {
                        let within = span.start - shown.start..span.end - shown.start;
                        let source = self.text.get(shown).unwrap_or_default();
                        let annotation = AnnotationKind::Primary.span(within);
                        title.element(Snippet::source(source).line_start(line).path(self.name).annotation(annotation))
                    }
                    None => title.element(Origin::path(self.name).line(line).char_column(column)),
                }
            }
            Place::Variable(name) => title.element(Origin::path(format!("environment variable {name}"))),
            Place::Flag(name) => title.element(Origin::path(format!("flag {name}"))),
            Place::Nowhere if !self.name.is_empty() => title.element(Origin::path(self.name)),
            Place::Nowhere => {
                let help = problem.help.as_deref().map(|help| Group::with_title(Level::HELP.secondary_title(help)));
                return std::iter::once(Group::with_title(title)).chain(help).collect();
            }
        };
        vec![group.elements(help)]
    }

    /// The part of `span` that lies in its first line, between whole characters.
    fn one_line(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.boundary(span.start);
        let rest = self.text.get(start..).unwrap_or_default();
        let line_end = start + rest.find(['\n', '\r']).unwrap_or(rest.len());
        start..self.boundary(span.end.clamp(start, line_end))
    }

    fn boundary(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    /// All of the line that `at` lies in, without its end.
    fn line_of(&self, at: usize) -> Range<usize> {
        let before = self.text.get(..at).unwrap_or_default();
        let after = self.text.get(at..).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        start..at + after.find('\n').unwrap_or(after.len())
    }

    /// What may be shown of the line of `span`: without its comment, and nothing of a line that may hold a secret.
    fn shown(&self, span: &Range<usize>) -> Option<Range<usize>> {
        let line = self.line_of(span.start);
        let overlaps = |secret: &Range<usize>| secret.start <= line.end && line.start <= secret.end;
        let rest = self.text.get(span.end..line.end)?;
        let shown = line.start..span.end + rest.split('#').next().map_or(0, |code| code.trim_end().len());
        let hidden = self.hidden.iter().any(overlaps) || holds_key(self.text.get(shown.clone())?);
        (!hidden).then_some(shown)
    }

    /// Line and column from one, the column in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}

/// Whether a line has a word that may be an API key, or assigns a text to a key that should hold none.
fn holds_key(line: &str) -> bool {
    let assigns = |(at, word): (usize, &str)| {
        let rest = line.get(at + word.len()..).unwrap_or_default();
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-\"' \t".contains(c));
        let value = rest.trim_start_matches(['=', ':', ' ', '\t']);
        value.len() < rest.len() && value.starts_with(['"', '\''])
    };
    let lower = line.to_ascii_lowercase();
    if ["key", "token", "secret", "password"].iter().any(|word| lower.match_indices(word).any(assigns)) {
        return true;
    }
    // A key may have slashes; and behind a stray one it is no path.
    let mut words = line.split(|c: char| !(c.is_ascii_alphanumeric() || "_-+/=".contains(c)));
    words.any(|word| looks_like_key(word) || word.split('/').any(looks_like_key))
}

/// Whether a word may be an API key: long, without spaces, letters and digits mixed.
pub(super) fn looks_like_key(word: &str) -> bool {
    let path = word.starts_with(['/', '.', '~']);
    word.len() >= 20
        && !path
        && !word.contains(char::is_whitespace)
        && !word.contains("://")
        && word.contains(|c: char| c.is_ascii_digit())
        && word.contains(|c: char| c.is_ascii_alphabetic())
}

/// A message without what can only be an API key, whoever quoted it: names and paths seldom hold 16 letters and digits in a row.
fn without_keys(message: &str) -> String {
    let random = |run: &str| {
        run.len() >= 16 && run.contains(|c: char| c.is_ascii_digit()) && run.contains(|c: char| c.is_ascii_alphabetic())
    };
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        let run_end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (run, after) = rest.split_at(run_end);
        let next_run = after.find(|c: char| c.is_ascii_alphanumeric()).unwrap_or(after.len());
        let (between, next) = after.split_at(next_run);
        shown.push_str(if random(run) { "(not shown)" } else { run });
        shown.push_str(between);
        rest = next;
    }
    shown
}

/// Text of the file as it may stand in a message: short, without control characters, and never a key.
pub(super) fn quoted(text: &str) -> String {
    if looks_like_key(text) { "(not shown)".to_owned() } else { format!("`{}`", escaped(text, 60)) }
}

/// At most `longest` characters, those that would move the cursor as escapes.
pub(super) fn escaped(text: &str, longest: usize) -> String {
    let short: String = text.chars().take(longest).flat_map(char::escape_debug).collect();
    let dots = if text.chars().nth(longest).is_some() { "…" } else { "" };
    format!("{short}{dots}")
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
