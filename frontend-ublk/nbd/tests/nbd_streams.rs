//! Arbitrary client streams: nothing panics, and how a stream is cut into slices changes nothing.
//!
//! `fuzz_handshake` and `fuzz_requests` take raw bytes, so that a fuzzer can call them too. Pure noise rarely gets past
//! a magic, therefore most cases are well-formed messages with noise in their fields.

use proptest::prelude::*;
use zea_nbd::{
    ExportInfo, Exports, Handshake, HandshakeError, MAX_PAYLOAD, Negotiated, Op, OpenError, Parsed, Progress, Refused,
    ReplyStyle, Request, TransmissionError,
};

struct Lookup;

impl Exports for Lookup {
    fn list(&self) -> Vec<String> {
        vec!["r0".into(), "ro".into(), "secondary".into()]
    }

    fn open(&self, name: &str) -> Result<ExportInfo, OpenError> {
        match name {
            "" | "r0" => Ok(export(false)),
            "ro" => Ok(export(true)),
            "secondary" => Err(OpenError::Refused("promote it first".into())),
            _ => Err(OpenError::Unknown("no such export".into())),
        }
    }
}

fn export(read_only: bool) -> ExportInfo {
    ExportInfo {
        name: "r0".into(),
        size_bytes: 1 << 20,
        read_only,
        block_min: 512,
        block_preferred: 4096,
        block_max: 64 << 10,
        can_multi_conn: true,
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        cache: true,
        rotational: false,
    }
}

/// How a handshake ended: what was sent, how it went, how much input is left for the next phase.
#[derive(Debug, PartialEq, Eq)]
struct HandshakeEnd {
    sent: Vec<u8>,
    outcome: Result<Option<Negotiated>, HandshakeError>,
    aborted: bool,
    /// Not known after an error.
    left: Option<usize>,
}

/// Runs a handshake over slices; bytes that a call leaves are joined with the next slice.
fn run_handshake<'a>(slices: impl Iterator<Item = &'a [u8]>) -> HandshakeEnd {
    let mut handshake = Handshake::new();
    let mut sent = Vec::new();
    let mut ended = None;
    let mut left = 0;
    for slice in slices {
        let mut rest = slice;
        while ended.is_none() {
            match handshake.feed(&Lookup, rest, &mut sent) {
                Err(error) => {
                    return HandshakeEnd { sent, outcome: Err(error), aborted: false, left: None };
                }
                Ok((consumed, progress)) => {
                    rest = &rest[consumed..];
                    match progress {
                        Progress::NeedInput => {
                            assert!(rest.is_empty(), "input is left although more is needed");
                            break;
                        }
                        Progress::Answered => {}
                        Progress::Ready(negotiated) => ended = Some(Some(negotiated)),
                        Progress::Aborted => ended = Some(None),
                    }
                }
            }
        }
        if ended.is_some() {
            left += rest.len();
        }
    }
    let aborted = matches!(ended, Some(None));
    HandshakeEnd { sent, outcome: Ok(ended.flatten()), aborted, left: Some(left) }
}

fn fuzz_handshake(bytes: &[u8]) -> HandshakeEnd {
    let end = run_handshake(std::iter::once(bytes));
    if let Ok(Some(negotiated)) = &end.outcome {
        negotiated.export.check().expect("only valid exports are handed out");
    }
    end
}

/// What a request stream came to. Payloads are kept, to see that the right bytes were taken.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Request(Request, Vec<u8>),
    /// A write whose payload the stream does not hold to its end.
    Partial(Request, Vec<u8>),
    Refused(Refused),
    Disconnect,
    Fatal(TransmissionError),
}

