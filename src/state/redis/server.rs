//! The way to the server: scripts, each run there in one step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, Script,
    ToRedisArgs,
};
use tokio::sync::Mutex;

use super::Failure;
use crate::config;

/// One connection, opened when it is needed. Calls may go on side by side.
pub(crate) struct Server {
    client: Client,
    timeout: Duration,
    /// Held while it is opened, so that one opens it and the others wait.
    open: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    /// A call on it has failed: whoever comes next opens another.
    given_up: Arc<AtomicBool>,
}

impl Server {
    /// Opens nothing yet. An error: the URL cannot be used. `timeout`: how long a call may take, connecting included.
    pub(crate) fn new(settings: &config::Redis, timeout: Duration) -> Result<Self, redis::RedisError> {
        Ok(Self { client: Client::open(connection_info(settings)?)?, timeout, open: Mutex::new(None) })
    }

    /// Runs a script, which is loaded where the server does not know it. All keys have one account's hash tag. After a failure the
    /// connection is given up: what was sent may still be carried out, once, but nothing that follows is mixed up with it.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        args: impl ToRedisArgs,
    ) -> Result<T, Failure> {
        let mut call = script.prepare_invoke();
        call.key(keys).arg(args);
        let mut used = None;
        let exchange = async {
            let open = used.insert(self.open().await?);
            Ok(call.invoke_async(&mut open.connection).await?)
        };
        let outcome = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Slow(self.timeout)),
        };
        if let (Err(_), Some(open)) = (&outcome, used) {
            open.given_up.store(true, Ordering::Relaxed);
        }
        outcome
    }

    async fn open(&self) -> Result<Open, redis::RedisError> {
        let mut kept = self.open.lock().await;
        if let Some(open) = kept.as_ref().filter(|open| !open.given_up.load(Ordering::Relaxed)) {
            return Ok(open.clone());
        }
        *kept = None;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(kept.insert(Open { connection, given_up: Arc::default() }).clone())
    }
}

fn connection_info(settings: &config::Redis) -> Result<ConnectionInfo, redis::RedisError> {
    let info = settings.url.as_str().into_connection_info()?;
    let mut login = RedisConnectionInfo::default().set_db(info.redis_settings().db()).set_skip_set_lib_name();
    if let Some(user) = &settings.user {
        login = login.set_username(user);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(password.expose());
    }
    Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(login))
}
