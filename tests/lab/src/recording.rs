//! What was said on the network of a lab.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use zea_capture::Event;

use crate::namespace::{BRIDGE, Namespace};

/// Frames that are not cut to packets yet have up to 64 KiB, and their headers.
const FRAME_BYTES: &str = "66000";
/// Room for about 2000 frames, whatever their size: on a busy machine tcpdump may wait long for its turn.
const BUFFER_KIB: &str = "131072";
/// How long tcpdump may take to begin.
const BEGUN: Duration = Duration::from_secs(60);
/// How long the last frames may take to come into the file.
const SETTLED: Duration = Duration::from_millis(300);

/// A recording that goes on until it is read.
#[derive(Debug)]
pub(crate) struct Recording {
    tcpdump: Child,
    file: PathBuf,
}

/// A packet that was said.
#[derive(Debug)]
pub struct Said {
    /// When, since the epoch.
    pub time: Duration,
    /// The sender.
    pub from: IpAddr,
    /// Such as `P_DATA`.
    pub name: &'static str,
    /// Bytes of bulk data.
    pub payload: usize,
    /// Its fields, as text.
    pub fields: String,
}

/// The packets of a recording, in order.
#[derive(Debug, Default)]
pub struct Packets(pub Vec<Said>);

impl Packets {
    /// How many packets have this name.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.0.iter().filter(|said| said.name == name).count()
    }

    /// The last `count` of them, without the signs of life.
    #[must_use]
    pub fn last(mut self, count: usize) -> Packets {
        self.0.retain(|said| !matches!(said.name, "P_PING" | "P_PING_ACK"));
        let first = self.0.len().saturating_sub(count);
        Packets(self.0.split_off(first))
    }

    /// Bytes of bulk data in packets of this name, since this time.
    #[must_use]
    pub fn payload_since(&self, time: Duration, name: &str) -> usize {
        self.0.iter().filter(|said| said.time >= time && said.name == name).map(|said| said.payload).sum()
    }
}

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Said { time, from, name, payload, fields }| {
            writeln!(f, "{:.6} {from} {name} {fields} payload={payload}", time.as_secs_f64())
        })
    }
}

impl Recording {
    /// Begins to record everything that passes the bridge.
    pub(crate) fn begin(namespace: &Namespace, folder: &Path) -> Result<Recording> {
        let file = folder.join("capture.pcap");
        let said = folder.join("tcpdump.log");
        let mut tcpdump = namespace.command("tcpdump");
        tcpdump.args(["-i", BRIDGE, "-s", FRAME_BYTES, "-B", BUFFER_KIB, "-U", "--immediate-mode", "-Z", "root", "-w"]);
        tcpdump.arg(&file).arg("tcp").stdout(Stdio::null()).stderr(fs::File::create(&said)?);
        let mut recording = Recording { tcpdump: tcpdump.spawn().context("cannot start tcpdump")?, file };
        let begin = Instant::now();
        while !fs::read_to_string(&said)?.contains("listening on") {
            let ended = recording.tcpdump.try_wait()?;
            if ended.is_some() || begin.elapsed() > BEGUN {
                bail!("tcpdump does not record: {}", fs::read_to_string(&said)?);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(recording)
    }

    /// Ends it, if it goes on, and decodes it.
    ///
    /// # Errors
    /// Something in it cannot be decoded: what, and where the file is.
    pub(crate) fn read(&mut self) -> Result<Packets> {
        if self.tcpdump.try_wait()?.is_none() {
            thread::sleep(SETTLED);
            self.tcpdump.kill()?;
            self.tcpdump.wait()?;
        }
        let mut packets = Packets::default();
        let mut broken = Vec::new();
        let (summary, end) = zea_capture::read(&self.file, |at, event| match event {
            Event::Packet(recorded) => {
                let fields = zea_capture::fields(recorded.packet, &recorded.neg);
                let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                packets.0.push(Said {
                    time: at.time,
                    from: at.from.ip(),
                    name: recorded.packet.name(),
                    payload: recorded.payload.len(),
                    fields: fields.join(" "),
                });
            }
            Event::Undecodable(what) => broken.push(format!("{at:?}: {what:?}")),
            Event::Opened | Event::Closed(_) => {}
        });
        let file = self.file.display();
        end.with_context(|| format!("cannot read {file}"))?;
        ensure!(broken.is_empty() && summary.is_whole(), "{file} is not decoded: {summary:?} {broken:#?}");
        Ok(packets)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // A failure means that it is gone already.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}
