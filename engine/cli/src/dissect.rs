//! `zea dissect`: a recording of the network as text.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use comfy_table::CellAlignment;
use serde_json::{Map, json};
use zea_capture::{Close, Event, Place, Recorded, Summary, Undecodable, Value, fields};
use zea_wire::{HeaderFormat, Stream};

use crate::args::Dissect;
use crate::exit::{self, CliError};
use crate::view;

/// Prints a recording.
///
/// # Errors
/// The recording cannot be read, or not all of it could be decoded. What could be was printed.
pub(crate) fn dissect(line: &Dissect) -> Result<(), CliError> {
    let mut printer = Printer::new(line);
    let (summary, end) = zea_capture::read(&line.file, |at, event| printer.take(at, &event));
    printer.finish()?;
    notes(&summary).for_each(|note| eprintln!("note: {note}"));
    end.map_err(|error| CliError::new(exit::FAILED, error.to_string()))?;
    let lost: Vec<String> = losses(&summary).collect();
    if lost.is_empty() { Ok(()) } else { Err(CliError::new(exit::FAILED, lost.join("; "))) }
}

/// What the ends of connections cut off: nothing is wrong with the recording.
fn notes(summary: &Summary) -> impl Iterator<Item = String> {
    let Summary { left_over, missing_payload, foreign, .. } = *summary;
    let notes = [
        (left_over, "bytes at the ends of connections belong to no complete packet"),
        (missing_payload, "bytes of payload were announced, but the connection ended before"),
        (foreign, "TCP connections do not speak DRBD and were left out"),
    ];
    notes.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"))
}

/// What is missing in the recording, or could not be decoded.
fn losses(summary: &Summary) -> impl Iterator<Item = String> {
    let Summary { undecodable, headless, cut_frames, gaps, .. } = *summary;
    let losses = [
        (undecodable as u64, "streams could not be decoded to their end"),
        (headless as u64, "TCP connections began before the recording and were left out"),
        (cut_frames, "frames were recorded only in part (tcpdump -s 0 records all of them)"),
        (gaps as u64, "streams miss bytes that the recorder dropped"),
    ];
    losses.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"))
}

/// What was counted of the packets of one name, on one stream, from one sender.
#[derive(Default)]
struct Count {
    packets: u64,
    bytes: u64,
    payload: u64,
}

struct Printer<'a> {
    line: &'a Dissect,
    out: BufWriter<StdoutLock<'static>>,
    /// The time of the first event.
    first: Option<Duration>,
    counts: BTreeMap<(&'static str, &'static str, String), Count>,
    /// The first failure of the output ends all printing.
    result: io::Result<()>,
}

impl Printer<'_> {
    fn new(line: &Dissect) -> Printer<'_> {
        let out = BufWriter::new(io::stdout().lock());
        Printer { line, out, first: None, counts: BTreeMap::new(), result: Ok(()) }
    }

    fn take(&mut self, at: Place, event: &Event<'_>) {
        let since = at.time.saturating_sub(*self.first.get_or_insert(at.time));
        if self.result.is_err() || !self.is_wanted(at, event) {
            return;
        }
        self.result = match event {
            Event::Packet(recorded) if self.line.stats => {
                self.count(at, recorded);
                Ok(())
            }
            _ if self.line.stats => Ok(()),
            _ if self.line.json => writeln!(self.out, "{}", json_line(at, event)),
            _ => writeln!(self.out, "{}", text_line(at, since, event)),
        };
    }

    fn is_wanted(&self, at: Place, event: &Event<'_>) -> bool {
        let Dissect { only, skip, node, .. } = self.line;
        let is = |name: &str, wanted: &[String]| {
            let short = name.trim_start_matches("P_");
            wanted.iter().any(|w| w.eq_ignore_ascii_case(name) || w.eq_ignore_ascii_case(short))
        };
        let named = match event {
            Event::Packet(recorded) => {
                let name = recorded.packet.name();
                (only.is_empty() || is(name, only)) && !is(name, skip)
            }
            Event::Opened | Event::Closed(_) => only.is_empty(),
            Event::Undecodable(_) => true,
        };
        named && (node.is_empty() || node.iter().any(|node| node.is(at.from) || node.is(at.to)))
    }

    fn count(&mut self, at: Place, recorded: &Recorded<'_>) {
        let Recorded { stream, packet, bytes, payload, .. } = recorded;
        let count = self.counts.entry((packet.name(), stream_name(*stream), ends(at).0)).or_default();
        count.packets += 1;
        count.bytes += bytes.len() as u64;
        count.payload += payload.len() as u64;
    }

    fn finish(mut self) -> io::Result<()> {
        self.result?;
        if self.line.stats {
            let mut table = view::table(&["PACKET", "STREAM", "FROM", "COUNT", "BYTES", "PAYLOAD"]);
            for ((name, stream, from), Count { packets, bytes, payload }) in &self.counts {
                let numbers = [packets, bytes, payload].map(u64::to_string);
                table.add_row([*name, *stream, from.as_str()].map(str::to_owned).into_iter().chain(numbers));
            }
            let numbers = table.column_iter_mut().skip(3);
            numbers.for_each(|column| column.set_cell_alignment(CellAlignment::Right));
            writeln!(self.out, "{}", table.trim_fmt())?;
        }
        self.out.flush()
    }
}

