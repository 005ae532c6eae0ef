//! The control protocol: what a client may ask and what it gets back.
//!
//! One JSON object per line in both directions, UTF-8, `\n` at the end (`docs/adr/0003-control-api-is-json-lines-on-threads.md`).
//! A request is a [`Request`]; the answer is one [`Reply`] line, or for `events` one line per event until the client closes.

use serde::{Deserialize, Serialize};

use crate::config::{ResourceFile, Size};

pub mod event;
pub mod status;

pub use event::{Event, EventAction, EventBody, suspended};
pub use status::{
    BlockDevices, Broken, ConnectionStatus, DeviceStatus, PathStatus, PeerDeviceStatus, ResourceStatus, SocketAddress,
    StatusReply, VerifyResult,
};

/// Longest request line in bytes, the end of line included.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Longest reply line in bytes: the status of a full node stays far below.
pub const MAX_REPLY_BYTES: usize = 16 << 20;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who are you? Reply: [`Version`].
    Version,
    /// A new resource: save it, create meta data where there is none, bring it up. Reply: [`Done`].
    ResourceCreate {
        /// The resource.
        resource: Box<ResourceFile>,
        /// The shared secret, if peers are to be authenticated.
        secret: Option<Secret>,
        /// Overwrite foreign data and foreign meta data.
        force: bool,
    },
    /// Forget a resource. Reply: [`Done`].
    ResourceDelete {
        /// Its name.
        name: String,
        /// Also remove the meta data from its devices.
        wipe_metadata: bool,
    },
    /// All resources that are configured. Reply: a list of [`Listed`].
    ResourceList,
    /// Create the resource of this file, or change the one of that name to it. Reply: [`Done`].
    Apply {
        /// Name of the file, for errors.
        file: String,
        /// Its contents.
        text: String,
        /// Contents of its secret file.
        secret: Option<Secret>,
        /// See [`Request::ResourceCreate`].
        force: bool,
    },
    /// State of one resource or of all. Reply: [`StatusReply`].
    Status {
        /// One resource.
        name: Option<String>,
    },
    /// Become Primary. Reply: [`Done`].
    Promote {
        /// Resource.
        name: String,
        /// Accept data that is not known to be UpToDate.
        force: bool,
    },
    /// Become Secondary. Reply: [`Done`].
    Demote {
        /// Resource.
        name: String,
    },
    /// Connect to one peer or to all. Reply: [`Done`].
    Connect {
        /// Resource.
        name: String,
        /// Peer, by name or node id.
        peer: Option<String>,
        /// After a split brain: throw away what only this node has.
        discard_my_data: bool,
    },
    /// Disconnect from one peer or from all. Reply: [`Done`].
    Disconnect {
        /// Resource.
        name: String,
        /// Peer, by name or node id.
        peer: Option<String>,
        /// Do not ask the cluster.
        force: bool,
    },
    /// Attach the disk of one volume or of all. Reply: [`Done`].
    Attach {
        /// Resource.
        name: String,
        /// Volume.
        volume: Option<u16>,
    },
    /// Detach the disk of one volume or of all. Reply: [`Done`].
    Detach {
        /// Resource.
        name: String,
        /// Volume.
        volume: Option<u16>,
        /// Do not ask the cluster, do not wait for the disk.
        force: bool,
    },
    /// Begin to compare volumes with a peer's, or with those of all connected peers. Reply: [`Done`].
    Verify {
        /// Resource.
        name: String,
        /// Peer, by name or node id.
        peer: Option<String>,
        /// Volume; all if left out.
        volume: Option<u16>,
        /// First sector; left out: where the last verify was interrupted, else 0.
        start: Option<u64>,
        /// Sector to stop at; left out: the end.
        stop: Option<u64>,
    },
    /// Make a volume larger while it is in use, on all nodes. Reply: [`Done`].
    Resize {
        /// Resource.
        name: String,
        /// Volume.
        volume: u16,
        /// Its new size.
        size: Size,
        /// No resync of what is new.
        assume_clean: bool,
    },
    /// Pause resyncs with one peer or with all, or let them go on. Reply: [`Done`].
    PauseSync {
        /// Resource.
        name: String,
        /// Peer, by name or node id.
        peer: Option<String>,
        /// Volume; all if left out.
        volume: Option<u16>,
    },
    /// See [`Request::PauseSync`].
    ResumeSync {
        /// Resource.
        name: String,
        /// Peer, by name or node id.
        peer: Option<String>,
        /// Volume; all if left out.
        volume: Option<u16>,
    },
    /// Throw away the data of a volume on this node and resync all of it. Reply: [`Done`].
    Invalidate {
        /// Resource.
        name: String,
        /// Volume.
        volume: u16,
    },
    /// Have a peer throw away its data of a volume and resync all of it from this node. Reply: [`Done`].
    InvalidateRemote {
        /// Resource.
        name: String,
        /// Peer, by name or node id.
        peer: String,
        /// Volume.
        volume: u16,
    },
    /// Start a resource: attach and connect. Reply: [`Done`].
    Up {
        /// Resource.
        name: String,
    },
    /// Stop a resource: demote, disconnect, detach. Reply: [`Done`].
    Down {
        /// Resource.
        name: String,
    },
    /// The present state, then changes. Replies: [`Reply::Event`] lines without end.
    Events {
        /// Only of this resource.
        name: Option<String>,
    },
}

