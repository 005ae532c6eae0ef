//! Between shards that want links and the connector's thread that makes them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::{debug, warn};
use zea_shard::{LinkMaker, LinkSockets, ResourceId, ShardHandle};
use zea_tcp::{AttemptError, Connector, ConnectorConfig, ConnectorError, Event, PathConfig, PeerKey};
use zea_wire::ids::NodeId;

/// The connector, which shards call, and the shards, which it calls.
#[derive(Default)]
pub(super) struct Links {
    connector: OnceLock<Connector>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The shard of each resource.
    routes: BTreeMap<u32, ShardHandle>,
    own: BTreeMap<PeerKey, SocketAddr>,
    /// What the last attempt came to.
    attempts: BTreeMap<PeerKey, String>,
    /// Addresses that cannot be listened on.
    deaf: BTreeMap<SocketAddr, String>,
}

impl Links {
    /// Starts the connector's thread.
    pub(super) fn start() -> Result<Arc<Links>, ConnectorError> {
        let links = Arc::new(Links::default());
        // Weak, so that connector and callback do not keep each other alive.
        let weak = Arc::downgrade(&links);
        let on_event = Box::new(move |event| {
            if let Some(links) = weak.upgrade() {
                links.on_event(event);
            }
        });
        let connector = Connector::spawn(ConnectorConfig::default(), on_event)?;
        assert!(links.connector.set(connector).is_ok(), "set once");
        Ok(links)
    }

    fn connector(&self) -> &Connector {
        self.connector.get().expect("set before anybody knows of it")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a resource's peers known; from here on their calls are listened for.
    pub(super) fn add(
        &self,
        resource: ResourceId,
        shard: &ShardHandle,
        peers: &[(u8, PathConfig)],
    ) -> Result<(), ConnectorError> {
        self.state().routes.insert(resource.0, shard.clone());
        for (peer, path) in peers {
            self.set(resource, *peer, path).inspect_err(|_| self.remove(resource))?;
        }
        Ok(())
    }

    /// Sets or changes the way to a peer.
    pub(super) fn set(&self, resource: ResourceId, peer: u8, path: &PathConfig) -> Result<(), ConnectorError> {
        self.connector().set_peer((resource.0, peer), *path)?;
        self.state().own.insert((resource.0, peer), path.own);
        Ok(())
    }

    /// Forgets a resource.
    pub(super) fn remove(&self, resource: ResourceId) {
        let keys: Vec<PeerKey> = {
            let mut state = self.state();
            state.routes.remove(&resource.0);
            state.own.keys().filter(|key| key.0 == resource.0).copied().collect()
        };
        for key in keys {
            if let Err(error) = self.connector().remove_peer(key) {
                warn!("cannot forget a peer: {error}");
            }
            let mut state = self.state();
            state.own.remove(&key);
            state.attempts.remove(&key);
        }
    }

    /// Why there is no link to a peer, as far as that is known.
    pub(super) fn error(&self, resource: ResourceId, peer: u8) -> Option<String> {
        let state = self.state();
        let key = (resource.0, peer);
        let deaf = state.own.get(&key).and_then(|own| state.deaf.get(own));
        deaf.or_else(|| state.attempts.get(&key)).cloned()
    }

    fn on_event(&self, event: Event) {
        match event {
            Event::Established { key, data, control, resolve_conflicts } => {
                let shard = {
                    let mut state = self.state();
                    state.attempts.remove(&key);
                    if let Some(own) = state.own.get(&key).copied() {
                        state.deaf.remove(&own);
                    }
                    state.routes.get(&key.0).cloned()
                };
                let sockets = LinkSockets { data, control, resolve_conflicts };
                // Without a shard the resource is gone, and the sockets close here.
                if let Some(shard) = shard
                    && let Err(error) = shard.new_link(ResourceId(key.0), NodeId(key.1), sockets)
                {
                    warn!("a new connection was lost: {error}");
                }
            }
            Event::ListenFailed { addr, error } => {
                warn!("cannot listen on {addr}: {error}");
                self.state().deaf.insert(addr, format!("cannot listen on {addr}: {error}"));
            }
            Event::Attempt { key, error } => {
                let mut state = self.state();
                let text = match (&error, state.own.get(&key)) {
                    (AttemptError::Lost, Some(own)) => {
                        format!(
                            "{error}: it is StandAlone towards this node, or knows no peer with the address {}",
                            own.ip()
                        )
                    }
                    _ => error.to_string(),
                };
                debug!("resource {} node {}: {text}", key.0, key.1);
                state.attempts.insert(key, text);
            }
        }
    }
}

impl LinkMaker for Links {
    fn connect(&self, resource: ResourceId, peer: NodeId) {
        if let Err(error) = self.connector().connect((resource.0, peer.0)) {
            // It cannot be unknown, and 4096 commands cannot wait for 1024 peers: the thread has died.
            tracing::error!("cannot ask for a connection: {error}");
        }
    }

    fn disconnect(&self, resource: ResourceId, peer: NodeId) {
        match self.connector().disconnect((resource.0, peer.0)) {
            // A resource that goes away has forgotten its peers.
            Ok(()) | Err(ConnectorError::UnknownPeer(_)) => {}
            Err(error) => tracing::error!("cannot end the connecting: {error}"),
        }
    }
}
