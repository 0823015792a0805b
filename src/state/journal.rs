//! Live jobs and creates whose outcome is unknown, as an append-only file of JSON lines.
//!
//! A line is written before a create is sent and after each thing learned about it. What is still open when the file is read again
//! holds its slot: a job until it is seen to end, a create without an answer for the grace period.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Rewritten when it is longer than this and mostly about jobs that have ended.
const REWRITE_ABOVE_BYTES: u64 = 1 << 20;

/// Who started what, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
    /// Unix time in milliseconds.
    pub(crate) at_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// A create is about to be sent.
    Send { n: u64, origin: Origin },
    /// It started this job.
    Job { n: u64, id: String },
    /// It started no job.
    None { n: u64 },
    /// A job whose create we did not send.
    Seen { id: String, origin: Origin },
    /// The job holds no slot any more.
    End { id: String },
}

/// What is open.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) jobs: BTreeMap<String, Origin>,
    pub(crate) uncertain: BTreeMap<u64, Origin>,
}

impl Known {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Send { n, origin } => drop(self.uncertain.insert(n, origin)),
            Line::Job { n, id } => {
                if let Some(origin) = self.uncertain.remove(&n) {
                    self.jobs.insert(id, origin);
                }
            }
            Line::None { n } => drop(self.uncertain.remove(&n)),
            Line::Seen { id, origin } => drop(self.jobs.insert(id, origin)),
            Line::End { id } => drop(self.jobs.remove(&id)),
        }
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let jobs = self.jobs.iter().map(|(id, origin)| Line::Seen { id: id.clone(), origin: origin.clone() });
        jobs.chain(self.uncertain.iter().map(|(n, origin)| Line::Send { n: *n, origin: origin.clone() }))
    }
}

/// The open file.
pub(crate) struct Journal(Mutex<Open>);

struct Open {
    path: PathBuf,
    file: File,
    bytes: u64,
    known: Known,
    next: u64,
    failed: bool,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Known)> {
        let known = read(path)?;
        let (file, bytes) = rewrite(path, &known)?;
        let next = known.uncertain.keys().max().map_or(0, |n| n + 1);
        let copy = Known { jobs: known.jobs.clone(), uncertain: known.uncertain.clone() };
        let open = Open { path: path.to_owned(), file, bytes, known: copy, next, failed: false };
        Ok((Self(Mutex::new(open)), known))
    }

    /// A create is about to be sent; the number names it.
    pub(crate) fn sending(&self, origin: Origin) -> u64 {
        self.with(|open| {
            let n = open.next;
            open.next += 1;
            open.append(Line::Send { n, origin });
            n
        })
    }

    /// The create started this job.
    pub(crate) fn started(&self, n: u64, id: &str) {
        self.with(|open| open.append(Line::Job { n, id: id.to_owned() }));
    }

    /// The create started no job, or its grace period is over.
    pub(crate) fn nothing(&self, n: u64) {
        self.with(|open| open.append(Line::None { n }));
    }

    /// A live job whose create we did not send.
    pub(crate) fn seen(&self, id: &str, origin: Origin) {
        self.with(|open| {
            open.append(Line::Seen { id: id.to_owned(), origin });
        });
    }

    /// The job holds no slot any more.
    pub(crate) fn ended(&self, id: &str) {
        self.with(|open| open.append(Line::End { id: id.to_owned() }));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Open) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Open {
    fn append(&mut self, line: Line) {
        let written = write_line(&mut self.file, &line);
        self.known.apply(line);
        let kept = written.and_then(|bytes| {
            self.bytes += bytes;
            let open = self.known.jobs.len() + self.known.uncertain.len();
            if self.bytes > REWRITE_ABOVE_BYTES.max(open as u64 * 1024) {
                (self.file, self.bytes) = rewrite(&self.path, &self.known)?;
            }
            Ok(())
        });
        if let Err(error) = kept
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!(%error, "the job journal cannot be written: a restart may not know all live jobs");
        }
    }
}

fn write_line(file: &mut File, line: &Line) -> io::Result<u64> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

/// Reads what is open. A last line without its end was cut by a crash and is left out: its create had not been sent.
fn read(path: &Path) -> io::Result<Known> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
        Err(error) => return Err(error),
    };
    let mut known = Known::default();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let parsed = serde_json::from_slice(&line).map_err(|error| {
            let path = path.display();
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path}:{number} is damaged ({error}): move the file aside to start without its jobs"),
            )
        })?;
        known.apply(parsed);
    }
    Ok(known)
}

fn rewrite(path: &Path, known: &Known) -> io::Result<(File, u64)> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&fresh)?;
    let mut bytes = 0;
    for line in known.lines() {
        bytes += write_line(&mut file, &line)?;
    }
    file.sync_data()?;
    std::fs::rename(&fresh, path)?;
    Ok((file, bytes))
}

/// Unix time in milliseconds.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(model: &str) -> Origin {
        Origin { account: "a".into(), client: "local".into(), model: model.into(), at_ms: 7 }
    }

    fn path() -> PathBuf {
        std::env::temp_dir().join(format!("sluicegate-journal-{}", fastrand::u64(..)))
    }

    #[test]
    fn a_restart_knows_live_jobs_and_unanswered_creates() {
        let path = path();
        let (journal, known) = Journal::open(&path).expect("new");
        assert_eq!(known, Known::default());
        for (n, id) in [(0, Some("one")), (1, None), (2, Some("two"))] {
            assert_eq!(journal.sending(origin("m")), n);
            match id {
                Some(id) => journal.started(n, id),
                None => journal.nothing(n),
            }
        }
        journal.sending(origin("unanswered"));
        journal.ended("one");
        drop(journal);
        let (journal, known) = Journal::open(&path).expect("again");
        assert_eq!(known.jobs.keys().collect::<Vec<_>>(), ["two"]);
        assert_eq!(known.uncertain.values().collect::<Vec<_>>(), [&origin("unanswered")]);
        assert_eq!(journal.sending(origin("m")), 4, "numbers are not used twice");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_cut_last_line_is_left_out_and_a_damaged_one_refused() {
        let path = path();
        let whole =
            "{\"seen\":{\"id\":\"x\",\"origin\":{\"account\":\"a\",\"client\":\"c\",\"model\":\"m\",\"at_ms\":1}}}\n";
        std::fs::write(&path, format!("{whole}{{\"end\":{{\"id\"")).expect("written");
        assert_eq!(Journal::open(&path).expect("opens").1.jobs.len(), 1);
        std::fs::write(&path, format!("garbage\n{whole}")).expect("written");
        let error = Journal::open(&path).err().expect("refused").to_string();
        assert!(error.contains(":1 is damaged") && error.contains("move the file aside"), "{error}");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn the_file_does_not_grow_with_jobs_that_ended() {
        let path = path();
        let (journal, _) = Journal::open(&path).expect("new");
        for n in 0..20_000 {
            let sent = journal.sending(origin("some-model"));
            journal.started(sent, &format!("job-{n}"));
            journal.ended(&format!("job-{n}"));
        }
        assert!(std::fs::metadata(&path).expect("there").len() <= REWRITE_ABOVE_BYTES + 1024);
        std::fs::remove_file(&path).expect("removed");
    }
}