/// A shared secret. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It worked.
    Ok(serde_json::Value),
    /// It did not.
    Error(Failure),
    /// One event of a stream.
    Event(Event),
}

/// What kind of failure: decides the exit code of `zea`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something did not work.
    Failed,
    /// The request makes no sense.
    Usage,
    /// The state of the resource forbids it.
    Refused,
    /// It took too long.
    Timeout,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// DRBD's `SS_*` code (`handshake-and-states.md` section 2.3), 0 where DRBD has none.
    pub code: i32,
    /// What happened, and the next step.
    pub message: String,
}

impl Failure {
    /// Something did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure { kind: FailureKind::Failed, code: 0, message: message.into() }
    }

    /// The request makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure { kind: FailureKind::Usage, code: 0, message: message.into() }
    }

    /// The state forbids it; `code` is DRBD's or 0.
    pub fn refused(code: i32, message: impl Into<String>) -> Self {
        Failure { kind: FailureKind::Refused, code, message: message.into() }
    }

    /// A state change was refused, with DRBD's code and text.
    pub fn state_change(code: i32, text: &str) -> Self {
        Failure::refused(code, format!("State change failed: ({code}) {text}"))
    }

    /// It took too long.
    pub fn timeout(message: impl Into<String>) -> Self {
        Failure { kind: FailureKind::Timeout, code: 0, message: message.into() }
    }

    /// The same with text in front, for the object it is about.
    #[must_use]
    pub fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// Reply to a command that changed something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done that is worth a line.
    pub notes: Vec<String>,
}

/// A configured resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// It is meant to run.
    pub up: bool,
    /// Volumes and their backing devices.
    pub volumes: Vec<ListedVolume>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
}

/// A volume of a configured resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListedVolume {
    /// Its number.
    pub nr: u16,
    /// Its backing device.
    pub disk: String,
    /// Where an NBD client finds it.
    pub export: String,
}

/// Reply to [`Request::Version`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Version {
    /// Version of the daemon.
    pub version: String,
    /// Its node id.
    pub node_id: u8,
    /// Its process id.
    pub pid: u32,
    /// Everything that was up when the daemon stopped last has been started, or has failed to.
    pub ready: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_requests_have_this_form() {
        let request = Request::Connect { name: "r0".into(), peer: Some("bravo".into()), discard_my_data: true };
        let text = r#"{"command":"connect","name":"r0","peer":"bravo","discard-my-data":true}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
    }

    #[test]
    fn control_unknown_keys_are_refused() {
        for text in [r#"{"command":"demote","name":"r0","forse":true}"#, r#"{"command":"reboot"}"#, r#"{"name":"r0"}"#]
        {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn control_secrets_are_not_printed() {
        let request = Request::Apply {
            file: "f".into(),
            text: String::new(),
            secret: Some(Secret("hidden".into())),
            force: false,
        };
        assert!(!format!("{request:?}").contains("hidden"));
    }
}
