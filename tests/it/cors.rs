//! Pages of allowed origins may ask and read; what browsers need for that is answered here, and only to them.

use http::Request;

use crate::support::client::{self, With};
use crate::support::{NOTHING, Setup, Site, create, get};

const ORIGIN: &str = "http://localhost:3000";

fn site() -> Site {
    Setup { toml: "[server]\nallowed_origins = [\"http://localhost:3000\"]", ..Setup::default() }.memory()
}

fn preflight(origin: &str) -> Request<http_body_util::Full<bytes::Bytes>> {
    client::request("OPTIONS", "/v1/predictions", "")
        .with("origin", origin)
        .with("access-control-request-method", "POST")
        .with("access-control-request-headers", "authorization,content-type")
}

#[tokio::test(start_paused = true)]
async fn a_preflight_of_an_allowed_origin_is_answered_here_and_any_other_refused() {
    let site = site();
    let answer = site.send(preflight(ORIGIN).with("access-control-request-private-network", "true")).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0), "{answer:?}");
    for (name, value) in [
        ("access-control-allow-origin", ORIGIN),
        ("access-control-allow-headers", "authorization,content-type"),
        ("access-control-max-age", "600"),
        ("access-control-allow-private-network", "true"),
        ("vary", "Origin"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    assert!(answer.header("access-control-allow-methods").contains("POST"), "{answer:?}");
    assert!(!answer.headers.contains_key("access-control-allow-credentials"), "cookies are nobody's business");
    assert!(!site.send(preflight(ORIGIN)).await.headers.contains_key("access-control-allow-private-network"));

    for origin in ["http://localhost:3001", "https://localhost:3000", "null", "http://evil.test"] {
        let answer = site.send(preflight(origin)).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (403, "forbidden_origin".into()), "{origin}");
        assert!(
            !answer.headers.keys().any(|name| name.as_str().starts_with("access-control-")),
            "{origin}: {answer:?}"
        );
    }
    assert_eq!((site.mock.stats().attempts, site.proxy.usage()), (0, NOTHING));
}

/// A browser brings no token with a preflight.
#[tokio::test(start_paused = true)]
async fn a_preflight_needs_no_token_and_what_follows_does() {
    let toml = "[server]\nallowed_origins = [\"http://localhost:3000\"]\n\
                [[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }";
    let site = Setup { toml, ..Setup::default() }.memory();
    assert_eq!(site.send(preflight(ORIGIN)).await.status, 204);
    let refused = site.send(create().with("origin", ORIGIN)).await;
    assert_eq!((refused.status.as_u16(), refused.header("access-control-allow-origin")), (401, ORIGIN));
    let created = site.send(create().with("origin", ORIGIN).with("authorization", "Bearer web-token")).await;
    assert_eq!((created.status.as_u16(), created.header("access-control-allow-origin")), (201, ORIGIN));
    assert_eq!(site.mock.stats().attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn answers_say_to_allowed_origins_alone_that_they_may_be_read() {
    let site = site();
    let answer = site.send(get("/v1/echo").with("origin", ORIGIN)).await;
    assert_eq!((answer.status.as_u16(), answer.header("access-control-allow-origin")), (200, ORIGIN));
    assert_eq!((answer.header("access-control-expose-headers"), answer.header("vary")), ("*", "Origin"));
    // Our own refusals too: a page must be able to tell what went wrong.
    let answer = site.send(get("/v1/echo").with("origin", ORIGIN).with("sluicegate-max-wait", "soon")).await;
    assert_eq!((answer.status.as_u16(), answer.header("access-control-allow-origin")), (400, ORIGIN));

    let answer = site.send(get("/v1/echo")).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{answer:?}");
    // OPTIONS that asks nothing of a browser's goes upstream like any other call.
    site.send(client::request("OPTIONS", "/v1/echo", "").with("origin", ORIGIN)).await;
    assert_eq!(site.mock.stats().attempts, 3);
}
