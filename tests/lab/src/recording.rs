//! What was said on the network of a lab.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use zea_capture::Event;

use crate::namespace::{BRIDGE, Namespace};

/// How long tcpdump may take to begin.
const BEGUN: Duration = Duration::from_secs(20);
/// How long the last frames may take to come into the file.
const SETTLED: Duration = Duration::from_millis(300);

/// A recording that goes on until it is read.
#[derive(Debug)]
pub(crate) struct Recording {
    tcpdump: Child,
    file: PathBuf,
}

/// The packets of a recording by name.
#[derive(Debug, Default)]
pub struct Packets {
    /// Numbers by name, such as `P_DATA`.
    pub by_name: BTreeMap<&'static str, usize>,
    /// Everything that was said, a line each, without the bulk data.
    pub lines: Vec<String>,
}

impl Packets {
    /// How many packets have this name.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.by_name.get(name).copied().unwrap_or_default()
    }
}

impl Recording {
    /// Begins to record everything that passes the bridge.
    pub(crate) fn begin(namespace: &Namespace, folder: &Path) -> Result<Recording> {
        let file = folder.join("capture.pcap");
        let said = folder.join("tcpdump.log");
        let mut tcpdump = namespace.command("tcpdump");
        tcpdump.args(["-i", BRIDGE, "-s", "0", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w"]);
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

    /// Ends it and decodes it.
    ///
    /// # Errors
    /// Something in it cannot be decoded: what, and where the file is.
    pub(crate) fn read(mut self) -> Result<Packets> {
        thread::sleep(SETTLED);
        self.tcpdump.kill()?;
        self.tcpdump.wait()?;
        let mut packets = Packets::default();
        let mut broken = Vec::new();
        let (summary, end) = zea_capture::read(&self.file, |at, event| match event {
            Event::Packet(recorded) => {
                let name = recorded.packet.name();
                *packets.by_name.entry(name).or_default() += 1;
                let fields = zea_capture::fields(recorded.packet, &recorded.neg);
                let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                packets.lines.push(format!("{} > {} {name} {}", at.from.ip(), at.to.ip(), fields.join(" ")));
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
