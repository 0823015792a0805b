//! Which way of counting requests the mock imitates: the choice only. `super::meter` does the counting.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::options::parse_duration;

/// How requests per window are counted. The service does not say which one it uses, so tests try them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counter {
    /// Windows aligned to the epoch; the count starts again at each boundary.
    Fixed,
    /// A window starts with the first request after the previous one ended.
    Anchored,
    /// An exact log: never more than the limit in any window.
    Sliding,
    /// A bucket refilled at limit per window; full at the start.
    TokenBucket {
        /// Requests usable at once; `None`: the limit.
        capacity: Option<u32>,
    },
    /// A sliding window with a second, short one inside.
    TwoBucket {
        /// Most requests in any short window.
        short_limit: u32,
        /// Length of the short window.
        short_window: Duration,
    },
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed => f.write_str("fixed"),
            Self::Anchored => f.write_str("anchored"),
            Self::Sliding => f.write_str("sliding"),
            Self::TokenBucket { capacity: None } => f.write_str("token-bucket"),
            Self::TokenBucket { capacity: Some(n) } => write!(f, "token-bucket:{n}"),
            Self::TwoBucket { short_limit, short_window } => {
                write!(f, "two-bucket:{short_limit}/{}s", short_window.as_secs_f64())
            }
        }
    }
}

impl FromStr for Counter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let count = |digits: &str| match digits.parse() {
            Ok(0) | Err(_) => Err(format!("`{digits}` is not a count of at least 1")),
            Ok(n) => Ok(n),
        };
        match (name, rest) {
            ("fixed", None) => Ok(Self::Fixed),
            ("anchored", None) => Ok(Self::Anchored),
            ("sliding", None) => Ok(Self::Sliding),
            ("token-bucket", None) => Ok(Self::TokenBucket { capacity: None }),
            ("token-bucket", Some(n)) => Ok(Self::TokenBucket { capacity: Some(count(n)?) }),
            ("two-bucket", None) => Ok(Self::TwoBucket { short_limit: 10, short_window: Duration::from_secs(1) }),
            ("two-bucket", Some(rest)) => {
                let (n, per) = rest.split_once('/').ok_or("two-bucket is written like two-bucket:10/1s")?;
                Ok(Self::TwoBucket { short_limit: count(n)?, short_window: parse_duration(per)? })
            }
            _ => Err(format!(
                "`{text}` is not one of fixed, anchored, sliding, token-bucket[:CAPACITY], two-bucket[:LIMIT/WINDOW]"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_read_as_it_is_written() {
        for text in ["fixed", "anchored", "sliding", "token-bucket", "token-bucket:6", "two-bucket:10/1s"] {
            assert_eq!(text.parse::<Counter>().map(|counter| counter.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("two-bucket".parse::<Counter>(), "two-bucket:10/1s".parse());
        for text in ["", "fixed:3", "token-bucket:0", "two-bucket:10", "two-bucket:10/x", "leaky"] {
            assert!(text.parse::<Counter>().is_err(), "{text}");
        }
    }
}
