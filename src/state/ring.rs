//! When attempts were sent, in a small fixed file of 16-byte entries, written in a ring.
//!
//! Time is the kernel's boot clock: it survives the process, does not follow steps of the wall clock and counts suspended time. An entry
//! is written *before* its attempt. At large plans one entry stands for a few attempts that may follow within 1/256 of the window, so
//! that the write is not paid each time; a crash then counts at most 1/256 of the plan too much, never too little.
//!
//! After a reboot, or when an entry is torn, the window counts as full for W + J.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::Requests;
use crate::proxy::quota::window::WindowLog;

use super::boot;

const MAGIC: [u8; 8] = *b"SLGRING1";
const HEADER: usize = 64;
const ENTRY: usize = 16;
/// More than two windows' worth: at most 256 full leases and 256 that lapsed with time.
const ENTRIES: u64 = 1024;
const LEASES_A_WINDOW: u32 = 256;

/// The open file of one account.
pub(crate) struct Ring {
    path: PathBuf,
    file: File,
    clock: Clock,
    earlier: Earlier,
    next: u64,
    window: Duration,
    jitter: Duration,
    /// Attempts an entry stands for.
    chunk: u32,
    lease: Option<Lease>,
    failed: bool,
}

struct Lease {
    until: Instant,
    left: u32,
}

/// What the file said when it was opened.
#[derive(Debug, PartialEq, Eq)]
enum Earlier {
    /// (boot time in nanoseconds, attempts)
    Sent(Vec<(u64, u32)>),
    /// A reboot or damage: nothing can be said, so everything may have been sent.
    Unknown,
}

impl Ring {
    pub(crate) fn open(path: &Path, requests: &Requests, clock: Clock) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let boot = boot::id().into_bytes();
        let (earlier, next) = parse(&bytes, &boot);
        let whole = bytes.len() == HEADER + ENTRY * usize::try_from(ENTRIES).unwrap_or_default();
        if earlier == Earlier::Unknown || !whole {
            file.set_len(0)?;
            file.set_len(HEADER as u64 + ENTRY as u64 * ENTRIES)?;
            let mut header = [0; HEADER];
            header[..8].copy_from_slice(&MAGIC);
            header[8..8 + boot.len()].copy_from_slice(&boot);
            file.write_all_at(&header, 0)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            clock,
            earlier,
            next,
            window: requests.window,
            jitter: requests.jitter,
            chunk: chunk(requests),
            lease: None,
            failed: false,
        })
    }

    /// From now on for another plan. A longer window may reach back beyond what the file still has: it says so.
    pub(crate) fn replan(&mut self, requests: &Requests) {
        let longer = requests.window > self.window || requests.jitter > self.jitter;
        if chunk(requests) != self.chunk || requests.window != self.window {
            self.lease = None;
        }
        (self.window, self.jitter, self.chunk) = (requests.window, requests.jitter, chunk(requests));
        if longer {
            self.fill();
        }
    }

    /// Notes that the window counts as full from now on.
    pub(crate) fn fill(&mut self) {
        self.write(nanos(self.clock.boot()), u32::MAX);
    }

    /// Goes on in another file, with all that this one has. What the upstream may count with the old key, it may count with the new one.
    pub(crate) fn follow(&mut self, path: &Path) {
        if path == self.path {
            return;
        }
        let moved = std::fs::copy(&self.path, path).and_then(|_| OpenOptions::new().read(true).write(true).open(path));
        match moved {
            Ok(file) => (self.file, self.path) = (file, path.to_owned()),
            Err(error) => {
                tracing::error!(%error, "the window log cannot follow its key: a restart may not know what was sent");
            }
        }
    }

    /// Counts what an earlier process sent.
    pub(crate) fn restore(&mut self, log: &mut WindowLog, now: Instant) {
        let boot_now = nanos(self.clock.boot());
        let held = self.window + self.jitter;
        match std::mem::replace(&mut self.earlier, Earlier::Sent(Vec::new())) {
            Earlier::Unknown => {
                log.fill(now + held);
                // Kept for a process that is killed before this one's window has passed.
                self.write(boot_now, u32::MAX);
            }
            Earlier::Sent(entries) => {
                for (sent, count) in entries {
                    let age = Duration::from_nanos(boot_now.saturating_sub(sent));
                    if sent > boot_now.saturating_add(nanos(self.window)) || count == u32::MAX {
                        log.fill(now + held.saturating_sub(if count == u32::MAX { age } else { Duration::ZERO }));
                    } else if age < held {
                        log.occupy(
                            now + (Duration::from_nanos(sent) + held).saturating_sub(Duration::from_nanos(boot_now)),
                            count,
                        );
                    }
                }
            }
        }
    }

    /// Notes that an attempt is about to be written.
    pub(crate) fn record(&mut self, now: Instant) {
        if let Some(lease) = &mut self.lease
            && lease.left > 0
            && now < lease.until
        {
            lease.left -= 1;
            return;
        }
        let valid = if self.chunk > 1 { self.window / LEASES_A_WINDOW } else { Duration::ZERO };
        self.write(nanos(self.clock.boot() + valid), self.chunk);
        self.lease = (self.chunk > 1).then(|| Lease { until: now + valid, left: self.chunk - 1 });
    }

    fn write(&mut self, at: u64, count: u32) {
        let slot = self.next % ENTRIES;
        self.next += 1;
        if let Err(error) = self.file.write_all_at(&encode(at, count), HEADER as u64 + slot * ENTRY as u64)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!(%error, "the window log cannot be written: a restart may not know what was sent");
        }
    }
}

