//! Keeping the key in this process: no core dump of it, and no look into it by others of the same user.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Called before the key is read. `heirs`: this process runs a command of the user's, which must keep its own right to dump core.
/// Returns what could not be done, for the log.
pub(super) fn keep_memory(heirs: bool) -> Option<String> {
    let undumpable = undumpable();
    // Limits are inherited, the other is not.
    let limited = if heirs { Ok(()) } else { setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) };
    let error = undumpable.and(limited).err()?;
    Some(format!("core dumps cannot be turned off ({error}): one of this process would hold the API key"))
}

/// Linux then also keeps `/proc/PID/environ` and `/proc/PID/mem` from other processes of the same user, and refuses to be traced by them.
#[cfg(target_os = "linux")]
fn undumpable() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

#[cfg(not(target_os = "linux"))]
fn undumpable() -> rustix::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn no_core_is_dumped_and_nobody_looks_in() {
        let before = getrlimit(Resource::Core);
        assert_eq!(keep_memory(true), None);
        assert_eq!(getrlimit(Resource::Core), before, "the command's own");
        assert_eq!(keep_memory(false), None);
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        #[cfg(target_os = "linux")]
        assert!(matches!(rustix::process::dumpable_behavior(), Ok(rustix::process::DumpableBehavior::NotDumpable)));
    }
}
