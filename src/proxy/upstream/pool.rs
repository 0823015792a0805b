//! A worker's idle connections. Nothing drives them: whether the upstream has closed one is known when it is used, and looked for now
//! and then, so that its socket does not stay open for long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::wire::Wire;

/// Below the 60 s after which common load balancers close an idle connection.
const IDLE_FOR: Duration = Duration::from_secs(50);
/// What cannot be repeated goes only over connections used this recently: the upstream closing an idle one just then would leave us not
/// knowing whether it ran.
const FRESH_FOR: Duration = Duration::from_secs(5);
const MAX_IDLE: usize = 256;
/// How often idle connections are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The idle connections of one worker.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Idles>>);

/// The newest at the back, and used first. Only this worker's thread takes the lock, which makes it free of waiting.
#[derive(Default)]
struct Idles {
    idle: VecDeque<Idle>,
    /// Somebody looks at them now and then.
    looked_at: bool,
}

struct Idle {
    wire: Box<Wire>,
    since: Instant,
}

impl Pool {
    /// The one to use next; `fresh` refuses those that have been idle for a while. The upstream may have closed it.
    pub(super) fn take(&self, fresh: bool) -> Option<Box<Wire>> {
        let mut idles = self.idles();
        let newest = idles.idle.back()?;
        let idle_for = newest.since.elapsed();
        if idle_for > IDLE_FOR {
            idles.idle.clear();
            return None;
        }
        if fresh && idle_for > FRESH_FOR {
            return None;
        }
        idles.idle.pop_back().map(|idle| idle.wire)
    }

    /// Whether `take` would give one.
    pub(super) fn has_one(&self, fresh: bool) -> bool {
        let most = if fresh { FRESH_FOR } else { IDLE_FOR };
        self.idles().idle.back().is_some_and(|newest| newest.since.elapsed() <= most)
    }

    /// For whoever comes next. One that is not through with its last request is seen to its end first.
    pub(super) fn give(&self, mut wire: Box<Wire>) {
        if wire.is_ready() {
            self.put(wire);
        } else if !wire.has_ended() {
            let pool = self.clone();
            tokio::spawn(async move {
                let settled = tokio::time::timeout(IDLE_FOR, wire.settle()).await;
                if settled.is_ok() && wire.is_ready() {
                    pool.put(wire);
                }
            });
        }
    }

    fn put(&self, wire: Box<Wire>) {
        wire.rest();
        let mut idles = self.idles();
        if idles.idle.len() < MAX_IDLE {
            idles.idle.push_back(Idle { wire, since: Instant::now() });
        }
        if !idles.looked_at {
            idles.looked_at = true;
            drop(idles);
            tokio::spawn(self.clone().look());
        }
    }

