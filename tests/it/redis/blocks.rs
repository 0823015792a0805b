//! A plan above 10,000 attempts a window, whole proxies around it. The rest is in `proxy::queue::broker`'s own tests, without HTTP.

use std::time::Duration;

use sluicegate::mock::Options;
use tokio::time::Instant;

use super::{joined, saturate_all};
use crate::support::redis::{Fleet, Redis};

const L: u32 = 10_400;
const W: Duration = Duration::from_secs(8);
/// J is what a busy machine may need between our write and the upstream's count.
const PLAN: &str = "requests = 10400\nper = \"8s\"\njitter = \"800ms\"";

#[tokio::test]
async fn replicas_spend_a_large_plan_in_blocks_and_no_more() {
    let redis = Redis::start().await;
    let options = Options { requests: Some(L), window: W, concurrent_jobs: None, ..Options::default() };
    let fleet = Fleet::new(options, PLAN, 4);
    let sites = fleet.start(&redis.url()).await;
    redis.run(&["CONFIG", "RESETSTAT"]).await;
    let answered = joined(saturate_all(&sites, 30, Instant::now() + W)).await;
    let (stats, calls) = (fleet.mock.stats(), redis.calls().await);
    println!("{answered} answers in a window, {} at most, {calls} calls", stats.max_in_window);
    assert!(stats.max_in_window <= L as usize, "{} in a window", stats.max_in_window);
    assert_eq!(stats.refused_rate_429, 0);
    // How many there are is the machine's affair: a window of this plan is 6 s of a processor's time.
    assert!(answered >= 2_000, "{answered}");
    // A beat is 375 ms here, and is not paid by an attempt.
    let beats = 4 * 22;
    assert!(calls * 25 <= u64::try_from(answered).expect("few") + beats * 25, "{calls} calls for {answered}");
}
