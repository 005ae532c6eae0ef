//! Zea and kernel DRBD as the two nodes of r0, and what can be done on either of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::{META_BYTES, kernel_up};
use crate::tool::{self, Background};
use crate::{Lab, Packets};

/// How long nodes may take to connect, or to change a state.
pub(super) const SOON: Duration = Duration::from_secs(90);
/// Seconds for a program that writes.
const WRITE_S: u32 = 180;

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Zea,
    Kernel,
}
use Side::{Kernel, Zea};

/// Sets both up, and waits until they are connected.
pub(super) fn connected_pair(lab: &mut Lab, protocol: char) -> Result<()> {
    pair(lab, protocol, "", "")?;
    wait_connected(lab)
}

/// Sets both up; `zea` are more options of `zea resource create`, `kernel` of the kernel's connection.
pub(super) fn pair(lab: &mut Lab, protocol: char, zea: &str, kernel: &str) -> Result<()> {
    lab.start_zead()?;
    lab.boot(1, 1)?;
    resource(lab, protocol, zea, kernel)
}

/// Makes the resource on both, with new meta data.
pub(super) fn resource(lab: &mut Lab, protocol: char, zea: &str, kernel: &str) -> Result<()> {
    let host = lab.host_address();
    let disk = lab.zead().disk().display().to_string();
    let kib = lab.disk_bytes() >> 10;
    lab.zead().zea(&format!(
        "resource create r0 --node 0=zea@{host}:7789 --node 1=guest1@10.99.0.1:7789 --volume 0={disk},size={kib}K \
         --protocol {protocol} {zea}"
    ))?;
    kernel_up(lab, 1, ("zea", host), &format!("protocol {protocol}; {kernel}"))
}

/// Waits until both say that they are connected.
pub(super) fn wait_connected(lab: &mut Lab) -> Result<()> {
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] == "Connected")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:\\(Connected\\|Sync\\|Paused\\|WFBitMap\\)' /proc/drbd")?;
    // What Zea says of the speed of a resync, the kernel takes for its own.
    lab.guest(1).run("drbdsetup disk-options 0 --c-plan-ahead=0 --resync-rate=200M")?;
    lab.step("connected");
    Ok(())
}

/// Waits until both say that both are UpToDate with nothing out of sync.
pub(super) fn wait_synced(lab: &mut Lab) -> Result<()> {
    lab.zead().wait(SOON, |status| {
        let peer = &status["connections"][0]["peer_devices"][0];
        status["devices"][0]["disk-state"] == "UpToDate"
            && peer["peer-disk-state"] == "UpToDate"
            && peer["replication-state"] == "Established"
            && peer["out-of-sync"] == 0
    })?;
    lab.guest(1)
        .wait(SOON, "grep -q ' 0: cs:Connected.*UpToDate/UpToDate' /proc/drbd && grep -q 'oos:0$' /proc/drbd")?;
    lab.step("synced");
    Ok(())
}

/// Both connected, one of them Primary, and all of its data copied.
pub(super) fn synced_pair(lab: &mut Lab, protocol: char, primary: Side) -> Result<()> {
    connected_pair(lab, protocol)?;
    promote_first(lab, primary)?;
    wait_synced(lab)
}

/// Boots the guest again after it lost its power, with what was on its disk.
pub(super) fn power_on(lab: &mut Lab) -> Result<()> {
    lab.boot(1, 1)?;
    let host = lab.host_address();
    super::kernel_config(lab, 1, ("zea", host), "protocol C;")?;
    lab.guest(1).run("drbdadm up r0")?;
    wait_connected(lab)
}

/// Makes one Primary, whose data is the truth from now on.
pub(super) fn promote_first(lab: &mut Lab, side: Side) -> Result<()> {
    match side {
        Zea => lab.zead().zea("promote r0 --force").map(drop),
        Kernel => lab.guest(1).run("drbdadm primary --force r0").map(drop),
    }
}