/// Attempts that an entry stands for.
fn chunk(requests: &Requests) -> u32 {
    requests.limit.get().div_ceil(LEASES_A_WINDOW)
}

fn encode(at: u64, count: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..8].copy_from_slice(&at.to_le_bytes());
    entry[8..12].copy_from_slice(&count.to_le_bytes());
    let sum = checksum(&entry[..12]);
    entry[12..].copy_from_slice(&sum.to_le_bytes());
    entry
}

fn decode(entry: &[u8; ENTRY]) -> Option<(u64, u32)> {
    let (body, sum) = entry.split_at(12);
    if checksum(body).to_le_bytes() != *sum {
        return None;
    }
    let (at, count) = body.split_at(8);
    Some((u64::from_le_bytes(at.try_into().ok()?), u32::from_le_bytes(count.try_into().ok()?)))
}

/// The entries, and the index after the newest.
fn parse(bytes: &[u8], boot: &[u8]) -> (Earlier, u64) {
    if bytes.is_empty() {
        return (Earlier::Sent(Vec::new()), 0);
    }
    if bytes.len() < HEADER || bytes[..8] != MAGIC || boot.is_empty() || !bytes[8..HEADER].starts_with(boot) {
        return (Earlier::Unknown, 0);
    }
    let mut entries = Vec::new();
    let (mut newest, mut next) = (0, 0);
    for (index, entry) in (1_u64..).zip(bytes[HEADER..].as_chunks::<ENTRY>().0) {
        if entry.iter().all(|byte| *byte == 0) {
            continue;
        }
        let Some((at, count)) = decode(entry) else {
            return (Earlier::Unknown, 0);
        };
        if at >= newest {
            (newest, next) = (at, index);
        }
        entries.push((at, count));
    }
    (Earlier::Sent(entries), next)
}

/// FNV-1a, 32 bits: finds a torn entry, no more is asked of it.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn requests(limit: u32) -> Requests {
        Requests {
            limit: NonZeroU32::new(limit).expect("not zero"),
            window: Duration::from_secs(60),
            jitter: Duration::from_millis(1500),
        }
    }

    struct Dir(PathBuf);
    impl Dir {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("sluicegate-ring-{}", fastrand::u64(..))))
        }
        fn free_after_restart(&self, limit: u32) -> (u32, WindowLog, Ring) {
            let requests = requests(limit);
            let now = Instant::now();
            let mut ring = Ring::open(&self.0, &requests, Clock::system()).expect("opens");
            let mut log = WindowLog::new(limit, requests.window, requests.jitter, now);
            ring.restore(&mut log, now);
            (log.free(now), log, ring)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_restart_knows_what_was_sent() {
        let dir = Dir::new();
        let (free, _, mut ring) = dir.free_after_restart(60);
        assert_eq!(free, 60);
        (0..45).for_each(|_| ring.record(Instant::now()));
        drop(ring);
        let (free, mut log, mut ring) = dir.free_after_restart(60);
        assert_eq!(free, 15);
        assert_eq!(log.free(Instant::now() + Duration::from_secs(62)), 60);
        (0..15).for_each(|_| ring.record(Instant::now()));
        drop(ring);
        assert_eq!(dir.free_after_restart(60).0, 0, "both processes count");
    }

    #[test]
    fn large_plans_are_written_in_leases_and_counted_on_the_safe_side() {
        let dir = Dir::new();
        let (_, _, mut ring) = dir.free_after_restart(25_600);
        let now = Instant::now();
        (0..150).for_each(|_| ring.record(now));
        assert_eq!(ring.next, 2);
        drop(ring);
        assert_eq!(dir.free_after_restart(25_600).0, 25_400);
    }

    #[test]
    fn damage_and_reboots_count_as_a_full_window() {
        let dir = Dir::new();
        let (_, _, mut ring) = dir.free_after_restart(60);
        ring.record(Instant::now());
        drop(ring);
        let whole = std::fs::read(&dir.0).expect("readable");
        for index in [3, 10, HEADER + 5, HEADER + 13] {
            let mut torn = whole.clone();
            torn[index] ^= 0xff;
            std::fs::write(&dir.0, torn).expect("writable");
            assert_eq!(dir.free_after_restart(60).0, 0, "byte {index}");
            assert_eq!(dir.free_after_restart(60).0, 0, "still full for the next process, byte {index}");
        }
        std::fs::write(&dir.0, &whole[..HEADER - 1]).expect("writable");
        assert_eq!(dir.free_after_restart(60).0, 0);
    }
}
