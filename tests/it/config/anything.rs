//! Whatever a file says, it is a configuration or a report, and no secret is shown.

use proptest::prelude::*;
use sluicegate::config;

use super::{MINIMAL, Scratch};

/// What a hand that slips may type.
fn slip() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "", "x", " ", "=", "\"", "'", "\"\"\"", "'''", "#", "\n", "[", "]", "{", "}", ",", ".", "\\", "é", "0",
    ])
}

/// Fragments that meet often in configurations, and some that never should.
fn fragment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "[server]\n",
        "[[clients]]\n",
        "[plans.free]\n",
        "[accounts.dev]\n",
        "[models.\"a b\"]\n",
        "[protocols.own]\n",
        "[protocols.own.headers]\n",
        "create = \"POST /{a}/{b*}\"\n",
        "status = \"GET /{id}\"\n",
        "wait_text = \"~{seconds}\"\n",
        "model = \"{a}\"\n",
        "auth = \"x: {key}\"\n",
        "[[routes]]\n",
        "listen",
        "key",
        "token",
        "per",
        "requests",
        "jitter",
        "url",
        "path",
        "level",
        " = ",
        "\"127.0.0.1:1\"",
        "\"1s\"",
        "\"http://[::1\"",
        "\"\\u0000\"",
        "{ env = \"CORE_API_KEY\" }",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\n",
        "\r\n",
        "\"",
        "'''",
        "\"\"\"",
        "# ",
        "-1",
        "0x7fffffffffffffffff",
        "1e999",
        "nan",
        "true",
        "1979-05-27",
        "é",
        "😀",
        "\u{feff}",
        "\u{0}",
        "\t",
        "account = \"dev\"\n",
        "plan = \"free\"\n",
        "a.b.c = 1\n",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => ".{0,8}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_in_a_file_panics(fragments in prop::collection::vec(fragment(), 0..40)) {
        let scratch = Scratch::new();
        if let Err(report) = scratch.load_as_is(&fragments.concat()) {
            prop_assert!(report.count() > 0 && !report.to_string().is_empty());
        }
    }

    #[test]
    fn a_literal_secret_is_never_shown(at in any::<prop::sample::Index>(), length in 0..4_usize, put in slip()) {
        let text = "account = \"dev\"\nplans.free.llm = 'x'\n[accounts.dev]\nplan = 5\nkey = \"hush-hush\"\ndescription = 1\n\n\
                    [[clients]]\nname = \"web\"\ntoken = \"hush-hush\"\nweight = 0\n[queue]\nmax_wait = 5\n";
        let at = at.index(text.len());
        let damaged = format!("{}{put}{}", &text[..at], &text[(at + length).min(text.len())..]);
        let scratch = Scratch::new();
        if let Err(report) = scratch.load_as_is(&damaged) {
            prop_assert!(!report.to_string().contains("hush-hush"), "{damaged}\n{report}");
        }
    }

    #[test]
    fn bytes_and_variables_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in ".{0,20}", index in any::<prop::sample::Index>()) {
        let scratch = Scratch::new();
        scratch.write("proxy.toml", bytes);
        let _ = config::load(&scratch.sources());
        scratch.write("proxy.toml", MINIMAL);
        let keys: Vec<&str> = config::keys().filter(|key| !key.contains('*')).collect();
        let mut sources = scratch.sources();
        let variable = format!("SLUICEGATE_{}", index.get(&keys).replace('.', "_").to_ascii_uppercase());
        sources.env.insert(variable, text);
        let _ = config::load(&sources);
    }
}