/// Sender and receiver; with ports only where the addresses do not tell them apart.
fn ends(at: Place) -> (String, String) {
    let show = |end: SocketAddr| {
        let ip: IpAddr = end.ip();
        if at.from.ip() == at.to.ip() { end.to_string() } else { ip.to_string() }
    };
    (show(at.from), show(at.to))
}

const fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Data => "data",
        Stream::Control => "control",
    }
}

const fn close_name(how: Close) -> &'static str {
    match how {
        Close::Finished => "FIN",
        Close::Reset => "RST",
    }
}

fn text_line(at: Place, since: Duration, event: &Event<'_>) -> String {
    let (from, to) = ends(at);
    let head = format!("{:6} {:11.6} #{} {from} > {to}", at.frame, since.as_secs_f64(), at.connection);
    match event {
        Event::Opened => format!("{head} -- opens a connection from port {} to port {}", at.from.port(), at.to.port()),
        Event::Closed(how) => format!("{head} -- closes ({})", close_name(*how)),
        Event::Packet(recorded) => format!("{head} {}", packet_text(recorded)),
        Event::Undecodable(Undecodable { stream, error, start }) => {
            format!("{head} {} -- cannot be decoded: {error}: {}", stream_name(*stream), hex(start))
        }
    }
}

fn packet_text(recorded: &Recorded<'_>) -> String {
    let Recorded { stream, header, packet, neg, digest, payload, payload_len, .. } = *recorded;
    let volume = header.volume().map_or_else(|| "-".to_owned(), |volume| volume.to_string());
    let mut text = format!("{} {volume} {}", stream_name(stream), packet.name());
    for (name, value) in fields(packet, &neg) {
        text.push_str(&format!(" {name}={value}"));
    }
    if !digest.is_empty() {
        text.push_str(&format!(" digest={}", hex(digest)));
    }
    if payload.len() < payload_len {
        text.push_str(&format!(" payload={} of {payload_len}", payload.len()));
    } else if packet.has_payload() {
        text.push_str(&format!(" payload={payload_len}"));
    }
    text
}

fn json_line(at: Place, event: &Event<'_>) -> serde_json::Value {
    let Place { frame, time, connection, from, to, .. } = at;
    let mut line = json!({
        "frame": frame, "time": time.as_secs_f64(), "connection": connection, "from": from, "to": to,
    });
    let more = match event {
        Event::Opened => json!({ "event": "opened" }),
        Event::Closed(how) => json!({ "event": "closed", "by": close_name(*how) }),
        Event::Packet(recorded) => packet_json(recorded),
        Event::Undecodable(Undecodable { stream, error, start }) => json!({
            "event": "undecodable", "stream": stream_name(*stream), "error": error.to_string(), "start": hex(start),
        }),
    };
    if let (Some(line), serde_json::Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    line
}

fn packet_json(recorded: &Recorded<'_>) -> serde_json::Value {
    let Recorded { stream, header, packet, neg, digest, payload, payload_len, .. } = *recorded;
    let fields: Map<String, serde_json::Value> =
        fields(packet, &neg).into_iter().map(|(name, value)| (name.to_owned(), json_value(value))).collect();
    let header_format = match header.format {
        HeaderFormat::H80 => 80,
        HeaderFormat::H95 => 95,
        HeaderFormat::H100 => 100,
    };
    let mut object = json!({
        "event": "packet", "stream": stream_name(stream), "packet": packet.name(), "header": header_format,
        "volume": header.volume().map(|volume| volume.0), "version": neg.version, "fields": fields,
    });
    if packet.has_payload() {
        object["payload"] = payload.len().into();
        object["payload_announced"] = payload_len.into();
    }
    if !digest.is_empty() {
        object["digest"] = hex(digest).into();
    }
    object
}

fn json_value(value: Value) -> serde_json::Value {
    match value {
        Value::Number(number) => number.into(),
        Value::Signed(number) => number.into(),
        Value::Flag(flag) => flag.into(),
        Value::Text(text) => text.into(),
        Value::List(values) => values.into_iter().map(json_value).collect(),
        Value::None => serde_json::Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