/// Random data on the disk of one of them, behind its back: what is there before the first copy.
pub(super) fn scribble(lab: &mut Lab, side: Side) -> Result<()> {
    const DD: &str = "if=/dev/urandom bs=1M count=12 conv=notrunc,fsync";
    match side {
        Zea => {
            let disk = format!("of={}", lab.zead().disk().display());
            tool::succeed(tool::limited(WRITE_S, "dd").args(DD.split(' ')).arg(disk)).map(drop)
        }
        Kernel => lab.guest(1).run(&format!("dd {DD} of=/dev/ubda")).map(drop),
    }
}

/// Changes a block of 4 KiB on the disk of one of them, behind its back, as a failing disk does.
pub(super) fn plant(lab: &mut Lab, side: Side, at_kib: u32) -> Result<()> {
    let dd = format!("if=/dev/urandom bs=4k count=1 seek={} conv=notrunc,fsync", at_kib / 4);
    match side {
        Zea => {
            let disk = format!("of={}", lab.zead().disk().display());
            tool::succeed(tool::limited(WRITE_S, "dd").args(dd.split(' ')).arg(disk)).map(drop)
        }
        Kernel => lab.guest(1).run(&format!("dd {dd} of=/dev/ubda")).map(drop),
    }
}

/// KiB out of sync, as Zea says and as the kernel says.
pub(super) fn out_of_sync(lab: &mut Lab) -> Result<(u64, u64)> {
    let status = lab.zead().status()?;
    let zea = status["connections"][0]["peer_devices"][0]["out-of-sync"].as_u64().unwrap_or(u64::MAX);
    let kernel = lab.guest(1).run("sed -n 's/.* oos:\\([0-9]*\\).*/\\1/p' /proc/drbd")?;
    Ok((zea, kernel.trim().parse().with_context(|| format!("no number: {kernel}"))?))
}

/// Zea disconnects and connects again.
pub(super) fn reconnect(lab: &mut Lab) -> Result<()> {
    lab.zead().zea("disconnect r0 guest1")?;
    lab.zead().zea("connect r0 guest1")?;
    wait_connected(lab)
}

pub(super) fn promote(lab: &mut Lab, side: Side) -> Result<()> {
    match side {
        Zea => lab.zead().zea("promote r0").map(drop),
        Kernel => lab.guest(1).run("drbdadm primary r0").map(drop),
    }
}

pub(super) fn demote(lab: &mut Lab, side: Side) -> Result<()> {
    match side {
        Zea => lab.zead().zea("demote r0").map(drop),
        Kernel => lab.guest(1).run("drbdadm secondary r0").map(drop),
    }
}

/// Fills a range with a byte, through the volume, and flushes. KiB.
pub(super) fn fill(lab: &mut Lab, side: Side, at_kib: u32, len_kib: u32, byte: u8) -> Result<()> {
    match side {
        Zea => qemu_io(lab, &format!("write -P {byte} {at_kib}k {len_kib}k")),
        Kernel => {
            let script = format!(
                "set -e; tr '\\0' '\\{byte:o}' </dev/zero | dd of=/dev/drbd0 bs=1k seek={at_kib} count={len_kib} \
                 iflag=fullblock conv=fsync"
            );
            lab.guest(1).run(&script).map(drop)
        }
    }
}

/// Runs a command of qemu-io on Zea's volume, and a flush.
pub(super) fn qemu_io(lab: &mut Lab, command: &str) -> Result<()> {
    let uri = lab.zead().nbd();
    let mut qemu_io = tool::limited(WRITE_S, "qemu-io");
    qemu_io.args(["-f", "raw", "-d", "unmap", "-c", command, "-c", "flush"]).arg(uri);
    tool::succeed(&mut qemu_io).map(drop)
}

/// What fio does on both sides: random writes that are read back and compared.
const FIO: &str = "--name=load --rw=randwrite --bsrange=4k-64k --size=8m --iodepth=8 --verify=crc32c --verify_fatal=1 \
                   --randrepeat=0 --output-format=terse";

/// Writes random blocks through the volume with fio, and reads them back.
pub(super) fn fio(lab: &mut Lab, side: Side) -> Result<()> {
    match side {
        Zea => {
            let uri = lab.zead().nbd();
            let folder = lab.folder().to_owned();
            let mut fio = tool::limited(WRITE_S, "fio");
            fio.args(FIO.split_whitespace()).arg("--ioengine=nbd").arg(format!("--uri={uri}")).current_dir(folder);
            tool::succeed(&mut fio)?;
        }
        Kernel => {
            let fio = format!("cd /tmp; fio {FIO} --ioengine=libaio --direct=1 --filename=/dev/drbd0");
            lab.guest(1).run(&fio)?;
        }
    }
    lab.step("fio");
    Ok(())
}

