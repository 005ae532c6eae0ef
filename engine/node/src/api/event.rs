//! Events: what changed, in the words of `drbdsetup events2` (`tooling-contract.md` section 8.1).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::status::{ResourceStatus, VerifyResult};

/// What an event says about its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventAction {
    /// It was there when the stream began.
    Exists,
    /// It is new.
    Create,
    /// It changed; the state is the new one.
    Change,
    /// It is gone.
    Destroy,
    /// A message.
    Notice,
    /// The reader was too slow: events are missing here.
    Skipped,
}

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened to the object.
    pub action: EventAction,
    /// Name of the resource; empty where an event concerns none.
    pub name: String,
    /// The object.
    #[serde(flatten)]
    pub body: EventBody,
}

/// The object of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "object", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum EventBody {
    /// The resource itself.
    Resource {
        /// Role of this node; left out when destroyed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// `no`, or `quorum`: I/O waits for that. Left out when destroyed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        suspended: Option<String>,
    },
    /// A connection.
    Connection {
        /// Node id of the peer.
        peer_node_id: u8,
        /// Name of the peer.
        conn_name: String,
        /// Connection state.
        connection: String,
        /// Role of the peer.
        role: String,
    },
    /// A volume on this node.
    Device {
        /// Volume number.
        volume: u16,
        /// Disk state.
        disk: String,
        /// There is quorum, or it is off.
        quorum: bool,
        /// Usable size in KiB.
        size: u64,
    },
    /// A volume on a connection.
    PeerDevice {
        /// Node id of the peer.
        peer_node_id: u8,
        /// Name of the peer.
        conn_name: String,
        /// Volume number.
        volume: u16,
        /// Replication state.
        replication: String,
        /// State of the peer's disk.
        peer_disk: String,
        /// `no`, or why no resync with this peer goes on.
        resync_suspended: String,
    },
    /// An online verify found different data.
    OutOfSync {
        /// Node id of the peer.
        peer_node_id: u8,
        /// Name of the peer.
        conn_name: String,
        /// Volume number.
        volume: u16,
        /// First sector.
        start: u64,
        /// Number of sectors.
        size: u64,
    },
    /// An online verify ended.
    Verify {
        /// Node id of the peer.
        peer_node_id: u8,
        /// Name of the peer.
        conn_name: String,
        /// Volume number.
        volume: u16,
        /// What it found.
        #[serde(flatten)]
        result: VerifyResult,
    },
    /// A message for people.
    Text {
        /// `info`, `warning` or `error`.
        severity: String,
        /// The message.
        text: String,
    },
    /// End of the initial dump (with [`EventAction::Exists`]), or the place where events are missing.
    #[serde(rename = "-")]
    Mark {
        /// Events that are missing, 0 for the end of the dump.
        count: u64,
    },
}

impl EventBody {
    /// What there is to say of a resource.
    pub fn of_resource(status: &ResourceStatus) -> EventBody {
        let suspended = suspended(status.suspended_quorum).to_owned();
        EventBody::Resource { role: Some(status.role.clone()), suspended: Some(suspended) }
    }

    /// A resource that is gone.
    pub const fn gone_resource() -> EventBody {
        EventBody::Resource { role: None, suspended: None }
    }
}

impl Event {
    /// The state of a resource as a list of `exists` events, parents before children.
    pub fn dump(status: &ResourceStatus) -> Vec<Event> {
        let exists = |body| Event { action: EventAction::Exists, name: status.name.clone(), body };
        let mut events = vec![exists(EventBody::of_resource(status))];
        events.extend(status.connections.iter().map(|connection| {
            exists(EventBody::Connection {
                peer_node_id: connection.peer_node_id,
                conn_name: connection.name.clone(),
                connection: connection.connection_state.clone(),
                role: connection.peer_role.clone(),
            })
        }));
        events.extend(status.devices.iter().map(|device| {
            let disk = device.disk_state.clone();
            exists(EventBody::Device { volume: device.volume, disk, quorum: device.quorum, size: device.size })
        }));
        for connection in &status.connections {
            events.extend(connection.peer_devices.iter().map(|peer_device| {
                exists(EventBody::PeerDevice {
                    peer_node_id: connection.peer_node_id,
                    conn_name: connection.name.clone(),
                    volume: peer_device.volume,
                    replication: peer_device.replication_state.clone(),
                    peer_disk: peer_device.peer_disk_state.clone(),
                    resync_suspended: peer_device.resync_suspended.clone(),
                })
            }));
        }
        events
    }

