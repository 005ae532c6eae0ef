//! Zea with kernel DRBD.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::kernel_up;
use crate::Lab;

const SOON: Duration = Duration::from_secs(20);

/// Zea and a guest are configured to each other.
fn configure(lab: &mut Lab) -> Result<()> {
    lab.start_zead()?;
    lab.boot(1, 1)?;
    let host = lab.host_address();
    let disk = lab.zead().disk().display().to_string();
    lab.zead().zea(&format!(
        "resource create r0 --node 0=zea@{host}:7789 --node 1=guest1@10.99.0.1:7789 --volume 0={disk},size=16M"
    ))?;
    kernel_up(lab, 1, ("zea", host), "")?;
    lab.step("configured");
    Ok(())
}

/// Zea does not speak 86 to 101: neither waits for the other, and both say why.
pub fn interop_kernel_84_is_refused_with_the_reason_on_both_sides(lab: &mut Lab) -> Result<()> {
    configure(lab)?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] == "StandAlone")?;
    let status = lab.zead().status()?;
    let reason = status["connections"][0]["last-error"].as_str().unwrap_or_default();
    ensure!(reason.starts_with("refused:") && reason.contains("86..=101"), "{status:#}");
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:StandAlone' /proc/drbd")?;
    let said = lab.guest(1).run("dmesg | grep drbd")?;
    ensure!(said.contains("118") && said.contains("124"), "{said}");
    let packets = lab.packets()?;
    ensure!(packets.count("P_CONNECTION_FEATURES") == 2, "{:#?}", packets.lines);
    Ok(())
}
