//! The machine's boot clock and the boot's name: time that survives the process, does not follow steps of the wall clock and counts
//! suspended time, for as long as the machine stays up.

use std::time::Duration;

/// Since the machine started.
pub(crate) fn clock() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Names this boot; empty where the system does not tell, and then every restart counts as a reboot.
pub(crate) fn id() -> String {
    let mut id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.retain(|char| char.is_ascii_hexdigit());
    id.truncate(32);
    id
}
