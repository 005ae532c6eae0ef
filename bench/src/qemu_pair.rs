//! The peer that every Debian has: `qemu-storage-daemon` with the quorum driver over a local file
//! and the NBD export of a second daemon.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::backing::is_block_device;
use crate::process::{Daemon, Interrupt};

/// Two daemons; with a vote threshold of two, a write is done when both replicas have it.
#[derive(Debug)]
pub struct QemuPair {
    uri: String,
    // The front is dropped first: it uses the other.
    _front: Daemon,
    _remote: Daemon,
}

impl QemuPair {
    /// Starts the pair over `backing`, with its sockets and logs in `directory`.
    ///
    /// # Errors
    /// A daemon cannot be started or ends.
    pub fn start(backing: &[PathBuf; 2], directory: &Path, interrupt: &Interrupt) -> Result<Self> {
        let address = free_address()?;
        let (host, port) = (address.ip(), address.port());
        let mut remote = Command::new("qemu-storage-daemon");
        remote.args(["--blockdev", &disk("f0", &backing[1])?]);
        remote.args(["--nbd-server", &format!("addr.type=inet,addr.host={host},addr.port={port}")]);
        remote.args(["--export", "type=nbd,id=e0,node-name=f0,name=r,writable=on"]);
        let mut remote = Daemon::start("qemu-remote", &mut remote, directory)?;
        remote.wait_until("NBD server", interrupt, || TcpStream::connect(address).is_ok())?;

        let socket = directory.join("qemu.sock");
        let mut front = Command::new("qemu-storage-daemon");
        front.args(["--blockdev", &disk("f0", &backing[0])?]);
        front.args([
            "--blockdev",
            &format!(
                "driver=nbd,node-name=n0,server.type=inet,server.host={host},\
                 server.port={port},export=r"
            ),
        ]);
        front.args(["--blockdev", "driver=quorum,node-name=q0,children.0=f0,children.1=n0,vote-threshold=2"]);
        front.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
        front.args(["--export", "type=nbd,id=e0,node-name=q0,name=v,writable=on"]);
        let mut front = Daemon::start("qemu-front", &mut front, directory)?;
        front.wait_until("NBD socket", interrupt, || socket.exists())?;
        Ok(Self { uri: format!("nbd+unix:///v?socket={}", socket.display()), _front: front, _remote: remote })
    }

    /// The export's URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

fn disk(node: &str, path: &Path) -> Result<String> {
    let driver = if is_block_device(path)? { "host_device" } else { "file" };
    Ok(format!("driver={driver},node-name={node},filename={},cache.direct=on,aio=io_uring", path.display()))
}

/// An address on the loopback that nothing listens at now; the daemon cannot pick one by itself
/// and say which.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
