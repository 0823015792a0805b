//! Lines for a terminal: tables in columns, cut to its width, coloured where it may be. Text from elsewhere loses what a terminal would obey.

use std::io::stdout;

use serde_json::Value;

/// How a line is shown where colours may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Headings.
    Quiet,
    Warning,
}

/// Lines and tables, from top to bottom.
#[derive(Debug, Default)]
pub(super) struct Picture(Vec<Part>);

#[derive(Debug)]
enum Part {
    Line(Tone, String),
    /// The heading is the first row.
    Table {
        rows: Vec<Vec<String>>,
        numbers: Vec<usize>,
    },
}

/// What a picture has to fit in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// Columns and lines; `None`: as much as there is.
    pub(super) size: Option<(usize, usize)>,
    pub(super) colours: bool,
}

impl Frame {
    /// Of this process's stdout.
    pub(super) fn of_stdout() -> Self {
        let size = rustix::termios::tcgetwinsize(stdout()).ok();
        let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        Self { size: size.filter(|size| size.0 > 0 && size.1 > 0), colours: super::colours(&stdout()) }
    }
}

impl Picture {
    pub(super) fn line(&mut self, tone: Tone, text: impl AsRef<str>) {
        self.0.push(Part::Line(tone, harmless(text.as_ref())));
    }

    pub(super) fn gap(&mut self) {
        self.0.push(Part::Line(Tone::Plain, String::new()));
    }

    /// A heading and a line for each of `rows`, in columns; those of `numbers` end at the right.
    pub(super) fn table(&mut self, heading: &[&str], numbers: &[usize], rows: &[Vec<String>]) {
        let heading = heading.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let rows: Vec<Vec<String>> =
            [heading].iter().chain(rows).map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
        self.0.push(Part::Table { rows, numbers: numbers.to_vec() });
    }

    /// As many lines as the frame has, none wider than it.
    pub(super) fn lines(&self, frame: Frame) -> Vec<String> {
        let (columns, most) = frame.size.unwrap_or((usize::MAX, usize::MAX));
        let lines: Vec<_> = self.0.iter().flat_map(|part| part.lines(columns)).collect();
        let too_many = lines.len() > most;
        let shown = if too_many { most.saturating_sub(1) } else { lines.len() };
        let mut fitting: Vec<String> =
            lines.iter().take(shown).map(|(tone, text)| coloured(*tone, cut(text, columns), frame.colours)).collect();
        if too_many {
            fitting.push(cut(&format!("... {} more lines", lines.len() - shown), columns));
        }
        fitting
    }

    /// For stdout: wide enough lines are cut on a terminal, none is left out.
    pub(super) fn text(&self) -> String {
        let frame = Frame::of_stdout();
        let size = frame.size.map(|(columns, _)| (columns, usize::MAX));
        self.lines(Frame { size, ..frame }).join("\n").trim_end().to_owned()
    }
}

impl Part {
    fn lines(&self, columns: usize) -> Vec<(Tone, String)> {
        let Self::Table { rows, numbers } = self else {
            let Self::Line(tone, text) = self else { return Vec::new() };
            return vec![(*tone, text.clone())];
        };
        let of = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..rows[0].len()).map(of).collect();
        if widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1) > columns {
            return rows[1..].iter().flat_map(|row| stacked(&rows[0], row, columns)).collect();
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let tone = |number| if number == 0 { Tone::Quiet } else { Tone::Plain };
        rows.iter().enumerate().map(|(number, row)| (tone(number), line(row))).collect()
    }
}

/// A row of a table that is too wide: its first cell, then each other with its heading, in as many lines as that takes.
fn stacked(heading: &[String], row: &[String], columns: usize) -> Vec<(Tone, String)> {
    let mut lines = vec![row[0].clone()];
    for (heading, cell) in heading.iter().zip(row).skip(1) {
        let piece = format!("  {heading} {cell}");
        match lines.last_mut() {
            Some(line) if fits(line, &piece, columns) => line.push_str(&piece),
            _ => lines.push(piece),
        }
    }
    lines.into_iter().map(|line| (Tone::Plain, line)).collect()
}

