//! What was done on the nodes of a recording, and when (`commands.txt`).

use zea_wire::ids::VolumeNr;

use crate::res::bytes;

/// Nanoseconds since the epoch.
pub type Nanos = u64;

/// What an operation of `iot` does, or a command of the system that moves data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Io {
    /// Writes one range, filled with a tag; with `fua` through to the medium.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What fills it.
        tag: String,
        /// Through to the medium.
        fua: bool,
    },
    /// Makes everything written stable.
    Flush,
}

/// Something that was done on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The meta data of a volume was created; `None`: of all.
    CreateMd(Option<VolumeNr>),
    /// Everything was configured and brought up.
    Up,
    /// Everything was taken down.
    Down,
    /// Role Primary.
    Promote {
        /// Option `--force`.
        force: bool,
    },
    /// Role Secondary.
    Demote,
    /// All connections of the resource.
    Connect {
        /// Option `--discard-my-data`.
        discard_my_data: bool,
    },
    /// All connections of the resource.
    Disconnect,
    /// From here on this node's configuration is that of `r0.TAG.res`.
    Configured(String),
    /// A volume gets the size that is configured by then.
    Resize {
        /// What is new is not resynced.
        assume_clean: bool,
    },
    /// An online verify with all peers.
    Verify {
        /// Option `--start`.
        start_sector: Option<u64>,
        /// Option `--stop`.
        stop_sector: Option<u64>,
    },
    /// The local data is thrown away.
    Invalidate,
    /// Resyncs with all peers are paused, or go on.
    PauseSync(bool),
    /// The disk is given up.
    Detach,
    /// The disk is taken again.
    Attach,
    /// A new generation, with option `--clear-bitmap`.
    NewCurrentUuid,
    /// On the device of the resource.
    Io(Io),
    /// On the disk behind the resource.
    Disk(Io),
    /// The whole node died.
    Killed,
    /// Its cable was pulled (true) or plugged in again.
    Cable(bool),
    /// A command that this harness does not know.
    Unknown(String),
}

/// Something that was done, and where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// When it began.
    pub time: Nanos,
    /// When it ended, if that is known.
    pub end: Nanos,
    /// The name of the node.
    pub node: String,
    /// What.
    pub done: Done,
}

/// Reads `commands.txt`; `day` is the midnight before the recording, in nanoseconds since the epoch. In order of time.
///
/// # Errors
/// A line that makes no sense.
pub fn parse(text: &str, day: Nanos) -> Result<Vec<Command>, String> {
    let mut commands: Vec<Command> = Vec::new();
    // The node on whose device the lines with a bar that follow did something.
    let mut device: Option<(String, bool)> = None;
    for line in text.lines() {
        if let Some(output) = line.trim_start().strip_prefix("| ") {
            if let Some((node, backing)) = &device {
                commands.extend(io_lines(output, node, *backing)?);
            }
            continue;
        }
        device = None;
        let (clock, rest) = line.split_at_checked(15).ok_or_else(|| format!("a short line: {line}"))?;
        let time = day + clock_of(clock).ok_or_else(|| format!("no time in: {line}"))?;
        let what = rest.split_once("] ").map_or("", |(_, what)| what);
        let (what, result) = what.rsplit_once("   -> rc=").unwrap_or((what, ""));
        let took = result.split_once('(').and_then(|(_, took)| took.split_whitespace().next()).and_then(seconds);
        let add = |node: &str, done| Command { time, end: time + took.unwrap_or(0), node: node.to_owned(), done };
        if let Some((node, command)) = what.split_once("$ ") {
            if node == "network" {
                commands.extend(cable(command).map(|(node, pulled)| add(&node, Done::Cable(pulled))));
            } else if let Some(io) = command.strip_prefix("iot ") {
                let io = io.trim_start_matches("-r ");
                device = Some((node.to_owned(), !io.starts_with("/dev/drbd")));
            } else {
                commands.extend(administration(command).map(|done| add(node, done)));
            }
        } else if let Some((node, event)) = what.split_once(": ") {
            commands.extend(happened(event).map(|done| add(node, done)));
        }
    }
    commands.sort_by_key(|c| c.time);
    Ok(commands)
}

/// What was done to a node from outside.
fn happened(event: &str) -> Option<Done> {
    let tag = event.strip_prefix("new /etc/drbd.conf (r0.").and_then(|rest| rest.strip_suffix(".res)"));
    match tag {
        Some(tag) => Some(Done::Configured(tag.to_owned())),
        None => event.contains("kill -9").then_some(Done::Killed),
    }
}

fn clock_of(text: &str) -> Option<Nanos> {
    let mut parts = text.trim().split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let (seconds, micros) = parts.next()?.split_once('.')?;
    let seconds = hours * 3600 + minutes * 60 + seconds.parse::<u64>().ok()?;
    Some(seconds * 1_000_000_000 + micros.parse::<u64>().ok()? * 1000)
}

/// Seconds with digits behind the point, in nanoseconds.
fn seconds(text: &str) -> Option<Nanos> {
    let (seconds, rest) = text.split_once('.')?;
    let digits = u32::try_from(rest.len()).ok().filter(|digits| *digits <= 9)?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000_000 + rest.parse::<u64>().ok()? * 10_u64.pow(9 - digits))
}