/// KiB that a load has written before anything else happens.
const LOAD_KIB: u64 = 100;

/// KiB that were written to Zea's volume.
fn written(status: &serde_json::Value) -> u64 {
    status["devices"][0]["written"].as_u64().unwrap_or_default()
}

/// Writes that go on in the background until it is dropped, or until they fail.
pub(super) struct Load {
    /// The writer on this machine; that in a guest ends with it, or by [`Load::stop`].
    zea: Option<Background>,
}

impl Load {
    /// Begins.
    pub(super) fn begin(lab: &mut Lab, side: Side) -> Result<Load> {
        const ENDLESS: &str = "--name=load --rw=randwrite --bs=4k --size=8m --iodepth=4 --randrepeat=0 --time_based --runtime=170 --rate_iops=150";
        let load = match side {
            Zea => {
                let before = written(&lab.zead().status()?);
                let uri = lab.zead().nbd();
                let folder = lab.folder().to_owned();
                let uri = format!("--uri={uri}");
                // With threads it is one process.
                let fio = Background::start("fio", |fio| {
                    fio.args(ENDLESS.split_whitespace()).args(["--thread", "--ioengine=nbd", &uri]).current_dir(folder)
                })?;
                let load = Load { zea: Some(fio) };
                lab.zead().wait(SOON, |status| written(status) > before + LOAD_KIB)?;
                load
            }
            Kernel => {
                lab.guest(1).run(&format!(
                    "load() {{
                        while [ -e /tmp/load ]; do
                            dd if=/dev/urandom of=/dev/drbd0 bs=4k count=1 seek=$((RANDOM % 2048)) conv=notrunc,fsync
                        done
                        : >/tmp/stopped.$1
                    }}
                    written() {{ sed -n 's/.* dw:\\([0-9]*\\).*/\\1/p' /proc/drbd; }}
                    rm -f /tmp/stopped.*; : >/tmp/load; before=$(written)
                    for lane in 1 2 3 4; do load $lane >/dev/null 2>&1 & done
                    until [ $(written) -gt $((before + {LOAD_KIB})) ]; do sleep 0.1; done"
                ))?;
                Load { zea: None }
            }
        };
        lab.step("load");
        Ok(load)
    }

    /// Ends it, where its side still runs.
    pub(super) fn stop(self, lab: &mut Lab) -> Result<()> {
        match self.zea {
            Some(fio) => drop(fio),
            None => lab.guest(1).run("rm /tmp/load; until [ -e /tmp/stopped.1 -a -e /tmp/stopped.2 -a -e /tmp/stopped.3 -a -e /tmp/stopped.4 ]; do sleep 0.1; done").map(drop)?,
        }
        Ok(())
    }
}

/// Now, on the clock of the recording.
pub(super) fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// The end of every scenario: both are Secondary and in sync, stop, and have the same bytes. Returns what was said.
pub(super) fn finish(lab: &mut Lab, primary: Side) -> Result<Packets> {
    demote(lab, primary)?;
    wait_synced(lab)?;
    stop_and_compare(lab)
}

/// Stops both and compares their disks.
pub(super) fn stop_and_compare(lab: &mut Lab) -> Result<Packets> {
    stop(lab)?;
    let packets = lab.packets()?;
    ensure!(packets.count("P_CONNECTION_FEATURES") >= 2, "the recording has no handshake: {packets}");
    Ok(packets)
}

/// As [`stop_and_compare`], and the recording goes on.
pub(super) fn stop(lab: &mut Lab) -> Result<()> {
    lab.guest(1).run("drbdadm down r0; sync")?;
    lab.zead().zea("down r0")?;
    lab.step("down");
    let (zea, kernel) = (lab.zead().disk().to_owned(), lab.disk(1, 0));
    lab.compare(&zea, &kernel, lab.disk_bytes() - META_BYTES)
}
