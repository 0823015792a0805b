//! Answers of the admin port: a text, or events without an end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::protocol::Family;
use crate::proxy::rejection::Rejection;

use super::events::Events;

/// The body of an answer.
pub(super) enum Answer {
    Whole(Full<Bytes>),
    Events(Events),
}

pub(super) fn text(status: StatusCode, form: &'static str, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn json(value: &serde_json::Value) -> Response<Answer> {
    text(StatusCode::OK, "application/json", value.to_string())
}

pub(super) fn refused(rejection: &Rejection) -> Response<Answer> {
    rejection.response(Family::Native).map(|body| Answer::Whole(Full::new(body)))
}

/// The path takes the methods `allow`, and no other.
pub(super) fn not_taken(allow: &'static str) -> Response<Answer> {
    refused(&Rejection::NotTaken { allow })
}

pub(super) fn events(events: Events) -> Response<Answer> {
    text(StatusCode::OK, "text/event-stream", Bytes::new()).map(|_| Answer::Events(events))
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Events(events) => Pin::new(events).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(body) if body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
