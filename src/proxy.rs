//! The way of one request.

/// Its place among those who wait, and the permission to go.
pub(crate) mod queue;

/// How much may leave.
pub(crate) mod quota;