/// `cable of NODE pulled (...)` or `cable of NODE plugged in again`.
fn cable(text: &str) -> Option<(String, bool)> {
    let (node, what) = text.strip_prefix("cable of ")?.split_once(' ')?;
    Some((node.to_owned(), what.starts_with("pulled")))
}

/// A line of `iot`'s output: `SECONDS.MICROS OP = N (DURATION)`.
fn io_lines(output: &str, node: &str, backing: bool) -> Result<Vec<Command>, String> {
    let mut words = output.split_whitespace();
    let (Some(at), Some(op), Some("=")) = (words.next(), words.next(), words.next()) else {
        return Ok(Vec::new());
    };
    let Some(time) = seconds(at) else { return Ok(Vec::new()) };
    let took = words.last().and_then(|w| seconds(w.trim_matches(['(', ')']))).unwrap_or(0);
    let ios = io(op).ok_or_else(|| format!("an operation that is not known: {op}"))?;
    let done = |io| if backing { Done::Disk(io) } else { Done::Io(io) };
    Ok(ios.into_iter().map(|io| Command { time, end: time + took, node: node.to_owned(), done: done(io) }).collect())
}

fn io(op: &str) -> Option<Vec<Io>> {
    let parts: Vec<&str> = op.split(':').collect();
    let number = |i: usize| parts.get(i).and_then(|p| bytes(p));
    let write = |offset, len, tag: &str, fua| Io::Write { offset, len, tag: tag.to_owned(), fua };
    Some(match parts[0] {
        "w" | "u" => vec![write(number(1)?, number(2)?, parts.get(3)?, parts[0] == "u")],
        "a" => {
            let (offset, len, count, stride) = (number(1)?, number(2)?, number(3)?, number(4)?);
            (0..count).map(|i| write(offset + i * stride, len, parts[5], false)).collect()
        }
        "f" => vec![Io::Flush],
        // Reads, discards and zeroes of a device that is connected show in the packets.
        "r" | "d" | "z" => Vec::new(),
        _ => return None,
    })
}

/// A command of the administrator; `None` for what concerns no node's state.
fn administration(command: &str) -> Option<Done> {
    let mut words = command.split_whitespace();
    let program = words.next()?;
    if program != "drbdadm" {
        return None;
    }
    let words: Vec<&str> = words.filter(|w| *w != "--").collect();
    let has = |option: &str| words.contains(&option);
    let verb = words.iter().find(|w| !w.starts_with('-'))?;
    let named = words.last().and_then(|w| w.strip_prefix("r0/")).and_then(|nr| nr.parse().ok()).map(VolumeNr);
    Some(match *verb {
        "dump-md" | "apply-al" => return None,
        "create-md" => Done::CreateMd(named),
        "up" => Done::Up,
        "down" => Done::Down,
        "primary" => Done::Promote { force: has("--force") },
        "secondary" => Done::Demote,
        "connect" => Done::Connect { discard_my_data: has("--discard-my-data") },
        "disconnect" => Done::Disconnect,
        "verify" => {
            let sectors = |option: &str| {
                let value = words.iter().find_map(|w| w.strip_prefix(option));
                value.and_then(bytes).map(|bytes| bytes / 512)
            };
            Done::Verify { start_sector: sectors("--start="), stop_sector: sectors("--stop=") }
        }
        "invalidate" => Done::Invalidate,
        "pause-sync" => Done::PauseSync(true),
        "resume-sync" => Done::PauseSync(false),
        "resize" => Done::Resize { assume_clean: has("--assume-clean") },
        "detach" => Done::Detach,
        "attach" => Done::Attach,
        "new-current-uuid" if has("--clear-bitmap") => Done::NewCurrentUuid,
        _ => Done::Unknown(command.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_commands_are_read() {
        let text = "\
00:00:01.000002 [+  0.100] nodea$ drbdadm primary --force r0   -> rc=0 (0.1 s)
00:00:02.000000 [+  1.100] nodea$ iot /dev/drbd0 w:4k:512:A f   -> rc=0 (0.1 s)
                  | 3.000004 w:4k:512:A = 512 (0.000002)
                  | 3.000007 f = 0 (0.000001)
00:00:01.500000 [+  0.600] network$ cable of nodeb pulled (its port taken out of the bridge)
00:00:04.000000 [+  3.100] nodea: snapshot 01-connected
00:00:05.000000 [+  4.100] nodea$ drbdadm suspend-io r0   -> rc=0 (0.1 s)
00:00:06.000000 [+  5.100] nodeb$ drbdadm -- --start=16384s --stop=24576s verify r0   -> rc=0 (0.1 s)
";
        let read = parse(text, 0).unwrap();
        let done: Vec<&Done> = read.iter().map(|c| &c.done).collect();
        let write = Io::Write { offset: 4096, len: 512, tag: "A".into(), fua: false };
        let unknown = Done::Unknown("drbdadm suspend-io r0".into());
        let verify = Done::Verify { start_sector: Some(16384), stop_sector: Some(24576) };
        let expected = [
            &Done::Promote { force: true },
            &Done::Cable(true),
            &Done::Io(write),
            &Done::Io(Io::Flush),
            &unknown,
            &verify,
        ];
        assert_eq!(done, expected);
        assert_eq!(read[0].end, 1_100_002_000);
        assert_eq!((read[0].time, read[2].time, read[2].end), (1_000_002_000, 3_000_004_000, 3_000_006_000));
        assert!(parse("nonsense", 0).is_err());
    }
}
