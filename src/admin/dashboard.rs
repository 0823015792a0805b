//! The dashboard: one page in the program, that asks nobody but this port.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// One script, no modules: browsers send an `Origin` for those, which this port refuses whatever it says.
const APP: &str = concat!(
    "'use strict';\n{\n",
    include_str!("dashboard/dom.js"),
    include_str!("dashboard/accounts.js"),
    include_str!("dashboard/charts.js"),
    include_str!("dashboard/tables.js"),
    include_str!("dashboard/app.js"),
    "}\n",
);

/// By path: media type and text.
const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("dashboard/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("/theme.js", SCRIPT, include_str!("dashboard/theme.js")),
    ("/app.js", SCRIPT, APP),
];

/// Nothing from elsewhere, nothing inline, no frame around it, no form, and no markup from strings: job ids and names of models are
/// other people's text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// On every answer of the port.
const FIELDS: [(HeaderName, HeaderValue); 6] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-embedder-policy"), HeaderValue::from_static("require-corp")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// The file of the page at this path, with its media type.
pub(super) fn file(path: &str) -> Option<(&'static str, Bytes)> {
    let (_, form, text) = FILES.iter().find(|(name, ..)| *name == path)?;
    Some((form, Bytes::from_static(text.as_bytes())))
}

/// Tells browsers what the answer may not be used for.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in FIELDS {
        headers.insert(name, value);
    }
}
