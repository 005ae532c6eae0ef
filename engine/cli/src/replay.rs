//! `zea replay`: a flight recording, given to a core again, as text.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::ops::ControlFlow;

use serde_json::{Map, Value, json};
use zea_core::event::{Event, Severity, Status};
use zea_core::io::{Action, Input};
use zea_node::api::{PeerDeviceStatus, ResourceStatus, StatusReply};
use zea_node::recorded_status;
use zea_recorder::{Begin, Ending, Header, Moment, Recorded, Step};

use crate::args::Replay;
use crate::changes::{Change, changes};
use crate::exit::{self, CliError};
use crate::instant::Instant;
use crate::view;

/// Replays a recording.
///
/// # Errors
/// It cannot be read, or the replay does not come to its end. What it showed until then was printed.
pub(crate) fn replay(line: &Replay) -> Result<(), CliError> {
    let failed = |error: zea_recorder::ReadError| CliError::new(exit::FAILED, error.to_string());
    let recorded = Recorded::open(&line.path).map_err(failed)?;
    let mut printer = Printer::new(line);
    // What a core says when it panics is in the recording's end.
    std::panic::set_hook(Box::new(|_| {}));
    let read = zea_recorder::replay(&recorded, |moment| printer.take(&moment));
    drop(std::panic::take_hook());
    printer.finish()?;
    read.map_err(failed)?;
    match printer.broken {
        None => Ok(()),
        Some(why) => Err(CliError::new(exit::FAILED, why)),
    }
}

struct Printer<'a> {
    line: &'a Replay,
    out: BufWriter<StdoutLock<'static>>,
    /// The first failure to print.
    error: Option<io::Error>,
    /// The resource, and its state after the last input.
    name: String,
    status: Option<Status>,
    last: Option<Step>,
    /// `--until` was reached.
    reached: bool,
    broken: Option<String>,
}

