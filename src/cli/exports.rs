//! The variables that point SDKs at the proxy: `sluicegate env` prints them, `exec` sets them.

use clap::{Args, ValueEnum};

use super::{ConfigFlags, Failure, base_url, glance, say, start};

/// Arguments of `env`.
#[derive(Debug, Args)]
pub(super) struct EnvArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// Whose syntax
    #[arg(long, value_enum, default_value_t = Syntax::Sh)]
    shell: Syntax,
}

/// How a shell sets a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Syntax {
    Sh,
    Fish,
    Powershell,
}

/// What SDKs send as a key that they insist on. The proxy drops it.
pub(super) const PLACEHOLDER: &str = "sluicegate";
/// The keys that SDKs insist on.
const SDK_KEYS: [&str; 3] = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"];

/// The key that Replicate's SDKs insist on.
const REPLICATE_KEY: &str = "REPLICATE_API_TOKEN";

/// The keys that the SDKs of a protocol insist on.
pub(super) fn sdk_keys(protocol: &str) -> impl Iterator<Item = &'static str> + use<> {
    SDK_KEYS.into_iter().chain((protocol == "replicate").then_some(REPLICATE_KEY))
}

/// Base URL variables for a proxy at `base`. Replicate's only where Replicate is behind it.
pub(super) fn base_urls(base: &str, protocol: &str) -> Vec<(&'static str, String)> {
    let mut urls = vec![
        ("CORE_API_BASE", base.to_owned()),
        ("CORE_API_URL", base.to_owned()),
        ("OPENAI_BASE_URL", format!("{base}/llm/openai/v1")),
        ("ANTHROPIC_BASE_URL", format!("{base}/llm/anthropic")),
        ("GOOGLE_GEMINI_BASE_URL", format!("{base}/llm/gemini")),
    ];
    if protocol == "replicate" {
        urls.push(("REPLICATE_BASE_URL", base.to_owned()));
    }
    urls
}

pub(super) fn env(args: EnvArgs, above: ConfigFlags) -> Result<u8, Failure> {
    let glance = glance::glance(&start::sources(args.flags.or(above))?).map_err(Failure::wrong)?;
    if glance.listen.port() == 0 {
        return Err(Failure::wrong("the port is 0, any free one: name the one of the ready line with --listen"));
    }
    say(lines(&base_url(glance.listen), &glance.protocol, glance.has_clients, args.shell));
    Ok(0)
}

/// Comments stand last: an `eval` that joins the lines must not lose any to them.
fn lines(base: &str, protocol: &str, has_clients: bool, shell: Syntax) -> String {
    let mut lines: Vec<String> = base_urls(base, protocol).iter().map(|(name, value)| shell.set(name, value)).collect();
    if !has_clients {
        lines.extend(sdk_keys(protocol).map(|name| shell.set(name, PLACEHOLDER)));
    }
    lines.push(match shell {
        Syntax::Sh => "# use: eval \"$(sluicegate env)\"".to_owned(),
        Syntax::Fish => "# use: sluicegate env --shell fish | source".to_owned(),
        Syntax::Powershell => "# use: sluicegate env --shell powershell | Out-String | Invoke-Expression".to_owned(),
    });
    if has_clients {
        lines.push("# each app sends its client's token as its key: OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY, X-API-Key".to_owned());
    }
    lines.push("# the google-genai SDK also needs http_options={\"api_version\": \"v1beta\"}".to_owned());
    lines.join("\n")
}

impl Syntax {
    /// Values are URLs of addresses and one word: nothing in them needs quotes.
    fn set(self, name: &str, value: &str) -> String {
        match self {
            Self::Sh => format!("export {name}={value}"),
            Self::Fish => format!("set -gx {name} {value}"),
            Self::Powershell => format!("$env:{name} = \"{value}\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_its_words() {
        let base = "http://127.0.0.1:8787";
        let sh = lines(base, "core.today", false, Syntax::Sh);
        assert!(sh.contains("export OPENAI_BASE_URL=http://127.0.0.1:8787/llm/openai/v1\n"), "{sh}");
        assert!(sh.contains("export OPENAI_API_KEY=sluicegate\n"), "{sh}");
        assert!(!sh.contains("CORE_API_KEY"), "it would take the key from a proxy started there");
        let fish = lines(base, "core.today", false, Syntax::Fish);
        assert!(fish.contains("set -gx ANTHROPIC_BASE_URL http://127.0.0.1:8787/llm/anthropic\n"), "{fish}");
        let powershell = lines(base, "core.today", false, Syntax::Powershell);
        assert!(
            powershell.contains("$env:GOOGLE_GEMINI_BASE_URL = \"http://127.0.0.1:8787/llm/gemini\"\n"),
            "{powershell}"
        );
    }

    #[test]
    fn replicate_s_sdk_is_pointed_here_only_where_replicate_is_behind() {
        let sh = |protocol| lines("http://127.0.0.1:8787", protocol, false, Syntax::Sh);
        assert!(!sh("core.today").contains("REPLICATE"));
        let replicate = sh("replicate");
        assert!(replicate.contains("export REPLICATE_BASE_URL=http://127.0.0.1:8787\n"), "{replicate}");
        assert!(replicate.contains("export REPLICATE_API_TOKEN=sluicegate\n"), "{replicate}");
    }

    #[test]
    fn with_clients_no_placeholder_stands_in_for_a_token() {
        let sh = lines("http://127.0.0.1:8787", "core.today", true, Syntax::Sh);
        assert!(!sh.contains("API_KEY=sluicegate") && sh.contains("client's token"), "{sh}");
    }
}
