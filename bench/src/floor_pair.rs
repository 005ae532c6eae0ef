//! The composed floor as two processes of this program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::Daemon;

/// A floor's primary and its secondary.
#[derive(Debug)]
pub struct FloorPair {
    uri: String,
    // The primary is dropped first: it uses the other.
    _primary: Daemon,
    _secondary: Daemon,
}

impl FloorPair {
    /// Starts the pair over `backing`, with its socket and logs in `directory`; `program` is `zea-bench`.
    ///
    /// # Errors
    /// A process cannot be started or ends.
    pub fn start(program: &Path, backing: &[PathBuf; 2], directory: &Path) -> Result<Self> {
        let mut secondary = Command::new(program);
        secondary.arg("floor-secondary").arg("--device").arg(&backing[1]);
        let (secondary, address) = Daemon::start_announced("floor-secondary", &mut secondary, directory)?;

        let mut primary = Command::new(program);
        primary.arg("floor-primary").arg("--socket").arg(directory.join("floor.sock"));
        primary.args(["--secondary", &address]).arg("--device").arg(&backing[0]);
        let (primary, socket) = Daemon::start_announced("floor-primary", &mut primary, directory)?;
        Ok(Self { uri: format!("nbd+unix:///?socket={socket}"), _primary: primary, _secondary: secondary })
    }

    /// The export's URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }
}
