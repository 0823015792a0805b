//! What the mock imitates: plan, way of counting, run times, manners.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use super::counter::Counter;

/// Everything that can be chosen. The default is the Free plan: 60 requests in any 60 s, 5 jobs of 2.5 s.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests per window; `None`: no limit and no rate headers.
    pub requests: Option<u32>,
    /// Length of the window.
    pub window: Duration,
    /// How requests are counted.
    pub counter: Counter,
    /// Unfinished jobs allowed at once; `None`: no limit.
    pub concurrent_jobs: Option<u32>,
    /// How long a job runs.
    pub run_time: RunTime,
    /// Run times of single models, by the name that creates use; the first that matches counts.
    pub model_run_times: Vec<(String, RunTime)>,
    /// The shape of job answers.
    pub dialect: Dialect,
    /// Accepted keys, each with its own books. Empty: any credential, all in one book.
    pub keys: Vec<String>,
    /// Whether answers carry `X-RateLimit-Remaining` and `X-RateLimit-Reset`.
    pub rate_headers: bool,
    /// Whether a status request counts as a request.
    pub count_polls: bool,
    /// Whether a request refused for the rate still takes a place in the window.
    pub count_refused: bool,
    /// Status of an accepted create.
    pub create_status: u16,
    /// Status of a create over the job limit.
    pub job_limit_status: u16,
    /// Signs webhooks; `None`: they go out unsigned.
    pub webhook_secret: Option<String>,
    /// Wait between receiving a request and counting it.
    pub count_delay: Duration,
    /// Up to this much more, by chance, so that requests are counted in another order than they were sent.
    pub count_jitter: Duration,
    /// Wait between counting a request and answering it.
    pub answer_delay: Duration,
    /// Wait between two chunks of a streamed LLM answer.
    pub llm_gap: Duration,
    /// Seed of chance, also part of the job ids.
    pub seed: u64,
    /// What the wall clock shows at the start; `None`: what it really shows.
    pub start_epoch: Option<SystemTime>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            requests: Some(60),
            window: Duration::from_secs(60),
            counter: Counter::Sliding,
            concurrent_jobs: Some(5),
            run_time: RunTime::Fixed(Duration::from_millis(2_500)),
            model_run_times: Vec::new(),
            dialect: Dialect::B,
            keys: Vec::new(),
            rate_headers: true,
            count_polls: true,
            count_refused: false,
            create_status: 201,
            job_limit_status: 429,
            webhook_secret: None,
            count_delay: Duration::ZERO,
            count_jitter: Duration::ZERO,
            answer_delay: Duration::ZERO,
            llm_gap: Duration::from_millis(20),
            seed: 0,
            start_epoch: None,
        }
    }
}

impl Options {
    /// The same in fast motion: the windows and run times divided by `speed`.
    #[must_use]
    pub fn sped_up(mut self, speed: f64) -> Self {
        let scale = |d: Duration| Duration::try_from_secs_f64(d.as_secs_f64() / speed).unwrap_or(d);
        self.window = scale(self.window);
        if let Counter::TwoBucket { short_window, .. } = &mut self.counter {
            *short_window = scale(*short_window);
        }
        for run_time in self.model_run_times.iter_mut().map(|(_, run_time)| run_time).chain([&mut self.run_time]) {
            *run_time = match *run_time {
                RunTime::Fixed(d) => RunTime::Fixed(scale(d)),
                RunTime::Uniform(low, high) => RunTime::Uniform(scale(low), scale(high)),
            };
        }
        self
    }

    /// The run time that applies to `model`.
    pub(super) fn run_time_of(&self, model: &str) -> RunTime {
        self.model_run_times.iter().find(|(name, _)| name == model).map_or(self.run_time, |&(_, run_time)| run_time)
    }
}

/// The two forms job answers are documented in, and another API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// `id`, `pending` then `succeeded`, `output`, `metrics`.
    A,
    /// `job_id`, `pending`, `processing`, then `completed`, `result`.
    #[default]
    B,
    /// All of `api.replicate.com` that its SDKs call to run a model.
    Replicate,
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "a" | "A" => Ok(Self::A),
            "b" | "B" => Ok(Self::B),
            "replicate" => Ok(Self::Replicate),
            _ => Err(format!("`{text}` is none of a, b and replicate")),
        }
    }
}

/// How long a job runs, from its create to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunTime {
    /// Always the same.
    Fixed(Duration),
    /// Evenly spread between two bounds.
    Uniform(Duration, Duration),
}

impl RunTime {
    /// `dice` is uniform on `[0, 1)`.
    pub(super) fn roll(self, dice: f64) -> Duration {
        match self {
            Self::Fixed(d) => d,
            Self::Uniform(low, high) => low + high.saturating_sub(low).mul_f64(dice),
        }
    }
}

/// Reads `2.5s` or `1s..3s`.
impl FromStr for RunTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("..") {
            None => parse_duration(text).map(Self::Fixed),
            Some((low, high)) => {
                let (low, high) = (parse_duration(low)?, parse_duration(high)?);
                if low > high {
                    return Err(format!("`{text}` ends before it starts"));
                }
                Ok(Self::Uniform(low, high))
            }
        }
    }
}

/// Reads durations such as `60s`, `2.5s`, `1m30s`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|_| format!("`{text}` is not a duration like 2.5s"))?;
    Duration::try_from(signed).map_err(|_| format!("`{text}` is negative"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_times_are_fixed_or_a_range() {
        assert_eq!("2.5s".parse(), Ok(RunTime::Fixed(Duration::from_millis(2_500))));
        let range: RunTime = "1s..3s".parse().expect("a range");
        assert_eq!(range.roll(0.5), Duration::from_secs(2));
        for text in ["3s..1s", "-1s", "", "fast"] {
            assert!(text.parse::<RunTime>().is_err(), "{text}");
        }
    }

    #[test]
    fn speed_divides_windows_and_run_times() {
        let fast = Options::default().sped_up(10.0);
        assert_eq!((fast.window, fast.run_time), (Duration::from_secs(6), RunTime::Fixed(Duration::from_millis(250))));
    }
}
