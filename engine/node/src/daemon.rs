//! The daemon: from its command line to its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;
use zea_recorder::RingOptions;

use crate::control::Server;
use crate::control::server::bind;
use crate::engine_handle::{Engine, Frontend, ShardEngine, ShardOptions};
use crate::hub::Hub;
use crate::node::Node;
use crate::store::Store;

/// How long a clean stop may take: less than what service managers wait before they kill.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// The kernel ends the ring of a daemon that was killed, and with it the listener of the NBD socket, a moment after the
/// daemon itself.
const NBD_SOCKET_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the listener is gone.
const BIND_TICK: Duration = Duration::from_millis(100);

const AFTER_HELP: &str =
    "Runs in the foreground until SIGTERM or SIGINT, then demotes, disconnects and detaches; a second \
signal ends it at once. Logs go to standard error, RUST_LOG chooses how much (RUST_LOG=debug).

Example:
  zead --node-id 0 --state-dir /var/lib/zea
  zea --socket /var/lib/zea/control.sock status

Exit codes:
  0  stopped by a signal
  1  could not start, or a shard has ended
  2  the command line is wrong";

/// Runs a node of replicated volumes
#[derive(Debug, Clone, Parser)]
#[command(name = "zead", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Options {
    /// Id of this node in its resources, 0 to 31
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=31))]
    pub node_id: u8,
    /// Directory with the saved resources; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Control socket [default: control.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Number of shards: threads that move data
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: u16,
    /// How volumes are offered to this machine while their resource is Primary: as block devices (ublk) where the kernel can
    /// (auto), as block devices or not at all (ublk), or as NBD exports only (export); exports are always there
    #[arg(long, value_name = "auto|ublk|export", value_enum, default_value_t = Frontend::Auto, hide_possible_values = true)]
    pub frontend: Frontend,
    /// Unix socket for NBD clients [default: nbd.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    pub nbd_socket: Option<PathBuf>,
    /// Also serve NBD clients on this TCP address; there is no authentication
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub nbd_listen: Option<SocketAddr>,
    /// Record what the state machines of the resources are told, for `zea replay`: flight/RESOURCE in the state directory
    #[arg(long, value_name = "on|off", value_enum, default_value_t = Switch::On, hide_possible_values = true)]
    pub flight_recorder: Switch,
    /// Space for the recording of each resource, in MiB; the oldest part is overwritten
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub flight_recorder_size: u64,
}

/// A flag with a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it.
    On,
    /// Do not.
    Off,
}

/// Why the daemon ends.
enum End {
    Signal(i32),
    Shard(u16),
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// It could not start, or a shard has ended.
pub fn run(options: &Options) -> Result<()> {
    // Before anything is made, so that no signal falls between.
    let signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let state_dir = absolute(&options.state_dir)?;
    let nbd_socket = absolute(options.nbd_socket.as_deref().unwrap_or(&state_dir.join("nbd.sock")))?;
    let socket = absolute(options.socket.as_deref().unwrap_or(&state_dir.join("control.sock")))?;
    let store = Store::open(&state_dir, options.node_id)?;

    let (end_sender, end) = channel();
    watch_signals(signals, end_sender.clone())?;
    let hub = Hub::new();
    let (shard_ended, ended_shards) = channel();
    let recordings = (options.flight_recorder == Switch::On)
        .then(|| RingOptions { dir: store.recordings(), ring_bytes: options.flight_recorder_size << 20 });
    let shard_options = ShardOptions {
        node_id: options.node_id,
        shards: options.shards,
        recordings,
        frontend: options.frontend,
        state_dir: state_dir.clone(),
    };
    let engine = ShardEngine::start(shard_options, &hub, &shard_ended)?;
    forward(ended_shards, end_sender)?;
    listen_nbd(&engine, &nbd_socket, options.nbd_listen)?;

    let node = Node::open(options.node_id, store, Arc::clone(&engine) as Arc<dyn Engine>, hub, nbd_socket.clone())?;
    let node = Arc::new(node);
    let server = Server::start(&socket, Arc::clone(&node))?;
    info!("node {} listens on {}", options.node_id, socket.display());
    let starting = Arc::clone(&node);
    // On a thread of its own: a device that hangs must not keep the daemon from stopping.
    thread::Builder::new().name("start".into()).spawn(move || starting.start_all()).context("cannot start a thread")?;

    let why = end.recv().expect("the senders live as long as their threads");
    if let End::Signal(signal) = why {
        info!("stopping for signal {signal}");
    }
    node.stop_all(STOP_GRACE);
    server.stop();
    engine.shut_down();
    std::fs::remove_file(&nbd_socket).ok();
    match why {
        End::Signal(_) => Ok(()),
        End::Shard(index) => bail!("shard {index} has ended; its last words are above"),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

fn listen_nbd(engine: &ShardEngine, socket: &Path, address: Option<SocketAddr>) -> Result<()> {
    let listener: UnixListener = bind(socket, NBD_SOCKET_PATIENCE)?;
    engine.listen_nbd(listener).context("cannot serve NBD clients")?;
    if let Some(address) = address {
        let listener = bind_tcp(address).with_context(|| format!("cannot listen on {address}"))?;
        engine.listen_nbd(listener).context("cannot serve NBD clients")?;
        info!("NBD clients on {address}");
    }
    Ok(())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let end = Instant::now() + NBD_SOCKET_PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => thread::sleep(BIND_TICK),
            done => return done,
        }
    }
}

fn watch_signals(mut signals: Signals, end: Sender<End>) -> Result<()> {
    let watch = move || {
        for (nr, signal) in signals.forever().enumerate() {
            if nr > 0 {
                // The second one is meant seriously: 128 + signal is what shells make of it.
                std::process::exit(128 + signal);
            }
            end.send(End::Signal(signal)).ok();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

fn forward(ended: std::sync::mpsc::Receiver<u16>, end: Sender<End>) -> Result<()> {
    let watch = move || ended.into_iter().for_each(|index| drop(end.send(End::Shard(index))));
    thread::Builder::new().name("shard-ends".into()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn node_command_line_is_consistent() {
        Options::command().debug_assert();
        let page = include_str!("../../../docs/reference/zea.md");
        for argument in Options::command().get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&format!("--{argument}")), "--{argument} is not on the page");
        }
    }

    #[test]
    fn node_command_line_has_bounds() {
        let parse = |more: &[&str]| Options::try_parse_from(["zead"].iter().chain(more));
        assert!(parse(&["--node-id", "31", "--state-dir", "/d"]).is_ok());
        assert!(parse(&["--node-id", "32", "--state-dir", "/d"]).is_err());
        assert!(parse(&["--node-id", "0"]).is_err());
        assert!(parse(&["--node-id", "0", "--state-dir", "/d", "--shards", "0"]).is_err());
        assert!(parse(&["--node-id", "0", "--state-dir", "/d", "--nbd-listen", "localhost"]).is_err());
        assert!(parse(&["--node-id", "0", "--state-dir", "/d", "--flight-recorder", "on"]).is_ok());
        assert!(parse(&["--node-id", "0", "--state-dir", "/d", "--flight-recorder-size", "0"]).is_err());
        assert!(parse(&["--node-id", "0", "--state-dir", "/d", "--frontend", "ublk"]).is_ok());
        assert!(parse(&["--node-id", "0", "--state-dir", "/d", "--frontend", "nbd"]).is_err());
    }
}