fn fits(line: &str, piece: &str, columns: usize) -> bool {
    line.chars().count() + piece.chars().count() <= columns
}

/// A cell for a value of JSON.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `120 ms`, `2.5 s`, `1 min 10 s`, `2 h 05 min`.
pub(super) fn span(secs: &Value) -> String {
    let secs = secs.as_f64().unwrap_or_default().max(0.0);
    if secs < 0.9995 {
        return format!("{:.0} ms", secs * 1000.0);
    }
    if secs < 59.95 {
        return format!("{} s", (secs * 10.0).round() / 10.0);
    }
    let whole = std::time::Duration::try_from_secs_f64(secs.round()).unwrap_or_default().as_secs();
    if whole < 3_600 {
        return format!("{} min {:02} s", whole / 60, whole % 60);
    }
    format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60)
}

/// Without characters that a terminal obeys or that turn what follows around.
fn harmless(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    text.chars().map(|c| if obeyed(c) { '\u{fffd}' } else { c }).collect()
}

fn cut(text: &str, columns: usize) -> String {
    if text.chars().nth(columns).is_none() {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

fn coloured(tone: Tone, text: String, colours: bool) -> String {
    match tone {
        Tone::Quiet if colours && !text.is_empty() => format!("\x1b[2m{text}\x1b[0m"),
        Tone::Warning if colours && !text.is_empty() => format!("\x1b[33m{text}\x1b[0m"),
        Tone::Plain | Tone::Quiet | Tone::Warning => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn picture() -> Picture {
        let mut picture = Picture::default();
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        picture.table(&["name", "count"], &[1], &[row(["a", "1"]), row(["longer", "12345678"])]);
        picture.line(Tone::Warning, "watch out");
        picture
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let plain = picture().lines(Frame::default());
        assert_eq!(plain, ["name       count", "a              1", "longer  12345678", "watch out"]);
        let coloured = picture().lines(Frame { colours: true, ..Frame::default() });
        assert_eq!((coloured[0].as_str(), coloured[1].as_str()), ("\x1b[2mname       count\x1b[0m", plain[1].as_str()));
        assert_eq!(coloured[3], "\x1b[33mwatch out\x1b[0m");
    }

    #[test]
    fn no_line_is_wider_and_no_picture_longer_than_the_frame() {
        let shown = picture().lines(Frame { size: Some((10, 3)), colours: false });
        assert_eq!(shown, ["a  count 1", "longer", "... 2 mor…"]);
        assert_eq!(picture().lines(Frame { size: Some((16, 4)), colours: false }).len(), 4);
    }

    #[test]
    fn a_table_that_is_too_wide_is_stacked() {
        let shown = picture().lines(Frame { size: Some((15, 9)), colours: true });
        assert_eq!(shown, ["a  count 1", "longer", "  count 123456…", "\x1b[33mwatch out\x1b[0m"]);
    }

    #[test]
    fn what_a_terminal_would_obey_is_gone() {
        let mut picture = Picture::default();
        let evil = "m\u{1b}[2J\u{9b}1m\r\n\u{7}\u{202e}".to_owned();
        picture.table(&["model"], &[], &[vec![evil.clone()]]);
        picture.line(Tone::Plain, evil);
        for line in &picture.lines(Frame::default())[1..] {
            assert_eq!(line, "m\u{fffd}[2J\u{fffd}1m\u{fffd}\u{fffd}\u{fffd}\u{fffd}");
        }
    }

    #[test]
    fn spans_are_written_as_people_do() {
        for (secs, text) in [
            (0.0, "0 ms"),
            (0.12, "120 ms"),
            (0.9999, "1 s"),
            (2.54, "2.5 s"),
            (59.97, "1 min 00 s"),
            (7_500.0, "2 h 05 min"),
        ] {
            assert_eq!(span(&json!(secs)), text);
        }
        assert_eq!(
            (span(&json!(-1.0)), span(&json!(null)), span(&json!(1e300))),
            ("0 ms".into(), "0 ms".into(), "0 min 00 s".into())
        );
    }
}
