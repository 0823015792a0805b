//! Where attempts go: the upstream's authority and prefix, below which the caller's path and query stay as they are.

use http::{HeaderValue, Uri, uri};

/// Where attempts go.
pub(crate) struct Target {
    scheme: uri::Scheme,
    authority: uri::Authority,
    /// The authority as a Host field.
    pub(crate) host: HeaderValue,
    prefix: String,
}

impl Target {
    /// From a URL that has a scheme and an authority; `None` otherwise.
    pub(crate) fn new(url: &Uri) -> Option<Self> {
        let authority = url.authority()?.clone();
        let host = HeaderValue::from_str(authority.as_str()).ok()?;
        let prefix = url.path().trim_end_matches('/').to_owned();
        Some(Self { scheme: url.scheme()?.clone(), authority, host, prefix })
    }

    /// The target of an attempt: the caller's path and query byte for byte, below the upstream's prefix.
    pub(crate) fn origin_form(&self, path: &str, query: Option<&str>) -> Option<Uri> {
        let mut target = format!("{}{path}", self.prefix);
        if let Some(query) = query.filter(|query| !query.is_empty()) {
            target.push('?');
            target.push_str(query);
        }
        target.parse().ok()
    }

    /// The target of an attempt for a path and query that stay whole: taken as they were parsed, where there is no prefix.
    pub(crate) fn same(&self, uri: &Uri, query: Option<&str>) -> Option<Uri> {
        match uri.path_and_query().filter(|_| self.prefix.is_empty()) {
            Some(whole) => Some(Uri::from(whole.clone())),
            None => self.origin_form(uri.path(), query),
        }
    }

    /// What stands behind the origin and the prefix in a URL of the upstream; `None` where it is another's.
    pub(crate) fn path_of<'u>(&self, url: &'u str) -> Option<&'u str> {
        let (scheme, rest) = url.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let port = if self.scheme == uri::Scheme::HTTPS { ":443" } else { ":80" };
        let plain = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
        if !scheme.eq_ignore_ascii_case(self.scheme.as_str()) || plain(authority) != plain(self.authority.as_str()) {
            return None;
        }
        path.strip_prefix(self.prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
    }

    pub(crate) fn absolute(&self, origin_form: &Uri) -> Uri {
        let mut parts = origin_form.clone().into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        Uri::from_parts(parts).unwrap_or_else(|_| origin_form.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_of_the_upstream_are_its_own() {
        let target = Target::new(&"https://API.example.test/base".parse().expect("a URL")).expect("a target");
        let path = |url| target.path_of(url);
        assert_eq!(path("HTTPS://api.Example.test:443/base/v1/x?q#f"), Some("/v1/x?q#f"));
        assert_eq!(
            (path("https://api.example.test/base"), path("https://api.example.test/base?q")),
            (Some(""), Some("?q"))
        );
        for other in [
            "http://api.example.test/base/v1",
            "https://api.example.test.evil/base/v1",
            "https://api.example.test@evil/base/v1",
            "https://evil/base/v1?https://api.example.test/base",
            "https://api.example.test:444/base/v1",
            "https://api.example.test/baseball",
            "https://api.example.test/other",
            "/base/v1",
            "",
        ] {
            assert_eq!(path(other), None, "{other}");
        }
    }

    #[test]
    fn paths_go_up_byte_for_byte_below_the_prefix() {
        let target = Target::new(&"https://api.example.test/base/".parse().expect("a URL")).expect("a target");
        let uri = target.origin_form("/v1/a%2Fb/x:y//z", Some("q=%41&&")).expect("valid");
        assert_eq!(uri, "/base/v1/a%2Fb/x:y//z?q=%41&&");
        assert_eq!(target.absolute(&uri), "https://api.example.test/base/v1/a%2Fb/x:y//z?q=%41&&");
    }
}