fn run_requests<'a>(slices: impl Iterator<Item = &'a [u8]>, read_only: bool) -> Vec<Event> {
    let negotiated = Negotiated { export: export(read_only), style: ReplyStyle::Structured };
    let mut parser = negotiated.parser();
    let mut staging: Vec<u8> = Vec::new();
    let mut events = Vec::new();
    let mut write: Option<(Request, Vec<u8>)> = None;
    for slice in slices {
        staging.extend_from_slice(slice);
        loop {
            if let Some((request, mut payload)) = write.take() {
                let taken = staging.len().min(parser.payload_left() as usize);
                payload.extend(staging.drain(..taken));
                parser.payload_taken(taken as u32);
                if parser.payload_left() > 0 {
                    write = Some((request, payload));
                    break;
                }
                assert_eq!(payload.len(), request.len as usize);
                events.push(Event::Request(request, payload));
            }
            let (consumed, parsed) = match parser.parse(&staging) {
                Ok(step) => step,
                Err(error) => {
                    events.push(Event::Fatal(error));
                    return events;
                }
            };
            staging.drain(..consumed);
            match parsed {
                Parsed::NeedMore => break,
                Parsed::Request(request) if request.op == Op::Write => write = Some((request, Vec::new())),
                Parsed::Request(request) => events.push(Event::Request(request, Vec::new())),
                Parsed::Refused(refused) => events.push(Event::Refused(refused)),
                Parsed::Disconnect => {
                    events.push(Event::Disconnect);
                    return events;
                }
            }
        }
    }
    events.extend(write.map(|(request, payload)| Event::Partial(request, payload)));
    events
}

fn fuzz_requests(bytes: &[u8], read_only: bool) -> Vec<Event> {
    let export = export(read_only);
    let events = run_requests(std::iter::once(bytes), read_only);
    for event in &events {
        let (Event::Request(request, _) | Event::Partial(request, _)) = event else {
            continue;
        };
        // What is handed out may be used unchecked.
        let end = request.offset.checked_add(u64::from(request.len)).expect("no wrap");
        assert!(end <= export.size_bytes);
        assert!(request.offset.is_multiple_of(512) && request.len.is_multiple_of(512));
        assert_eq!(request.len == 0, request.op == Op::Flush);
        assert!(!(request.op.is_write() && read_only));
        assert!(request.len <= export.block_max || !matches!(request.op, Op::Read | Op::Write));
    }
    events
}

/// Cuts `bytes` at the positions of `cuts` (taken modulo its length).
fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    at.sort_unstable();
    at.push(bytes.len());
    let mut start = 0;
    at.into_iter().map(|end| &bytes[std::mem::replace(&mut start, end)..end]).collect()
}

fn option_bytes(magic_ok: bool, option: u32, claimed: Option<u32>, data: &[u8]) -> Vec<u8> {
    let mut out = if magic_ok { b"IHAVEOPT".to_vec() } else { b"IHAVENOT".to_vec() };
    out.extend(option.to_be_bytes());
    out.extend(claimed.unwrap_or(data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn named_data() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("r0".to_owned()),
        Just("ro".to_owned()),
        Just("secondary".to_owned()),
        Just(String::new()),
        "[a-z\0ä]{0,8}"
    ];
    (name, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..12), 0u32..4).prop_map(
        |(name, bare, tail, skew)| {
            if bare {
                return name.into_bytes();
            }
            let mut data = (name.len() as u32 + skew / 3).to_be_bytes().to_vec();
            data.extend(name.as_bytes());
            match skew {
                0 => data.extend([0, 0]),
                1 => data.extend([0, 2, 0, 3, 0, 1]),
                2 => data.extend([0, 0, 0, 1, 0, 0, 0, 5, b'b', b'a', b's', b'e', b':']),
                _ => data.extend(tail),
            }
            data
        },
    )
}

fn handshake_stream() -> impl Strategy<Value = Vec<u8>> {
    let option = (
        proptest::bool::weighted(0.98),
        prop_oneof![9 => 0u32..12, 1 => any::<u32>()],
        proptest::option::weighted(0.05, prop_oneof![0u32..64, any::<u32>()]),
        prop_oneof![3 => Just(Vec::new()), 5 => named_data(), 1 => Just(vec![0x61; 20_000])],
    )
        .prop_map(|(magic_ok, option, claimed, data)| option_bytes(magic_ok, option, claimed, &data));
    (prop_oneof![9 => 0u32..4, 1 => any::<u32>()], proptest::collection::vec(option, 0..8)).prop_map(
        |(flags, options)| {
            let mut out = flags.to_be_bytes().to_vec();
            out.extend(options.concat());
            out
        },
    )
}

