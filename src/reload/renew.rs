//! A key that the upstream refuses with 401 may have been replaced a moment ago: it is read again from where it came, once for all who
//! were refused with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Refused, Reloader};
use crate::config;
use crate::protocol::Family;

/// After a key was read again for nothing: doubled each time, so that a key that stays wrong costs nothing.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// By account: until when its key is not read again, and the pause after that. Held while a key is read, so that one reads for all.
#[derive(Default)]
pub(super) struct Renewing(Mutex<HashMap<usize, (Instant, Duration)>>);

impl Reloader {
    /// The account's header as it is now.
    pub(crate) fn header(&self, account: usize, family: Family) -> Header {
        self.latest.load().account(account).key.header(family)
    }

    fn other_key(&self, account: usize, family: Family, used: &HeaderValue) -> Option<Header> {
        Some(self.header(account, family)).filter(|(_, now)| now != used)
    }

    /// Another key than `used`, which the upstream has refused: from a reload in between, or read again now.
    pub(crate) async fn renew(self: &Arc<Self>, account: usize, family: Family, used: &HeaderValue) -> Option<Header> {
        if let Some(header) = self.other_key(account, family, used) {
            return Some(header);
        }
        let mut pauses = self.renewing.0.lock().await;
        if let Some(header) = self.other_key(account, family, used) {
            return Some(header);
        }
        let now = Instant::now();
        if pauses.get(&account).is_some_and(|(until, _)| now < *until) {
            return None;
        }
        let reloader = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || reloader.read_key(account));
        let header = if read.await.unwrap_or(false) { self.other_key(account, family, used) } else { None };
        if header.is_some() {
            pauses.remove(&account);
        } else {
            let pause = pauses.get(&account).map_or(FIRST_PAUSE, |(_, pause)| (*pause * 2).min(LONGEST_PAUSE));
            pauses.insert(account, (Instant::now() + pause, pause));
        }
        header
    }

    /// True if the key is another one now, and in force.
    fn read_key(&self, account: usize) -> bool {
        let name = self.latest.load().account(account).name.clone();
        let spring =
            self.inner().running.accounts.iter().find(|known| known.name == name).map(|known| known.spring.clone());
        // An account that has left the configuration keeps its key.
        let Some(spring) = spring else { return false };
        let secret = match spring.read() {
            Ok(secret) => secret,
            Err(reason) => {
                tracing::error!(account = name, reason, "the upstream refused the key, and it cannot be read again");
                return false;
            }
        };
        let mut inner = self.inner();
        let mut config = inner.running.clone();
        let Some(known) = config.accounts.iter_mut().find(|known| known.name == name) else { return false };
        if inner.ended || known.spring != spring || known.key == secret {
            return false;
        }
        known.key = secret;
        let put = config::change(&inner.running, config).map_err(Refused::Fixed);
        if let Err(refused) = put.and_then(|change| self.put(&mut inner, change.config)) {
            tracing::error!(account = name, reason = %refused, "the key was read again, but does not fit");
            return false;
        }
        self.latest.load().reloads.renewed(&name);
        true
    }
}

/// A header with a key in it, marked as sensitive.
pub(crate) type Header = (HeaderName, HeaderValue);
