//! A volume that grows while it is in use.

use std::fs::File;

use anyhow::{Result, ensure};

use super::kernel_config;
use super::pair::Side::{self, Kernel, Zea};
use super::pair::{SOON, demote, fill, now, promote_first, scribble, wait_connected, wait_synced};
use crate::Lab;

/// The size before and after, in MiB. The disks hold 16.
const SMALL_MIB: u32 = 8;
const LARGE_MIB: u32 = 14;

/// One lets the volume grow while `primary` uses it: what is new is copied, and no more.
fn grow(lab: &mut Lab, primary: Side, by: Side) -> Result<()> {
    small_pair(lab)?;
    scribble(lab, primary)?;
    promote_first(lab, primary)?;
    wait_synced(lab)?;
    fill(lab, primary, 0, 64, 1)?;
    let since = now()?;
    match by {
        Zea => lab.zead().zea(&format!("resize r0 0 {LARGE_MIB}M")).map(drop)?,
        Kernel => lab.guest(1).run(&format!("drbdsetup resize 0 --size={LARGE_MIB}M")).map(drop)?,
    }
    let kib = LARGE_MIB << 10;
    lab.zead().wait(SOON, |status| status["devices"][0]["size"] == kib)?;
    lab.guest(1).wait(SOON, &format!("grep -q '^ *147 *0 *{kib} ' /proc/partitions"))?;
    lab.step("grown");
    wait_synced(lab)?;
    fill(lab, primary, kib - 64, 64, 2)?;
    demote(lab, primary)?;
    wait_synced(lab)?;
    lab.guest(1).run("drbdadm down r0; sync")?;
    lab.zead().zea("down r0")?;
    let (zea, kernel) = (lab.zead().disk().to_owned(), lab.disk(1, 0));
    lab.compare(&zea, &kernel, u64::from(LARGE_MIB) << 20)?;
    let packets = lab.packets()?;
    let copied = packets.payload_since(since, "P_RS_DATA_REPLY");
    let new = ((LARGE_MIB - SMALL_MIB) as usize) << 20;
    ensure!(copied == new, "{copied} bytes were copied, {new} are new");
    Ok(())
}

/// Both have a volume that is smaller than their disks, and are connected.
fn small_pair(lab: &mut Lab) -> Result<()> {
    lab.start_zead()?;
    lab.boot(1, 1)?;
    let (host, disk) = (lab.host_address(), lab.zead().disk().to_owned());
    File::create(&disk)?.set_len(lab.disk_bytes())?;
    let disk = disk.display();
    lab.zead().zea(&format!(
        "resource create r0 --node 0=zea@{host}:7789 --node 1=guest1@10.99.0.1:7789 --volume 0={disk},size={SMALL_MIB}M"
    ))?;
    kernel_config(lab, 1, ("zea", host), "protocol C;")?;
    lab.guest(1).run(&format!(
        "set -e; sed -i 's/resync-rate 200M;/& size {SMALL_MIB}M;/' /etc/drbd.conf
        drbdadm create-md --force r0; drbdadm up r0"
    ))?;
    wait_connected(lab)
}

/// Zea is Primary and begins.
pub fn interop_zea_primary_grows(lab: &mut Lab) -> Result<()> {
    grow(lab, Zea, Zea)
}

/// Zea is Primary, the kernel begins.
pub fn interop_zea_primary_grows_when_the_kernel_does(lab: &mut Lab) -> Result<()> {
    grow(lab, Zea, Kernel)
}

/// The kernel is Primary and begins.
pub fn interop_kernel_primary_grows(lab: &mut Lab) -> Result<()> {
    grow(lab, Kernel, Kernel)
}

/// The kernel is Primary, Zea begins.
pub fn interop_kernel_primary_grows_when_zea_does(lab: &mut Lab) -> Result<()> {
    grow(lab, Kernel, Zea)
}
