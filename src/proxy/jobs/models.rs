//! What is known of each model: its run times, and which of its jobs live. And of each account: how long it holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::took::Took;
use crate::proxy::rules::means;

use super::learn::{Belief, RunTimes};

/// Jobs of a model that are planned anew when one has ended. The others follow when their time comes.
const REPLANNED: usize = 64;
/// Most models remembered, some 130 KB each when learned: names are free text from callers.
const MOST_MODELS: usize = 1_000;
/// How long an answer may take, at the usual distances.
const ROUND_TRIP: Duration = Duration::from_millis(100);
/// What one job's holding time keeps when the next one is known.
const KEEP: f64 = 0.8;

/// One lock for both, never held over an await: a job's end touches all of it, once.
pub(crate) struct Models(Mutex<Known>);

struct Known {
    models: HashMap<Arc<str>, Model>,
    /// How long a job of each account keeps its slot, of late, in seconds.
    held_secs: Vec<Option<f64>>,
}

#[derive(Default)]
struct Model {
    times: RunTimes,
    /// Learned since it was last kept.
    fresh: bool,
    /// When the probe is looked at.
    probed: Option<Instant>,
    live: BTreeSet<(Instant, String)>,
}

/// What is known of the run time of a job that was seen to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    /// When it was last known to run.
    pub(crate) running: Instant,
    /// What the upstream says that it took.
    pub(crate) told: Option<Took>,
}

impl Ran {
    /// The run time is longer than the first and at most the second. What the upstream says counts where looks do not contradict it.
    fn bounds(self, started: Instant, now: Instant) -> (Duration, Duration) {
        let (over, within) = (self.running.saturating_duration_since(started), now - started);
        // Its clock starts before the answer to the create is here, and answers take their time.
        let slack = ROUND_TRIP + within / 50;
        let agrees = |told: &Took| told.most + slack >= over && told.least <= within + slack;
        let told = self.told.filter(agrees);
        told.map_or((over, within), |told| (told.least.clamp(over, within), told.most.clamp(over, within)))
    }
}

impl Models {
    pub(crate) fn new(accounts: usize) -> Self {
        Self(Mutex::new(Known { models: HashMap::new(), held_secs: vec![None; accounts] }))
    }

    /// There are so many accounts now; never fewer than before.
    pub(crate) fn know(&self, accounts: usize) {
        self.lock().held_secs.resize(accounts, None);
    }

    /// A job lives.
    pub(crate) fn started(&self, model: &Arc<str>, at: Instant, id: &str) {
        let mut known = self.lock();
        if known.models.len() >= MOST_MODELS && !known.models.contains_key(model) {
            known.models.retain(|_, model| !model.live.is_empty());
        }
        known.models.entry(Arc::clone(model)).or_default().live.insert((at, id.to_owned()));
    }

    /// How long a job of this account keeps its slot, of late.
    pub(crate) fn held(&self, account: usize) -> Option<Duration> {
        self.lock().held_secs[account].and_then(|secs| Duration::try_from_secs_f64(secs).ok())
    }

    /// A job lives no longer. `ran`: what is known of its run time, if its end was seen.
    pub(crate) fn ended(
        &self,
        model: &Arc<str>,
        account: usize,
        id: &str,
        started: Instant,
        ran: Option<Ran>,
        now: Instant,
    ) {
        let mut known = self.lock();
        let held = (now - started).as_secs_f64();
        let held_secs = &mut known.held_secs[account];
        *held_secs = Some(held_secs.map_or(held, |before| before * KEEP + held * (1.0 - KEEP)));
        let Some(model) = known.models.get_mut(model) else { return };
        model.live.remove(&(started, id.to_owned()));
        if let Some(ran) = ran {
            let (over, within) = ran.bounds(started, now);
            model.times.learn(over, within);
            model.fresh = true;
        }
    }

