//! A real Redis Cluster of the test's own: three masters, each with a replica, made by redis-cli as an operator would.

use std::time::Duration;

use tokio::process::Command;
use tokio::time::sleep;

use super::patience::until;
use super::redis::{Redis, free_port};

/// How long a node is silent before the others take it for failed.
const NODE_TIMEOUT: &str = "1200";

pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            nodes.push(Redis::with(settings(&[])).await);
        }
        let addresses = nodes.iter().map(|node| node.address().to_string());
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .await
            .expect("redis-cli is installed with redis-server");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self { nodes };
        for node in 0..6 {
            cluster.until_healthy(node).await;
        }
        cluster
    }

    /// The first node's and another's.
    pub fn urls(&self) -> [String; 2] {
        [self.nodes[0].url(), self.nodes[1].url()]
    }

    /// Until this node says that all is well, its link to its master included.
    pub async fn until_healthy(&self, node: usize) {
        until(format!("well: node {node}"), || async {
            let info = self.text(node, &["CLUSTER", "INFO"]).await;
            let role = self.text(node, &["INFO", "replication"]).await;
            let well = info.contains("cluster_state:ok")
                && info.contains("cluster_known_nodes:6")
                && (role.contains("role:master") || role.contains("master_link_status:up"));
            (well, info + &role)
        })
        .await;
    }

    /// The master that has the keys of an account, once there is one.
    pub async fn owner(&self) -> usize {
        let has_keys = async |node| self.role(node).await == "master" && self.text(node, &["DBSIZE"]).await != "0";
        let owner = until("keys of a master", || async {
            let mut owner = None;
            for node in 0..self.nodes.len() {
                if has_keys(node).await {
                    owner = Some(node);
                    break;
                }
            }
            (owner.is_some(), owner)
        });
        owner.await.expect("found")
    }

    /// A replica of this master.
    pub async fn replica_of(&self, master: usize) -> usize {
        let port = format!("master_port:{}\r", self.nodes[master].port);
        for node in 0..self.nodes.len() {
            if self.text(node, &["INFO", "replication"]).await.contains(&port) {
                return node;
            }
        }
        panic!("it has none");
    }

    pub async fn role(&self, node: usize) -> String {
        let info = self.text(node, &["INFO", "replication"]).await;
        info.lines().find_map(|line| line.strip_prefix("role:")).unwrap_or_default().to_owned()
    }

    pub async fn until_role(&self, node: usize, role: &str) {
        until(format!("node {node} a {role}"), || async {
            let is = self.role(node).await;
            (is == role, is)
        })
        .await;
    }

    /// Gives the keys of an account to another master, as resharding does.
    pub async fn reshard(&self, from: usize, to: usize) {
        let list = self.nodes[from].run(&["KEYS", "*"]).await;
        let keys: Vec<String> = redis::from_redis_value(list).expect("names");
        let slot = self.text(from, &["CLUSTER", "KEYSLOT", &keys[0]]).await;
        let (old, new) = (self.text(from, &["CLUSTER", "MYID"]).await, self.text(to, &["CLUSTER", "MYID"]).await);
        self.nodes[to].run(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &old]).await;
        self.nodes[from].run(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &new]).await;
        let port = self.nodes[to].port.to_string();
        // What is new meanwhile is refused with TRYAGAIN or ASK.
        let list = self.nodes[from].run(&["KEYS", "*"]).await;
        let keys: Vec<String> = redis::from_redis_value(list).expect("names");
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        let all: Vec<&str> = words.into_iter().chain(keys.iter().map(String::as_str)).collect();
        self.nodes[from].run(&all).await;
        sleep(Duration::from_millis(200)).await;
        for node in [to, from] {
            self.nodes[node].run(&["CLUSTER", "SETSLOT", &slot, "NODE", &new]).await;
        }
    }

    /// What a node says; nothing if it does not answer.
    pub async fn text(&self, node: usize, words: &[&str]) -> String {
        let Ok(value) = self.nodes[node].try_run(words).await else { return String::new() };
        match value {
            redis::Value::Int(number) => number.to_string(),
            other => redis::from_redis_value(other).unwrap_or_default(),
        }
    }
}

/// What makes a server a node, before these.
pub fn settings(more: &[&str]) -> Vec<String> {
    // Where nodes talk to each other; the usual, ten thousand above, may not exist.
    let bus = free_port().to_string();
    let node = ["--cluster-enabled", "yes", "--cluster-node-timeout", NODE_TIMEOUT, "--cluster-port", &bus];
    node.iter().chain(more).map(|word| (*word).to_owned()).collect()
}
