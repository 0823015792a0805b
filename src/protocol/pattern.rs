//! Paths with groups: `/v1/models/{owner}/{name}/predictions`. A segment is fixed text or a group; the last may be a group of all that is
//! left, `{rest*}`. The same form without a slash in front names models: `{owner}/{name}`.
//!
//! Matching compares segment by segment and allocates nothing.

/// A path with groups, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    segments: Vec<Segment>,
    /// The fixed text before the first group, or all of it.
    front: String,
}

/// In the order of precedence: what says more wins over what says less.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Fixed(String),
    One(String),
    Rest(String),
}

impl Pattern {
    /// The path of a request, from its slash.
    pub(crate) fn path(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("must be a path, from the leading slash");
        }
        Self::parse(text)
    }

    /// With or without a slash in front.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let fit = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\' | b'"');
        if !text.bytes().all(fit) {
            return Err("must be visible ASCII, without a query");
        }
        let (root, rest) = match text.strip_prefix('/') {
            Some(rest) => (vec![Segment::Fixed(String::new())], rest),
            None => (Vec::new(), text),
        };
        let segments = rest.split('/').map(Segment::parse).collect::<Result<Vec<_>, _>>()?;
        if segments.iter().rev().skip(1).any(|segment| matches!(segment, Segment::Rest(_))) {
            return Err("may have a group of all that is left, {name*}, only at its end");
        }
        let front = text.split_once('{').map_or(text, |(front, _)| front).to_owned();
        let pattern = Self { segments: root.into_iter().chain(segments).collect(), front };
        let twice = |name| pattern.groups().filter(|other| *other == name).count() > 1;
        if pattern.groups().any(twice) {
            return Err("has a group twice");
        }
        Ok(pattern)
    }

    /// Whether `path` has this form. Groups are never empty.
    pub(crate) fn matches(&self, path: &str) -> bool {
        // Most paths have another front than most patterns.
        if !path.starts_with(&self.front) {
            return false;
        }
        let mut parts = path.split('/');
        for segment in &self.segments {
            let Some(part) = parts.next() else { return false };
            match segment {
                Segment::Fixed(text) if text == part => {}
                Segment::One(_) if !part.is_empty() => {}
                Segment::Rest(_) => return !part.is_empty(),
                _ => return false,
            }
        }
        parts.next().is_none()
    }

    /// What stands for a group in a path of this form.
    pub(crate) fn group<'p>(&self, path: &'p str, name: &str) -> Option<&'p str> {
        self.segments.iter().enumerate().find_map(|(at, segment)| match segment {
            Segment::One(group) if group == name => path.split('/').nth(at),
            Segment::Rest(group) if group == name => path.splitn(at + 1, '/').nth(at),
            _ => None,
        })
    }

    /// The names of its groups.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Fixed(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(name.as_str()),
        })
    }

    /// The path with these values for its groups; `None` where one is missing. What cannot stand in a path is percent-encoded.
    pub(crate) fn fill<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Option<String> {
        let mut path = String::new();
        for (at, segment) in self.segments.iter().enumerate() {
            if at > 0 {
                path.push('/');
            }
            match segment {
                Segment::Fixed(text) => path.push_str(text),
                Segment::One(name) => encode(&mut path, value(name)?, false),
                Segment::Rest(name) => encode(&mut path, value(name)?, true),
            }
        }
        Some(path)
    }

    /// Sorts what says more before what says less, so that `/jobs/upload` is found before `/jobs/{id}`.
    pub(crate) fn precedence(&self, other: &Self) -> std::cmp::Ordering {
        let kinds = |pattern: &Self| pattern.segments.iter().map(Segment::kind).collect::<Vec<_>>();
        kinds(self).cmp(&kinds(other))
    }

    /// Whether both match the same paths.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let alike = |(a, b): (&Segment, &Segment)| match (a, b) {
            (Segment::Fixed(a), Segment::Fixed(b)) => a == b,
            _ => a.kind() == b.kind(),
        };
        self.segments.len() == other.segments.len() && self.segments.iter().zip(&other.segments).all(alike)
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(group) = text.strip_prefix('{') else {
            return match text {
                "" => Err("has an empty segment"),
                text if text.contains(['{', '}']) => Err("has braces in a segment: a group is a whole segment, {name}"),
                text => Ok(Self::Fixed(text.to_owned())),
            };
        };
        let group = group.strip_suffix('}').ok_or("has a group that is not a whole segment, {name}")?;
        let name = group.strip_suffix('*').unwrap_or(group);
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            return Err("has a group whose name is not of small letters, digits and _");
        }
        Ok(if name == group { Self::One(name.to_owned()) } else { Self::Rest(name.to_owned()) })
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Fixed(_) => 0,
            Self::One(_) => 1,
            Self::Rest(_) => 2,
        }
    }
}