    /// What was learned since the last call, by model, to be kept.
    pub(crate) fn changed(&self) -> Vec<(String, Vec<u8>)> {
        let mut known = self.lock();
        let saved = known.models.iter_mut().filter_map(|(name, model)| {
            let fresh = std::mem::take(&mut model.fresh);
            fresh.then(|| (name.to_string(), serde_json::to_vec(&model.times.save()).unwrap_or_default()))
        });
        saved.collect()
    }

    /// Takes up what an earlier process kept. What cannot be read is learned anew.
    pub(crate) fn restore(&self, kept: Vec<(String, Vec<u8>)>) {
        let mut known = self.lock();
        for (name, data) in kept {
            let saved: Vec<Belief> = serde_json::from_slice(&data).unwrap_or_default();
            known.models.entry(name.into()).or_default().times = RunTimes::restore(&saved);
        }
    }

    /// The probe of a model is looked at then.
    pub(crate) fn probe_at(&self, model: &str, due: Instant) {
        if let Some(model) = self.lock().models.get_mut(model) {
            model.probed = Some(due);
        }
    }

    /// When there is news of a model of which nothing is known; `None` where something is.
    pub(crate) fn news(&self, model: &str) -> Option<Instant> {
        self.lock().models.get(model).filter(|model| model.times.is_empty())?.probed
    }

    /// Live jobs of a model, oldest first, as many as are worth planning anew.
    pub(crate) fn live(&self, model: &str) -> Vec<String> {
        let known = self.lock();
        let live = known.models.get(model).into_iter().flat_map(|model| &model.live);
        live.take(REPLANNED).map(|(_, id)| id.clone()).collect()
    }

    /// Asks what is known of a model. The second is its oldest live job, which is its probe, `None` where the model is not known; the
    /// third is how many others live.
    pub(crate) fn with<T>(&self, model: &str, ask: impl FnOnce(&RunTimes, Option<&str>, u32) -> T) -> T {
        let known = self.lock();
        match known.models.get(model) {
            Some(model) => {
                let others = u32::try_from(model.live.len().saturating_sub(1)).unwrap_or(u32::MAX);
                ask(&model.times, Some(model.live.first().map_or("", |(_, first)| first)), others)
            }
            None => ask(&RunTimes::default(), None, 0),
        }
    }

    /// What is known of a model, by its name or by the last segments of it; `None` where nothing was learned.
    pub(crate) fn learned<T>(&self, model: &str, ask: impl FnOnce(&RunTimes) -> T) -> Option<T> {
        let known = self.lock();
        let learned = |model: &&Model| !model.times.is_empty();
        let by_name = known.models.get(model).filter(learned);
        let meant = || {
            let like = known.models.iter().filter(|(name, known)| learned(known) && means(model, name));
            like.min_by_key(|(name, _)| *name).map(|(_, known)| known)
        };
        by_name.or_else(meant).map(|known| ask(&known.times))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_time_that_no_look_agrees_with_is_not_believed() {
        let secs = Duration::from_secs_f64;
        let started = Instant::now();
        let (running, now) = (started + secs(2.0), started + secs(3.0));
        let bounds = |told: Option<Duration>| Ran { running, told: told.map(Took::exactly) }.bounds(started, now);
        let seen = (secs(2.0), secs(3.0));
        assert_eq!(bounds(None), seen);
        assert_eq!(bounds(Some(secs(2.5))), (secs(2.5), secs(2.5)));
        assert_eq!(bounds(Some(secs(3.1))), (secs(3.0), secs(3.0)), "its clock started before ours");
        for wrong in [0.0, 0.4, 1.8, 3.3, 1e9] {
            assert_eq!(bounds(Some(secs(wrong))), seen, "{wrong}");
        }
        let rough = |least, most| Ran { running, told: Some(Took { least: secs(least), most: secs(most) }) };
        let bounds = |rough: Ran| rough.bounds(started, now);
        assert_eq!(bounds(rough(1.0, 2.25)), (secs(2.0), secs(2.25)), "a clock of whole seconds tells something too");
        assert_eq!(bounds(rough(2.5, 4.5)), (secs(2.5), secs(3.0)));
        assert_eq!(bounds(rough(0.5, 1.5)), seen, "another job's");
    }
}