fn request_stream() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![
        6 => (0u64..2100).prop_map(|sector| sector * 512),
        1 => 0u64..2 << 20,
        1 => any::<u64>()
    ];
    let len = prop_oneof![
        8 => (0u32..12).prop_map(|sectors| sectors * 512),
        1 => 0u32..200_000,
        1 => prop_oneof![Just(MAX_PAYLOAD + 1), any::<u32>()]
    ];
    let request = (
        proptest::bool::weighted(0.98),
        prop_oneof![8 => 0u16..32, 1 => any::<u16>()],
        prop_oneof![9 => prop_oneof![0u16..2, 3u16..9], 1 => any::<u16>()],
        any::<u64>(),
        offset,
        len,
        any::<u8>(),
    )
        .prop_map(|(magic_ok, flags, command, cookie, offset, len, fill)| {
            let mut out = if magic_ok { vec![0x25, 0x60, 0x95, 0x13] } else { vec![0x25, 0x60, 0x95, 0x14] };
            out.extend(flags.to_be_bytes());
            out.extend(command.to_be_bytes());
            out.extend(cookie.to_be_bytes());
            out.extend(offset.to_be_bytes());
            out.extend(len.to_be_bytes());
            if command == 1 && len < 200_000 {
                // Not constant, so that a payload taken from the wrong place shows.
                out.extend((0..len).map(|i| fill.wrapping_add(i as u8)));
            }
            out
        });
    proptest::collection::vec(request, 0..12).prop_map(|requests| requests.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nbd_noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), read_only: bool) {
        fuzz_handshake(&bytes);
        fuzz_requests(&bytes, read_only);
        // The same noise behind the first magics.
        fuzz_handshake(&[b"\0\0\0\x03IHAVEOPT", &bytes[..]].concat());
        fuzz_requests(&[&[0x25, 0x60, 0x95, 0x13], &bytes[..]].concat(), read_only);
    }

    #[test]
    fn nbd_handshake_is_the_same_in_any_slices(
        stream in handshake_stream(),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let whole = fuzz_handshake(&stream);
        prop_assert_eq!(&run_handshake(cut(&stream, &cuts).into_iter()), &whole);
        if stream.len() < 2000 {
            prop_assert_eq!(&run_handshake(stream.chunks(1)), &whole);
        }
    }

    #[test]
    fn nbd_requests_are_the_same_in_any_slices(
        stream in request_stream(),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
        read_only: bool,
    ) {
        let whole = fuzz_requests(&stream, read_only);
        prop_assert_eq!(&run_requests(cut(&stream, &cuts).into_iter(), read_only), &whole);
        if stream.len() < 2000 {
            prop_assert_eq!(&run_requests(stream.chunks(1), read_only), &whole);
        }
    }
}

/// The generators reach what they are made for: otherwise the properties above hold for nothing.
#[test]
fn nbd_streams_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut ready, mut aborted, mut handshake_errors) = (0, 0, 0);
    let (mut requests, mut refused, mut request_errors) = (0, 0, 0);
    for _ in 0..500 {
        let stream = handshake_stream().new_tree(&mut runner).expect("a stream").current();
        let end = fuzz_handshake(&stream);
        ready += usize::from(matches!(end.outcome, Ok(Some(_))));
        aborted += usize::from(end.aborted);
        handshake_errors += usize::from(end.outcome.is_err());
        let stream = request_stream().new_tree(&mut runner).expect("a stream").current();
        for event in fuzz_requests(&stream, false) {
            match event {
                Event::Request(..) => requests += 1,
                Event::Refused(_) => refused += 1,
                Event::Fatal(_) => request_errors += 1,
                Event::Partial(..) | Event::Disconnect => {}
            }
        }
    }
    for (what, count) in [
        ("ready", ready),
        ("aborted", aborted),
        ("handshake errors", handshake_errors),
        ("requests", requests),
        ("refused", refused),
        ("request errors", request_errors),
    ] {
        assert!(count >= 20, "{what}: only {count} times in 500 streams");
    }
}