/// RFC 3986 §3.3: `pchar` stays as it is, `%` included, as ids come encoded or plain.
fn encode(path: &mut String, value: &str, slashes: bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%".contains(&byte) || (slashes && byte == b'/') {
            path.push(char::from(byte));
        } else {
            let hex = |nibble: u8| char::from(HEX[usize::from(nibble & 0xf)]);
            path.extend(['%', hex(byte >> 4), hex(byte)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_group_is_one_whole_segment() {
        let status = pattern("/v1/predictions/{id}");
        for path in
            ["/v1/predictions", "/v1/predictions/", "/v1/predictions/p/more", "/v2/predictions/p", "v1/predictions/p"]
        {
            assert!(!status.matches(path), "{path}");
        }
        assert!(status.matches("/v1/predictions/p%2F1"));
        assert_eq!(status.group("/v1/predictions/p%2F1", "id"), Some("p%2F1"));
        assert_eq!(status.group("/v1/predictions/p1", "name"), None);
    }

    #[test]
    fn the_last_group_may_take_all_that_is_left() {
        let create = pattern("/{owner}/{app}/{sub*}");
        let path = "/fal-ai/kling-video/v1/standard";
        assert!(create.matches(path) && !create.matches("/fal-ai/flux") && !create.matches("/fal-ai/flux/"));
        assert_eq!((create.group(path, "app"), create.group(path, "sub")), (Some("kling-video"), Some("v1/standard")));
    }

    #[test]
    fn filling_is_the_reverse_of_matching() {
        let model = pattern("{owner}/{name}");
        let name = model.fill(|group| Some(if group == "owner" { "acme" } else { "boats" })).expect("both are there");
        assert_eq!(name, "acme/boats");
        assert!(model.matches(&name) && model.group(&name, "name") == Some("boats"));
        assert_eq!(model.fill(|_| None), None);
        let status = pattern("/v1/tasks/{id}");
        assert_eq!(status.fill(|_| Some("a b/c?d#é%20")).as_deref(), Some("/v1/tasks/a%20b%2Fc%3Fd%23%C3%A9%20"));
    }

    #[test]
    fn what_says_more_comes_first() {
        let mut patterns = [pattern("/{a}/{b*}"), pattern("/{a}/{b}"), pattern("/{a}/x"), pattern("/jobs/{id}")];
        patterns.sort_by(Pattern::precedence);
        assert_eq!(patterns, [pattern("/jobs/{id}"), pattern("/{a}/x"), pattern("/{a}/{b}"), pattern("/{a}/{b*}")]);
        assert!(pattern("/a/{id}").same(&pattern("/a/{name}")) && !pattern("/a/{id}").same(&pattern("/b/{id}")));
    }

    #[test]
    fn mistakes_are_refused() {
        for text in
            ["/a//b", "/", "/{id", "/x{id}", "/{}", "/{*}", "/{Id}", "/{a*}/b", "/{a}/{a}", "/a?b", "/a b", "/é"]
        {
            assert!(Pattern::path(text).is_err(), "{text}");
        }
        assert!(Pattern::path("v1/x").is_err() && Pattern::parse("{owner}/{name}").is_ok());
    }

    proptest! {
        #[test]
        fn what_was_filled_in_is_found_again(id in "[a-zA-Z0-9_.~%:-]{1,30}", sub in "[a-z0-9/]{1,20}") {
            prop_assume!(!sub.starts_with('/'));
            let pattern = pattern("/v1/{id}/x/{sub*}");
            let path = pattern.fill(|name| Some(if name == "id" { &*id } else { &*sub })).expect("both are there");
            prop_assert!(pattern.matches(&path));
            prop_assert_eq!(pattern.group(&path, "id"), Some(&*id));
            prop_assert_eq!(pattern.group(&path, "sub"), Some(&*sub));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[/a{}*?x]{0,12}", path in "[/ax]{0,12}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                let matches = pattern.matches(&path);
                prop_assert!(!matches || pattern.groups().all(|name| pattern.group(&path, name).is_some()));
            }
        }
    }
}