    /// Lets go of those that have ended or are too old, until there is none.
    async fn look(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut idles = self.idles();
            idles.idle.retain_mut(|idle| {
                idle.wire.look();
                !idle.wire.has_ended() && idle.since.elapsed() <= IDLE_FOR
            });
            if idles.idle.is_empty() {
                idles.looked_at = false;
                return;
            }
        }
    }

    fn idles(&self) -> MutexGuard<'_, Idles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use crate::proxy::body::SendBody;
    use crate::proxy::upstream::SendError;

    use super::*;

    const PIPE_BYTES: usize = 4096;
    const SOON: Duration = Duration::from_millis(10);

    async fn connected() -> (Box<Wire>, DuplexStream) {
        let (near, far) = duplex(PIPE_BYTES);
        let wire = Wire::new(Box::new(near)).await;
        (wire.unwrap_or_else(|_| panic!("a connection")), far)
    }

    fn request(body_bytes: usize) -> Request<SendBody> {
        let mut request = Request::new(SendBody::whole(vec![b'x'; body_bytes].into()));
        *request.method_mut() = http::Method::POST;
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("h"));
        request
    }

    /// Reads what has come, and answers.
    async fn answer(far: &mut DuplexStream) {
        assert!(far.read(&mut [0; PIPE_BYTES]).await.expect("a request") > 0);
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.expect("taken");
    }

    /// Asks, and reads the answer to its end.
    async fn ask(wire: &mut Wire, far: &mut DuplexStream, body_bytes: usize) {
        let (answered, ()) = tokio::join!(wire.send(request(body_bytes), None), answer(far));
        let mut body = answered.expect("an answer").into_body();
        let frame = poll_fn(|cx| wire.poll_frame(&mut body, cx)).await;
        assert_eq!(frame.expect("a piece").expect("whole").into_data().expect("data"), "{}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_used_again_until_it_is_too_old() {
        let (pool, (mut wire, mut far)) = (Pool::default(), connected().await);
        for _ in 0..3 {
            ask(&mut wire, &mut far, 0).await;
            pool.give(wire);
            assert!(pool.has_one(true));
            wire = pool.take(true).expect("it is there");
        }
        pool.give(wire);
        sleep(FRESH_FOR + SOON).await;
        assert!(!pool.has_one(true) && pool.take(true).is_none() && pool.has_one(false));
        sleep(IDLE_FOR).await;
        assert!(!pool.has_one(false));
        assert_eq!(far.read(&mut [0; 1]).await.expect("no error"), 0, "it is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_that_the_upstream_closes_is_let_go_of_soon() {
        let (pool, (wire, far)) = (Pool::default(), connected().await);
        pool.give(settled(wire).await);
        drop(far);
        sleep(LOOK_EVERY + SOON).await;
        assert!(!pool.has_one(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_over_a_connection_that_was_closed_meanwhile_is_provably_unsent() {
        let (pool, (wire, far)) = (Pool::default(), connected().await);
        pool.give(settled(wire).await);
        drop(far);
        let mut wire = pool.take(false).expect("nobody has looked yet");
        assert!(matches!(wire.send(request(3), None).await, Err(SendError::Unsent(_))));
        pool.give(wire);
        assert!(!pool.has_one(false));
    }

    /// More than a task may do in one go.
    #[tokio::test]
    async fn many_that_were_closed_meanwhile_are_told_one_after_another() {
        let (mut wires, mut fars) = (Vec::new(), Vec::new());
        for _ in 0..150 {
            let (wire, far) = connected().await;
            wires.push(settled(wire).await);
            fars.push(far);
        }
        drop(fars);
        for mut wire in wires {
            assert!(matches!(wire.send(request(0), None).await, Err(SendError::Unsent(_))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_goes_on_after_an_answer_that_came_before_its_end() {
        let (pool, (mut wire, mut far)) = (Pool::default(), connected().await);
        let body_bytes = 4 * PIPE_BYTES;
        ask(&mut wire, &mut far, body_bytes).await;
        pool.give(wire);
        assert!(!pool.has_one(true), "it is still sending");
        let mut came = 0;
        for _ in 0..8 {
            let read = tokio::time::timeout(SOON, far.read(&mut [0; PIPE_BYTES])).await;
            came += read.map_or(0, |read| read.expect("open"));
        }
        assert!(came > body_bytes - PIPE_BYTES && pool.has_one(true), "{came}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_in_time_and_heads_without_end_are_told() {
        let (mut wire, mut far) = connected().await;
        let until = Some(Instant::now() + SOON);
        assert!(matches!(wire.send(request(0), until).await, Err(SendError::TooLate)));
        drop(wire);
        let (mut wire, mut other) = connected().await;
        let flood = async {
            assert!(other.read(&mut [0; PIPE_BYTES]).await.expect("a request") > 0);
            while other.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await.is_ok() {}
        };
        let told = tokio::select! {
            told = wire.send(request(0), None) => told,
            () = flood => panic!("the flood ended first"),
        };
        assert!(matches!(told, Err(SendError::Flooded)), "{:?}", told.err());
        assert!(far.read(&mut [0; PIPE_BYTES]).await.is_ok());
    }

    async fn settled(mut wire: Box<Wire>) -> Box<Wire> {
        wire.settle().await;
        wire
    }
}