    /// The line behind the initial dump.
    pub fn end_of_dump() -> Event {
        Event { action: EventAction::Exists, name: String::new(), body: EventBody::Mark { count: 0 } }
    }

    /// The line that stands for `count` events which a slow reader missed.
    pub fn skipped(count: u64) -> Event {
        Event { action: EventAction::Skipped, name: String::new(), body: EventBody::Mark { count } }
    }
}

impl fmt::Display for EventAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventAction::Exists => "exists",
            EventAction::Create => "create",
            EventAction::Change => "change",
            EventAction::Destroy => "destroy",
            EventAction::Notice => "notice",
            EventAction::Skipped => "-",
        })
    }
}

/// The text form: one line, `ACTION OBJECT key:value …`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (action, name) = (self.action, &self.name);
        match &self.body {
            EventBody::Mark { count: 0 } => write!(f, "{action} -"),
            EventBody::Mark { count } => write!(f, "{action} skipped {count}"),
            EventBody::Resource { role, suspended } => {
                write!(f, "{action} resource name:{name}")?;
                role.iter().try_for_each(|role| write!(f, " role:{role}"))?;
                suspended.iter().try_for_each(|suspended| write!(f, " suspended:{suspended}"))
            }
            EventBody::Connection { peer_node_id, conn_name, connection, role } => write!(
                f,
                "{action} connection name:{name} peer-node-id:{peer_node_id} conn-name:{conn_name} \
                 connection:{connection} role:{role}"
            ),
            EventBody::Device { volume, disk, quorum, size } => {
                let quorum = yes_or_no(*quorum);
                write!(f, "{action} device name:{name} volume:{volume} disk:{disk} quorum:{quorum} size:{size}")
            }
            EventBody::PeerDevice { peer_node_id, conn_name, volume, replication, peer_disk, resync_suspended } => {
                write!(
                    f,
                    "{action} peer-device name:{name} peer-node-id:{peer_node_id} conn-name:{conn_name} volume:{volume} \
                     replication:{replication} peer-disk:{peer_disk} resync-suspended:{resync_suspended}"
                )
            }
            EventBody::OutOfSync { peer_node_id, conn_name, volume, start, size } => write!(
                f,
                "{action} out-of-sync name:{name} peer-node-id:{peer_node_id} conn-name:{conn_name} volume:{volume} \
                 start:{start} size:{size}"
            ),
            EventBody::Verify { peer_node_id, conn_name, volume, result } => {
                let VerifyResult { complete, compared, skipped, out_of_sync } = result;
                write!(
                    f,
                    "{action} verify name:{name} peer-node-id:{peer_node_id} conn-name:{conn_name} volume:{volume} \
                     complete:{} compared:{compared} skipped:{skipped} out-of-sync:{out_of_sync}",
                    yes_or_no(*complete)
                )
            }
            EventBody::Text { severity, text } => {
                write!(f, "{action} {severity} name:{name} {text}")
            }
        }
    }
}

fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Why I/O waits, in the word of `drbdsetup`.
pub fn suspended(for_quorum: bool) -> &'static str {
    if for_quorum { "quorum" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_print_like_events2() {
        let event = Event {
            action: EventAction::Change,
            name: "r0".into(),
            body: EventBody::Device { volume: 0, disk: "UpToDate".into(), quorum: true, size: 16344 },
        };
        assert_eq!(event.to_string(), "change device name:r0 volume:0 disk:UpToDate quorum:yes size:16344");
        let range = EventBody::OutOfSync { peer_node_id: 1, conn_name: "bravo".into(), volume: 0, start: 8, size: 16 };
        let range = Event { action: EventAction::Notice, name: "r0".into(), body: range };
        let text = "notice out-of-sync name:r0 peer-node-id:1 conn-name:bravo volume:0 start:8 size:16";
        assert_eq!(range.to_string(), text);
        assert_eq!(Event::end_of_dump().to_string(), "exists -");
        assert_eq!(Event::skipped(7).to_string(), "- skipped 7");
    }

    #[test]
    fn events_survive_json() {
        let result = VerifyResult { complete: true, compared: 4, skipped: 0, out_of_sync: 4 };
        let verify = EventBody::Verify { peer_node_id: 1, conn_name: "bravo".into(), volume: 0, result };
        for event in [
            Event::end_of_dump(),
            Event { action: EventAction::Notice, name: "r0".into(), body: verify },
            Event { action: EventAction::Destroy, name: "r0".into(), body: EventBody::gone_resource() },
        ] {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
        }
    }
}
