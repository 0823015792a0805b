//! The program as its users meet it: arguments in, lines and exit codes out.

/// Words.
mod words;

/// Configuration.
mod configuration;

/// The proxy itself.
mod serving;

/// What asks it.
mod asking;

/// What it runs.
mod exec;

/// The imitated API.
mod imitation;

const CREATE: &str =
    "POST /v1/predictions HTTP/1.1\nContent-Type: application/json\n\n{\"model\": \"flux\", \"input\": {}}";
