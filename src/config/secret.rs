//! A value that is shown nowhere.
//!
//! Where secrets come from (environment, file, command) is resolved by the configuration; this type only keeps them from leaking.

use secrecy::{ExposeSecret, SecretString};

/// An API key or token. `Debug` prints `[redacted]`, there is no `Display`, and the memory is zeroed on drop.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes a secret out of what a file, variable or command held.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The value itself. Every call is a place where a key could leak: the header to the upstream, and comparisons.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}
