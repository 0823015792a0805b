//! The way to the server, or to the node of a cluster that has an account's keys: scripts, each run there in one step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, Script, ServerErrorKind, ToRedisArgs, Value,
};
use tokio::sync::Mutex;

use super::Failure;
use crate::config;

/// Before a cluster is asked again that has said that its keys are about to be elsewhere.
const MOVING: Duration = Duration::from_millis(20);

/// One connection, opened when it is needed. Calls may go on side by side.
pub(crate) struct Server {
    kind: Kind,
    timeout: Duration,
    /// Held while it is opened, so that one opens it and the others wait.
    open: Mutex<Option<Open>>,
}

enum Kind {
    One(Box<Client>),
    Cluster(Box<ClusterClient>),
}

#[derive(Clone)]
struct Open {
    connection: Connection,
    /// A call on it has failed: whoever comes next opens another.
    given_up: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    /// To all nodes, with what they said of who has which keys.
    Cluster(ClusterConnection),
}

impl Server {
    /// Opens nothing yet. An error: the URL cannot be used. `timeout`: how long a call may take, connecting included.
    pub(crate) fn new(settings: &config::Redis, timeout: Duration) -> Result<Self, RedisError> {
        let nodes: Vec<_> =
            settings.urls.iter().map(|url| connection_info(url, settings)).collect::<RedisResult<_>>()?;
        let kind = if settings.cluster {
            // The driver repeats nothing by itself: what broke off may have been carried out. Nodes that do not answer at all leave time
            // for others that do.
            let builder = ClusterClientBuilder::new(nodes).retries(0).tcp_settings(tcp());
            Kind::Cluster(Box::new(builder.connection_timeout(timeout / 2).response_timeout(timeout).build()?))
        } else {
            let node = nodes.into_iter().next().ok_or((ErrorKind::InvalidClientConfig, "no server is named"))?;
            Kind::One(Box::new(Client::open(node)?))
        };
        Ok(Self { kind, timeout, open: Mutex::new(None) })
    }

    /// Runs a script, which is loaded where the server does not know it. All keys have one account's hash tag. After a failure the
    /// connection is given up: what was sent may still be carried out, once, but nothing that follows is mixed up with it.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        args: impl ToRedisArgs,
    ) -> Result<T, Failure> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.get_hash()).arg(keys.len()).arg(keys).arg(args);
        let mut used = None;
        let exchange = async {
            let open = used.insert(self.open().await?);
            open.connection.run(&call, script, keys).await
        };
        let outcome = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome.map_err(Failure::from),
            Err(_) => Err(Failure::Slow(self.timeout)),
        };
        if let (Err(_), Some(open)) = (&outcome, used) {
            open.given_up.store(true, Ordering::Relaxed);
        }
        outcome
    }

    async fn open(&self) -> RedisResult<Open> {
        let mut kept = self.open.lock().await;
        if let Some(open) = kept.as_ref().filter(|open| !open.given_up.load(Ordering::Relaxed)) {
            return Ok(open.clone());
        }
        *kept = None;
        let connection = match &self.kind {
            Kind::One(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.timeout))
                    .set_response_timeout(Some(self.timeout));
                Connection::One(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Kind::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        };
        Ok(kept.insert(Open { connection, given_up: Arc::default() }).clone())
    }
}

impl Connection {
    /// Until it is carried out or may have been; the caller's patience ends it.
    async fn run<T: FromRedisValue>(&mut self, call: &Cmd, script: &Script, keys: &[String]) -> RedisResult<T> {
        loop {
            let outcome = match self {
                Self::One(connection) => call.query_async(connection).await,
                Self::Cluster(connection) => call.query_async(connection).await,
            };
            let Err(error) = outcome else { return outcome };
            match error.kind() {
                ErrorKind::Server(ServerErrorKind::NoScript) => self.load(script, keys).await?,
                ErrorKind::Server(kind) if matches!(self, Self::Cluster(_)) && is_moving(kind) => {
                    // The driver has asked meanwhile who has the keys now.
                    tokio::time::sleep(MOVING).await;
                }
                _ => return Err(error),
            }
        }
    }

    async fn load(&mut self, script: &Script, keys: &[String]) -> RedisResult<()> {
        match self {
            Self::One(connection) => script.load_async(connection).await?,
            Self::Cluster(connection) => {
                let route = Route::with_key(keys.first().map_or("", |key| key), SlotAddr::Master);
                script.load_async(&mut Node { connection, route }).await?
            }
        };
        Ok(())
    }
}

/// The node of a cluster that has some key: the driver would ask all of them, and another may be gone.
struct Node<'a> {
    connection: &'a mut ClusterConnection,
    route: Route,
}

impl ConnectionLike for Node<'_> {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(self.route));
        Box::pin(self.connection.route_command(command.clone(), node))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let node = SingleNodeRoutingInfo::SpecificNode(self.route);
        Box::pin(self.connection.route_pipeline(commands.clone(), offset, count, node))
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// A node's word that it has carried out nothing, and that another will, or itself soon. Of keys that are being moved a script may find
/// some here and some there (`TRYAGAIN`), so that to follow `ASK` would not help: it waits until they are all there.
fn is_moving(kind: ServerErrorKind) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    matches!(kind, Moved | Ask | TryAgain | ClusterDown | MasterDown | ReadOnly)
}

fn connection_info(url: &str, settings: &config::Redis) -> RedisResult<ConnectionInfo> {
    let info = url.into_connection_info()?;
    let mut login = RedisConnectionInfo::default().set_db(info.redis_settings().db()).set_skip_set_lib_name();
    if let Some(user) = &settings.user {
        login = login.set_username(user);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(password.expose());
    }
    Ok(info.set_tcp_settings(tcp()).set_redis_settings(login))
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}
