//! Waiting for what tells nobody when it comes.

use std::fmt::{Debug, Display};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Nothing that is waited for takes this long unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again, until it finds what is waited for; returns what it saw then. A look says whether that is so, and what it saw.
///
/// For what can be asked only. Where something tells of its end, that is what to wait for.
pub async fn until<S, F>(what: impl Display, mut look: impl FnMut() -> F) -> S
where
    S: Debug,
    F: Future<Output = (bool, S)>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        let (found, seen) = look().await;
        if found {
            return seen;
        }
        assert!(Instant::now() < end, "never {what}: {seen:?}");
        sleep(Duration::from_millis(10)).await;
    }
}
