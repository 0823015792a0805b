//! A look at a running proxy: once, or again every second until Ctrl-C. On a terminal the picture is redrawn in its place; through a pipe
//! one follows the other.

use std::io::{self, IsTerminal, Write, stdout};
use std::time::Duration;

use clap::Args;
use http::{StatusCode, Uri};
use serde_json::Value;
use tokio::time::sleep;

use crate::config::Flags;

use super::picture::{Frame, Picture, Tone};
use super::signals::{Signals, Stop};
use super::{ConfigFlags, Failure, ask, complain, say};

const EVERY: Duration = Duration::from_secs(1);

/// Arguments of everything that looks.
#[derive(Debug, Args)]
pub(super) struct LookArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// Look again every second until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// Print what the admin port answers, a line each time
    #[arg(long)]
    json: bool,
    /// Ask this URL instead of the configured admin port
    #[arg(long, value_name = "URL")]
    url: Option<Uri>,
}

/// What is looked at.
pub(super) struct Look {
    /// At the admin port.
    pub(super) target: &'static str,
    /// A member that the answer must have.
    pub(super) member: &'static str,
    pub(super) draw: fn(&Value) -> Picture,
}

/// Looks as the arguments say. The first look must succeed.
pub(super) async fn look(args: LookArgs, above: ConfigFlags, look: &Look) -> Result<u8, Failure> {
    let LookArgs { flags, watch, json, url } = args;
    let flags = flags.or(above);
    let first = answer(url.clone(), flags.clone(), look).await?;
    if !watch {
        say(if json { first.to_string() } else { (look.draw)(&first).text() });
        return Ok(0);
    }
    let mut signals = Signals::new()?;
    let mut screen = Screen { live: stdout().is_terminal() && !json, drawn: 0 };
    let (mut told, mut trouble) = (first, None);
    loop {
        let shown = match (json, &trouble) {
            (false, trouble) => screen.show((look.draw)(&told), trouble.as_deref()),
            (true, None) => write(&format!("{told}\n")),
            (true, Some(trouble)) => {
                complain(trouble);
                Ok(())
            }
        };
        if shown.is_err() {
            // The reader has left.
            return Ok(0);
        }
        let next = async {
            sleep(EVERY).await;
            answer(url.clone(), flags.clone(), look).await
        };
        tokio::select! {
            next = next => match next {
                Ok(next) => (told, trouble) = (next, None),
                Err(failure) => trouble = Some(failure.text),
            },
            stop = signals.next() => return Ok(if stop == Stop::Interrupt { 0 } else { stop.exit_code() }),
        }
    }
}

async fn answer(url: Option<Uri>, flags: Flags, look: &Look) -> Result<Value, Failure> {
    let (place, answer) = ask::ask(url, flags, look.target).await?;
    let told = serde_json::from_slice::<Value>(answer.body()).ok();
    let told = told.filter(|told| answer.status() == StatusCode::OK && !told[look.member].is_null());
    told.ok_or_else(|| Failure::failed(format_args!("{place} answers {} and no {}", answer.status(), look.member)))
}

/// Where pictures go.
struct Screen {
    live: bool,
    /// Lines that the next picture replaces.
    drawn: usize,
}

impl Screen {
    fn show(&mut self, mut picture: Picture, trouble: Option<&str>) -> io::Result<()> {
        if let Some(trouble) = trouble {
            picture.line(Tone::Warning, format!("{trouble}; these numbers are old, trying again"));
        }
        let frame = Frame::of_stdout();
        let mut text = String::new();
        if self.live {
            // The last line stays free, so that nothing scrolls.
            let size = frame.size.map(|(columns, rows)| (columns, rows.saturating_sub(1)));
            let lines = picture.lines(Frame { size, ..frame });
            if self.drawn > 0 {
                text = format!("\x1b[{}A\r", self.drawn);
            }
            for line in &lines {
                text.push_str(line);
                text.push_str("\x1b[K\n");
            }
            text.push_str("\x1b[J");
            self.drawn = lines.len();
        } else {
            text = picture.lines(Frame::default()).join("\n");
            text.push_str("\n\n");
        }
        write(&text)
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
