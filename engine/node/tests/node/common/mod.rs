//! Real daemons on the loopback network, for tests: spawned, asked, killed, and gone at the end.

mod nbd;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use zea_node::api::{Done, Failure, Request, ResourceStatus, StatusReply, Version};
use zea_node::config::{Address, Disk, MetaDisk, Net, Options, Peer, ResourceFile, Size, Volume};
use zea_node::control::{Client, ClientError};

pub(crate) use nbd::NbdClient;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(20);
const NAMES: [&str; 3] = ["alpha", "bravo", "charlie"];
/// Size of the volumes.
pub(crate) const VOLUME_BYTES: u64 = 16 << 20;

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    id: u8,
    dir: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts a daemon on `dir` and waits until it has started what was up before.
    pub(crate) fn spawn(id: u8, dir: &Path) -> Daemon {
        Daemon::spawn_with(id, dir, &[])
    }

    /// [`Daemon::spawn`] with these options and no others.
    pub(crate) fn spawn_with(id: u8, dir: &Path, options: &[&str]) -> Daemon {
        std::fs::create_dir_all(dir).unwrap();
        let log = File::options().append(true).create(true).open(dir.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_zead"))
            .args(["--node-id", &id.to_string(), "--state-dir"])
            .arg(dir)
            .args(options)
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { id, dir: dir.to_owned(), child };
        let end = Instant::now() + PATIENCE;
        while !daemon.answers() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < end,
                "node {id} does not start: {ended:?}\n{}",
                daemon.log_tail()
            );
            sleep(TICK);
        }
        daemon
    }

    /// The daemon of this process answers, not one that was here before.
    fn answers(&self) -> bool {
        let version = Client::connect(&self.socket()).and_then(|mut client| client.call::<Version>(&Request::Version));
        version.is_ok_and(|version| version.pid == self.child.id() && version.ready)
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Where it lives.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same process as at the start still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Carries out a request that may fail.
    pub(crate) fn call(&self, request: &Request) -> Result<Done, Failure> {
        match Client::connect(&self.socket()).and_then(|mut client| client.call(request)) {
            Ok(done) => Ok(done),
            Err(ClientError::Failure(failure)) => Err(failure),
            Err(error) => panic!("node {}: {error}\n{}", self.id, self.log_tail()),
        }
    }

    /// Carries out a request that works.
    pub(crate) fn ok(&self, request: &Request) {
        if let Err(failure) = self.call(request) {
            panic!("node {}: {request:?}: {failure}\n{}", self.id, self.log_tail());
        }
    }

    /// The status of a resource that is up.
    pub(crate) fn status(&self, name: &str) -> ResourceStatus {
        let request = Request::Status { name: Some(name.into()) };
        let reply: StatusReply = Client::connect(&self.socket()).unwrap().call(&request).unwrap();
        reply.resources.into_iter().next().unwrap_or_else(|| panic!("{name} is down on node {}", self.id))
    }

    /// Waits until the status of `r0` is as wanted.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&ResourceStatus) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status("r0");
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < end, "node {}: waited for {what}\n{status:#?}\n{}", self.id, self.log_tail());
            sleep(TICK);
        }
    }

    /// Waits until all of `r0` is UpToDate and replicated everywhere.
    pub(crate) fn wait_synced(&self) {
        self.wait("synced", |status| {
            status.devices.iter().all(|device| device.disk_state == "UpToDate")
                && status.connections.iter().all(|connection| {
                    connection.connection_state == "Connected"
                        && connection.peer_devices.iter().all(|it| {
                            it.peer_disk_state == "UpToDate"
                                && it.replication_state == "Established"
                                && it.out_of_sync == 0
                        })
                })
        });
    }

    /// An NBD client of volume 0 of `r0`.
    pub(crate) fn nbd(&self) -> NbdClient {
        NbdClient::open(&self.dir.join("nbd.sock"), "r0/0")
            .unwrap_or_else(|error| panic!("node {}: {error}\n{}", self.id, self.log_tail()))
    }

    /// Why an NBD client is not let in.
    pub(crate) fn nbd_refusal(&self) -> String {
        NbdClient::open(&self.dir.join("nbd.sock"), "r0/0").err().expect("refused")
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "node {} does not stop\n{}", self.id, self.log_tail());
            sleep(TICK);
        }
    }

    /// Starts it again on the same directory.
    pub(crate) fn restart(&mut self) {
        let (id, dir) = (self.id, self.dir.clone());
        *self = Daemon::spawn(id, &dir);
    }

    /// What is on the backing file, as far as it is the volume's.
    pub(crate) fn backing(&self) -> Vec<u8> {
        let mut data = std::fs::read(self.dir.join("r0.img")).unwrap();
        data.truncate(usize::try_from(VOLUME_BYTES).unwrap());
        data
    }

    /// All that it said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Waits until its log says something: other threads write it, after what `status` shows.
    pub(crate) fn wait_log(&self, text: &str) {
        self.wait(&format!("{text:?} in its log"), |_| self.log().contains(text));
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = self.log();
        // The tests ask all the time.
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(": Status {")).collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Some daemons with a directory of their own, and `r0` on all of them.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Daemon>,
    pub(crate) addresses: Vec<SocketAddr>,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts daemons.
    pub(crate) fn empty(count: u8) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let addresses = loopback_addresses(count);
        let nodes = (0..count).map(|id| Daemon::spawn(id, &dir.path().join(id.to_string()))).collect();
        Cluster { nodes, addresses, dir }
    }

    /// Starts daemons and creates `r0` on each.
    pub(crate) fn new(count: u8) -> Cluster {
        let cluster = Cluster::empty(count);
        for (id, node) in (0..count).zip(&cluster.nodes) {
            let resource = Box::new(cluster.resource(id));
            node.ok(&Request::ResourceCreate { resource, secret: None, force: false });
        }
        cluster
    }

    /// Creates `r0` on a node, changed by `edit`.
    pub(crate) fn create(&self, id: u8, edit: impl FnOnce(&mut ResourceFile)) {
        let mut resource = Box::new(self.resource(id));
        edit(&mut resource);
        self.nodes[usize::from(id)].ok(&Request::ResourceCreate { resource, secret: None, force: false });
    }

    /// [`Cluster::new`] with equal data everywhere; node 0 is Primary.
    pub(crate) fn synced(count: u8) -> Cluster {
        let cluster = Cluster::new(count);
        cluster.nodes.iter().for_each(|node| node.wait("connected", connected));
        cluster.nodes[0].ok(&promote(true));
        cluster.nodes.iter().for_each(Daemon::wait_synced);
        cluster
    }

    /// `r0` as a node sees it.
    pub(crate) fn resource(&self, id: u8) -> ResourceFile {
        let peer = |(id, address): (u8, &SocketAddr)| Peer {
            id,
            name: NAMES[usize::from(id)].into(),
            address: Address(*address),
        };
        ResourceFile {
            name: "r0".into(),
            net: Net { ping_timeout_ms: 3000, ..Net::default() },
            disk: Disk::default(),
            options: Options::default(),
            nodes: (0..).zip(&self.addresses).map(peer).collect(),
            volumes: vec![Volume {
                nr: 0,
                disk: self.dir.path().join(id.to_string()).join("r0.img"),
                size: Some(Size(VOLUME_BYTES)),
                meta_disk: MetaDisk::Internal,
                resync_after: None,
            }],
        }
    }

    /// Takes `r0` down everywhere and compares what is on the disks.
    pub(crate) fn assert_equal_disks(&self) {
        self.nodes.iter().for_each(|node| node.ok(&Request::Down { name: "r0".into() }));
        let first = self.nodes[0].backing();
        for node in &self.nodes[1..] {
            let other = node.backing();
            let differs = first.iter().zip(&other).position(|(a, b)| a != b);
            assert_eq!(differs, None, "first byte that differs between nodes 0 and {}", node.id);
        }
    }
}