impl<'a> Printer<'a> {
    fn new(line: &'a Replay) -> Printer<'a> {
        let out = BufWriter::new(io::stdout().lock());
        let (error, status, last, broken) = Default::default();
        Printer { line, out, error, name: String::new(), status, last, reached: false, broken }
    }

    fn take(&mut self, moment: &Moment<'_>) -> ControlFlow<()> {
        match moment {
            Moment::Begins { header, how, core } => {
                self.name.clone_from(&header.resource);
                self.begins(header, *how);
                self.show(None, header.wall_ns, &changes(None, &core.status()));
                self.status = Some(core.status());
                self.last = None;
            }
            Moment::Input { step, .. } if self.is_behind_the_end(step.wall_ns) => {
                self.reached = true;
                self.state();
                return ControlFlow::Break(());
            }
            Moment::Input { step, input } if self.line.inputs => self.input(*step, input),
            Moment::Input { .. } => {}
            Moment::Done { step, actions, core } => {
                let now = core.status();
                let mut found = changes(self.status.as_ref(), &now);
                found.extend(actions.iter().filter_map(notice));
                self.show(Some(step.nr), step.wall_ns, &found);
                self.status = Some(now);
                self.last = Some(*step);
            }
            Moment::Ends { ending, .. } => self.ends(ending),
        }
        if self.error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Instants are printed, and so given, to the microsecond.
    fn is_behind_the_end(&self, wall_ns: u64) -> bool {
        self.line.until.is_some_and(|until| wall_ns / 1_000 > until.0 / 1_000)
    }

    fn print(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = self.out.write_all(text.as_bytes()).and_then(|()| self.out.write_all(b"\n")).err();
        }
    }

    fn begins(&mut self, header: &Header, how: Begin) {
        let at = Instant(header.wall_ns);
        if self.line.json {
            let how = match how {
                Begin::Start => json!("start"),
                Begin::Middle => json!("middle"),
                Begin::Gap(inputs) => json!({ "gap": inputs }),
            };
            let run = Instant(header.run).to_string();
            let inputs = header.inputs;
            let begin =
                json!({ "time": at.to_string(), "begins": how, "name": self.name, "run": run, "inputs": inputs });
            return self.print(&begin.to_string());
        }
        let what = match how {
            Begin::Start => "is added".to_owned(),
            Begin::Middle => format!("{} inputs before this are not in the recording", header.inputs),
            Begin::Gap(inputs) => format!("{inputs} inputs are missing here"),
        };
        self.print(&format!("{at}  {}: {what}", self.name));
    }

    fn show(&mut self, nr: Option<u64>, wall_ns: u64, found: &[Change]) {
        let at = Instant(wall_ns);
        for change in found {
            if self.line.json {
                let mut object = Map::new();
                object.insert("time".into(), json!(at.to_string()));
                object.extend(nr.map(|nr| ("input".into(), json!(nr))));
                change.add_to(&mut object);
                self.print(&Value::Object(object).to_string());
            } else {
                self.print(&format!("{at}  {:>8}  {change}", nr.map_or(String::new(), |nr| nr.to_string())));
            }
        }
    }

    fn input(&mut self, step: Step, input: &Input<'_>) {
        let at = Instant(step.wall_ns);
        let text = describe(input);
        let line = if self.line.json {
            json!({ "time": at.to_string(), "input": step.nr, "is": text }).to_string()
        } else {
            format!("{at}  {:>8}  < {text}", step.nr)
        };
        self.print(&line);
    }

    /// The state after the last input, as `zea status` shows it.
    fn state(&mut self) {
        let Some(status) = &self.status else { return };
        let (nr, resource) = (self.last.map_or(0, |step| step.nr), recorded_status(&self.name, status));
        if self.line.json {
            return self.print(&json!({ "after-input": nr, "state": resource }).to_string());
        }
        let mut text = format!("\nstate after input {nr}:\n");
        let uuids = uuids(&resource);
        let reply = StatusReply { resources: vec![resource], ..StatusReply::default() };
        text.push_str(&view::status(&reply, false));
        text.push_str(&uuids);
        self.print(text.trim_end());
    }

    fn ends(&mut self, ending: &Ending) {
        self.state();
        if self.line.json {
            self.print(&json!({ "ends": ending.to_string() }).to_string());
        } else {
            self.print(&format!("end: {ending}\n"));
        }
        if !matches!(ending, Ending::Ended | Ending::Stopped) {
            self.broken = Some(ending.to_string());
        }
    }

    fn finish(&mut self) -> Result<(), CliError> {
        if self.line.until.is_some() && !self.reached {
            eprintln!("note: the recording ends before --until");
        }
        match self.error.take() {
            Some(error) => Err(error.into()),
            None => Ok(self.out.flush()?),
        }
    }
}

fn uuids(resource: &ResourceStatus) -> String {
    let name = &resource.name;
    let own = resource.devices.iter().map(|d| format!("{name}/{}: current UUID {}\n", d.volume, d.current_uuid));
    let peers = resource.connections.iter().flat_map(|connection| {
        let line = move |d: &PeerDeviceStatus| {
            format!("{name}/{}: {}: bitmap UUID {}\n", d.volume, connection.name, d.bitmap_uuid)
        };
        connection.peer_devices.iter().map(line)
    });
    own.chain(peers).collect()
}

/// What an action tells people.
fn notice(action: &Action) -> Option<Change> {
    let Action::Event(Event::Notice { severity, text }) = action else { return None };
    let severity = match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    Some(Change::notice(severity, text))
}

/// An input in one line. A secret that is part of it is not shown.
fn describe(input: &Input<'_>) -> String {
    match input {
        Input::DiskDone { tag, result, meta, .. } => {
            let read = if meta.is_empty() { String::new() } else { format!(", {} bytes of meta data", meta.len()) };
            match result {
                Ok(()) => format!("disk command {} done{read}", tag.0),
                Err(error) => format!("disk command {} failed: {error}", tag.0),
            }
        }
        Input::Packet { peer, volume, packet, payload, .. } => {
            let volume = volume.map_or(String::new(), |v| format!(" volume {v}"));
            let payload = payload.map_or(String::new(), |p| format!(" + {} bytes", p.len));
            format!("packet of node {peer}{volume}: {packet:?}{payload}")
        }
        Input::Admin { command: zea_core::io::Command::AddPeer(peer), .. } => format!("command AddPeer {}", peer.name),
        Input::Admin { command: zea_core::io::Command::SetNetOptions { peer, .. }, .. } => {
            format!("command SetNetOptions of node {peer}")
        }
        Input::Admin { command, .. } => format!("command {command:?}"),
        Input::Request(request) => format!("{request:?}"),
        other => format!("{other:?}"),
    }
}
