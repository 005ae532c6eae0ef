//! data-integrity-alg: digests of all data on the wire.

use anyhow::{Result, ensure};

use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    SOON, demote, fill, finish, fio, pair, promote, promote_first, reconnect, wait_connected, wait_synced,
};
use crate::Lab;

/// A full sync, writes by both, and a resync by the bitmap: each checks what the other says of its data.
fn data_integrity(lab: &mut Lab, primary: Side, alg: &str) -> Result<()> {
    let other = if primary == Zea { Kernel } else { Zea };
    lab.give("fio");
    pair(lab, 'C', &format!("--data-integrity-alg {alg}"), &format!("data-integrity-alg {alg};"))?;
    wait_connected(lab)?;
    promote_first(lab, primary)?;
    wait_synced(lab)?;
    fio(lab, primary)?;
    demote(lab, primary)?;
    promote(lab, other)?;
    fio(lab, other)?;
    lab.zead().zea("disconnect r0 guest1")?;
    fill(lab, other, 512, 2048, 0x5a)?;
    lab.zead().zea("connect r0 guest1")?;
    wait_connected(lab)?;
    wait_synced(lab)?;
    let packets = finish(lab, other)?;
    let [sent, copied] = ["P_DATA", "P_RS_DATA_REPLY"].map(|name| packets.count(name));
    ensure!(sent > 200 && copied > 17, "{packets}");
    ensure!(packets.count("P_CONNECTION_FEATURES") == 4, "a digest was wrong: {packets}");
    Ok(())
}

/// A Primary of Zea's first.
pub fn interop_data_integrity_of_a_zea_primary(lab: &mut Lab) -> Result<()> {
    data_integrity(lab, Zea, "crc32c")
}

/// A Primary of the kernel's first.
pub fn interop_data_integrity_of_a_kernel_primary(lab: &mut Lab) -> Result<()> {
    data_integrity(lab, Kernel, "sha1")
}

/// Other digests are refused by both, with the reason; a change on the connection makes it again.
pub fn interop_data_integrity_must_be_the_same(lab: &mut Lab) -> Result<()> {
    pair(lab, 'C', "--data-integrity-alg sha1", "data-integrity-alg crc32c;")?;
    let alone = |status: &serde_json::Value| {
        let connection = &status["connections"][0];
        let why = connection["last-error"].as_str().unwrap_or_default();
        connection["connection-state"] == "StandAlone" && why.contains("data-integrity-alg is sha1 here and")
    };
    lab.zead().wait(SOON, alone)?;
    lab.guest(1)
        .run("sed -i 's/alg crc32c/alg sha1/' /etc/drbd.conf; drbdadm disconnect --force r0; drbdadm adjust r0")?;
    lab.zead().zea("connect r0")?;
    wait_connected(lab)?;
    promote_first(lab, Kernel)?;
    wait_synced(lab)?;
    lab.step("the same");
    lab.guest(1).run("sed -i 's/alg sha1/alg md5/' /etc/drbd.conf; drbdadm adjust r0")?;
    lab.zead().wait(SOON, alone)?;
    lab.step("changed");
    lab.guest(1)
        .run("sed -i 's/alg md5/alg sha1/' /etc/drbd.conf; drbdadm disconnect --force r0; drbdadm adjust r0")?;
    reconnect_alone(lab)?;
    let packets = finish(lab, Kernel)?;
    ensure!(packets.count("P_PROTOCOL_UPDATE") > 0, "{packets}");
    Ok(())
}

/// Zea stands alone, and connects again.
fn reconnect_alone(lab: &mut Lab) -> Result<()> {
    lab.zead().zea("connect r0")?;
    wait_connected(lab)?;
    wait_synced(lab)?;
    reconnect(lab)
}