/// All peers are connected.
pub(crate) fn connected(status: &ResourceStatus) -> bool {
    status.connections.iter().all(|connection| connection.connection_state == "Connected")
}

/// Whether a test can do what it needs as root; where it cannot, that is said, and as root in CI it must.
pub(crate) fn is_possible(what: &str, result: Result<(), String>) -> bool {
    match result {
        Ok(()) => true,
        Err(why) => {
            let must = std::env::var("CI").as_deref() == Ok("true") && rustix::process::geteuid().is_root();
            assert!(!must, "{what}: {why}");
            eprintln!("SKIPPED: {what}: {why}; this check did NOT run");
            false
        }
    }
}

/// Promote `r0`.
pub(crate) fn promote(force: bool) -> Request {
    Request::Promote { name: "r0".into(), force }
}

/// Demote `r0`.
pub(crate) fn demote() -> Request {
    Request::Demote { name: "r0".into() }
}

/// Addresses that no other test of this machine has: hosts of 127/8 by process and cluster, and a port that is free.
fn loopback_addresses(count: u8) -> Vec<SocketAddr> {
    static CLUSTER: AtomicU8 = AtomicU8::new(0);
    let cluster = CLUSTER.fetch_add(1, Ordering::Relaxed);
    // Room for 63 clusters of three in one test program.
    let first = cluster.checked_mul(4).expect("fewer clusters") + 1;
    let [.., high, low] = std::process::id().to_be_bytes();
    let hosts: Vec<Ipv4Addr> = (0..count).map(|id| Ipv4Addr::new(127, high | 0x40, low, first + id)).collect();
    let port = TcpListener::bind((hosts[0], 0)).unwrap().local_addr().unwrap().port();
    hosts.into_iter().map(|host| SocketAddr::from((host, port))).collect()
}
