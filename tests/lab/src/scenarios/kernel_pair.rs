//! Kernel DRBD with itself: what the lab is worth without Zea.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{DEVICE_BYTES, kernel_up};
use crate::Lab;

const SYNCED: Duration = Duration::from_secs(90);

/// A guest boots, and the DRBD in it is the one that is wanted.
pub fn interop_guest_boots_and_loads_drbd(lab: &mut Lab) -> Result<()> {
    lab.boot(1, 1)?;
    let version = lab.guest(1).run("modprobe drbd; cat /proc/drbd")?;
    ensure!(version.contains("8.4.11 (api:1/proto:86-101)"), "{version}");
    let (output, code) = lab.guest(1).try_run(SYNCED, "echo one; exit 7")?;
    ensure!((output.as_str(), code) == ("one\n", 7), "{output:?}, {code}");
    Ok(())
}

/// Two resources of one kernel replicate over its loopback.
pub fn interop_two_kernel_resources_in_one_guest(lab: &mut Lab) -> Result<()> {
    lab.boot(1, 2)?;
    let guest = lab.guest(1);
    guest.run(
        "set -e; modprobe drbd
        up() { # NAME MINOR DISK OWN-PORT PEER-PORT
            echo yes | drbdmeta --force $2 v08 $3 internal create-md
            drbdsetup new-resource $1
            drbdsetup new-minor $1 $2 0
            drbdsetup attach $2 $3 $3 internal --resync-rate=200M --c-plan-ahead=0
            drbdsetup connect $1 ipv4:127.0.0.1:$4 ipv4:127.0.0.1:$5 --protocol=C --connect-int=1
        }
        up a 0 /dev/ubda 7789 7790
        up b 1 /dev/ubdb 7790 7789",
    )?;
    guest.wait(SYNCED, "grep -q ' 0: cs:Connected' /proc/drbd")?;
    guest.run("dd if=/dev/urandom of=/dev/ubda bs=1M count=8 conv=fsync && drbdsetup primary 0 --force")?;
    lab.step("connected");
    let guest = lab.guest(1);
    guest.wait(SYNCED, "grep -q ' 1: cs:Connected.*UpToDate/UpToDate' /proc/drbd")?;
    guest.run(
        "set -e; dd if=/dev/urandom of=/dev/drbd0 bs=64k count=16 seek=100 conv=fsync
        drbdsetup secondary 0; drbdsetup down a; drbdsetup down b; sync",
    )?;
    lab.step("synced and written");
    let (one, other) = (lab.disk(1, 0), lab.disk(1, 1));
    lab.compare(&one, &other, DEVICE_BYTES)
}

/// Two guests replicate over the bridge, and the recorder sees all of it.
pub fn interop_two_guests_over_a_bridge(lab: &mut Lab) -> Result<()> {
    for (number, peer) in [(1, 2), (2, 1)] {
        lab.boot(number, 1)?;
        kernel_up(lab, number, (&format!("guest{peer}"), &format!("10.99.0.{peer}")), "protocol C;")?;
    }
    lab.guest(1).wait(SYNCED, "grep -q ' 0: cs:Connected' /proc/drbd")?;
    lab.step("connected");
    lab.guest(1).run("drbdadm primary --force r0")?;
    lab.guest(1).wait(SYNCED, "grep -q 'UpToDate/UpToDate' /proc/drbd")?;
    lab.step("synced");
    lab.guest(1).run("dd if=/dev/urandom of=/dev/drbd0 bs=64k count=16 seek=100 conv=fsync")?;
    lab.guest(1).run("drbdadm secondary r0; drbdadm down r0; sync")?;
    lab.guest(2).run("drbdadm down r0; sync")?;
    lab.step("written");
    let (one, other) = (lab.disk(1, 0), lab.disk(2, 0));
    lab.compare(&one, &other, DEVICE_BYTES)?;
    let packets = lab.packets()?;
    let (writes, acks) = (packets.count("P_DATA"), packets.count("P_WRITE_ACK"));
    ensure!(writes >= 8 && writes == acks, "{writes} writes, {acks} acks: {packets}");
    Ok(())
}
