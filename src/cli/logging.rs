//! The log, as `[log]` says, to stderr.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

use super::colours;

/// Starts the log of this process. `level` has been checked with the configuration.
pub(super) fn init(log: &Log, level: &str) {
    let text = match log.format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_env_filter(EnvFilter::new(level))
        .with_ansi(colours(&stderr()))
        // They would be told by `eprintln!`, which panics, in the middle of requests, once nobody reads stderr any more.
        .log_internal_errors(false);
    // An error means that there is a log already.
    let _ = if text { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Members that the JSON form writes itself: a field of such a name would be there twice.
    const TAKEN: [&str; 7] = ["timestamp", "level", "target", "message", "fields", "span", "spans"];

    /// The names of an event's fields, from what stands between the macro's brackets.
    fn fields<'a>(event: &'a str) -> Vec<&'a str> {
        let (mut depth, mut quoted, mut escaped, mut from) = (0_i32, false, false, 0);
        let mut arguments = Vec::new();
        for (at, byte) in event.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' if depth == 0 => {
                    arguments.push(&event[from..at]);
                    break;
                }
                b')' | b']' | b'}' => depth -= 1,
                b',' if depth == 0 => {
                    arguments.push(&event[from..at]);
                    from = at + 1;
                }
                _ => {}
            }
        }
        // `name = value`, `%name` and `name`; a text is the message.
        let named = arguments.into_iter().map(str::trim).filter(|argument| !argument.starts_with('"'));
        let name =
            |argument: &'a str| argument.split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?']);
        named.map(name).collect()
    }

    fn visit(directory: &Path, each: &mut impl FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(directory).expect("the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(&path, each);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                each(&path, &std::fs::read_to_string(&path).expect("text"));
            }
        }
    }

    /// The members that an event would write twice.
    fn twice(source: &str) -> (usize, Vec<&str>) {
        let starts = ["trace", "debug", "info", "warn", "error"].map(|level| format!("tracing::{level}!("));
        let events = || starts.iter().flat_map(|start| source.match_indices(start));
        let named = events().flat_map(|(at, start)| fields(&source[at + start.len()..]));
        (events().count(), named.filter(|name| TAKEN.contains(name)).collect())
    }

    #[test]
    fn no_event_has_a_field_that_the_json_form_writes_itself() {
        let (mut events, mut wrong) = (0, Vec::new());
        visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |path, source| {
            let (found, names) = twice(source);
            events += found;
            wrong.extend(names.into_iter().map(|name| format!("{}: {name}", path.display())));
        });
        assert!(events > 20, "{events} events were found");
        assert!(wrong.is_empty(), "{wrong:#?}");
        let told = fields("\n account = name(\"a,b\"), %error, ?target, level, \"it {failed}, (so)\")");
        assert_eq!(told, ["account", "error", "target", "level"]);
    }
}
