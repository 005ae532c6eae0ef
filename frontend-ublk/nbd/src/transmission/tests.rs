use super::*;
use crate::export::tests::export;

const SIZE: u64 = 64 << 20;

fn bytes(flags: u16, command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut out = vec![0x25, 0x60, 0x95, 0x13];
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(7u64.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

fn parser(change: impl FnOnce(&mut ExportInfo)) -> RequestParser {
    let mut info = export(SIZE);
    change(&mut info);
    info.check().expect("a valid export");
    RequestParser::new(&info, ReplyStyle::Structured)
}

fn parse_one(parser: &mut RequestParser, flags: u16, command: u16, offset: u64, len: u32) -> Parsed {
    let (used, parsed) = parser.parse(&bytes(flags, command, offset, len)).expect("no fatal error");
    assert_eq!(used, REQUEST_LEN);
    parsed
}

/// The errno with which a fresh parser refuses the request; `None` where it accepts it.
fn errno(change: impl FnOnce(&mut ExportInfo), flags: u16, command: u16, offset: u64, len: u32) -> Option<Errno> {
    match parse_one(&mut parser(change), flags, command, offset, len) {
        Parsed::Request(_) => None,
        Parsed::Refused(refused) => Some(refused.errno),
        other => panic!("{other:?}"),
    }
}

fn as_is(_: &mut ExportInfo) {}

#[test]
fn nbd_request_fields_are_decoded() {
    let mut p = parser(as_is);
    let want = Request {
        cookie: 7,
        op: Op::WriteZeroes,
        flags: RequestFlags { fua: true, no_hole: true, df: false, fast_zero: true },
        offset: 0x1000,
        len: 0x200,
    };
    assert_eq!(parse_one(&mut p, 0b10011, 6, 0x1000, 0x200), Parsed::Request(want));
    let want = Request { op: Op::Read, flags: RequestFlags { df: true, ..Default::default() }, ..want };
    assert_eq!(parse_one(&mut p, 0b101, 0, 0x1000, 0x200), Parsed::Request(want), "no FUA on a read");
    let want = Request { op: Op::Flush, flags: RequestFlags::default(), offset: 0, len: 0, ..want };
    assert_eq!(parse_one(&mut p, 0, 3, 0, 0), Parsed::Request(want));
}

#[test]
fn nbd_request_needs_all_its_bytes() {
    let mut p = parser(as_is);
    let whole = bytes(0, 0, 0, 512);
    for len in 0..REQUEST_LEN {
        assert_eq!(p.parse(&whole[..len]), Ok((0, Parsed::NeedMore)));
    }
    assert!(matches!(p.parse(&whole), Ok((REQUEST_LEN, Parsed::Request(_)))));
}

#[test]
fn nbd_request_range_errors() {
    for (command, beyond) in
        [(0, Errno::Inval), (1, Errno::NoSpc), (4, Errno::Inval), (6, Errno::NoSpc), (5, Errno::Inval)]
    {
        let check = |offset, len| errno(|e| e.cache = true, 0, command, offset, len);
        assert_eq!(check(SIZE - 512, 512), None, "command {command}");
        assert_eq!(check(SIZE, 512), Some(beyond));
        assert_eq!(check(SIZE - 512, 1024), Some(beyond));
        assert_eq!(check(u64::MAX - 511, 512), Some(beyond), "the sum wraps");
        assert_eq!(check(256, 512), Some(Errno::Inval));
        assert_eq!(check(512, 513), Some(Errno::Inval));
        assert_eq!(check(0, 0), Some(Errno::Inval));
    }
    assert_eq!(errno(|e| e.block_min = 4096, 0, 0, 512, 4096), Some(Errno::Inval));
    assert_eq!(errno(|e| e.block_min = 4096, 0, 0, 4096, 4096), None);
}

#[test]
fn nbd_request_length_limit_holds_for_payloads() {
    let limited = |e: &mut ExportInfo| e.block_max = 1 << 20;
    for (command, too_long) in [(0, Errno::Overflow), (1, Errno::Inval)] {
        assert_eq!(errno(limited, 0, command, 0, 1 << 20), None);
        assert_eq!(errno(limited, 0, command, 0, (1 << 20) + 512), Some(too_long));
    }
    let mut info = export(SIZE);
    limited(&mut info);
    let mut simple = RequestParser::new(&info, ReplyStyle::Simple);
    let refused = parse_one(&mut simple, 0, 0, 0, 2 << 20);
    assert!(matches!(refused, Parsed::Refused(Refused { errno: Errno::Inval, .. })), "{refused:?}");
    assert_eq!(errno(limited, 0, 4, 0, 48 << 20), None);
    assert_eq!(errno(limited, 0, 6, 0, 48 << 20), None);
}

#[test]
fn nbd_request_must_have_been_advertised() {
    assert_eq!(errno(|e| e.flush = false, 0, 3, 0, 0), Some(Errno::Inval));
    assert_eq!(errno(|e| e.trim = false, 0, 4, 0, 512), Some(Errno::Inval));
    assert_eq!(errno(|e| e.write_zeroes = false, 0, 6, 0, 512), Some(Errno::Inval));
    assert_eq!(errno(|e| e.fast_zero = false, 16, 6, 0, 512), Some(Errno::Inval));
    assert_eq!(errno(|e| e.fua = false, 1, 1, 0, 512), Some(Errno::Inval));
    assert_eq!(errno(as_is, 0, 5, 0, 512), Some(Errno::Inval), "cache");
    assert_eq!(errno(as_is, 0, 7, 0, 512), Some(Errno::Inval), "block status");
    assert_eq!(errno(as_is, 0, 8, 0, 512), Some(Errno::Inval), "resize");
    assert_eq!(errno(as_is, 0, u16::MAX, 0, 512), Some(Errno::Inval));
    assert_eq!(errno(as_is, 2, 1, 0, 512), Some(Errno::Inval), "NO_HOLE on a write");
    assert_eq!(errno(as_is, 8, 0, 0, 512), Some(Errno::Inval), "REQ_ONE on a read");
    assert_eq!(errno(as_is, 0x8000, 0, 0, 512), Some(Errno::Inval));
    assert_eq!(errno(as_is, 0, 3, 512, 0), Some(Errno::Inval), "a flush with an offset");

    let mut simple = RequestParser::new(&export(SIZE), ReplyStyle::Simple);
    assert!(matches!(parse_one(&mut simple, 4, 0, 0, 512), Parsed::Refused(_)), "DF with simple replies");
}

#[test]
fn nbd_request_read_only_refuses_writes() {
    let read_only = |e: &mut ExportInfo| e.read_only = true;
    for command in [1, 4, 6] {
        assert_eq!(errno(read_only, 0, command, 0, 512), Some(Errno::Perm));
        assert_eq!(errno(read_only, 1, command, 0, 512), Some(Errno::Perm), "with FUA too");
    }
    assert_eq!(errno(read_only, 0, 0, 0, 512), None);
    assert_eq!(errno(read_only, 0, 3, 0, 0), None);
}

#[test]
fn nbd_request_payload_is_the_callers() {
    let mut p = parser(as_is);
    assert!(matches!(parse_one(&mut p, 0, 1, 0, 1024), Parsed::Request(_)));
    assert_eq!(p.payload_left(), 1024);
    p.payload_taken(1000);
    assert_eq!(p.payload_left(), 24);
    p.payload_taken(24);
    assert!(matches!(parse_one(&mut p, 0, 0, 0, 1024), Parsed::Request(_)));
    assert_eq!(p.payload_left(), 0);
}

#[test]
#[should_panic(expected = "24 bytes of payload are still to be taken")]
fn nbd_request_payload_must_be_taken() {
    let mut p = parser(as_is);
    parse_one(&mut p, 0, 1, 0, 1024);
    p.payload_taken(1000);
    let _ = p.parse(&[]);
}

#[test]
#[should_panic(expected = "payload taken beyond its end")]
fn nbd_request_payload_has_an_end() {
    let mut p = parser(as_is);
    parse_one(&mut p, 0, 1, 0, 1024);
    p.payload_taken(1025);
}

#[test]
fn nbd_request_refused_write_is_skipped() {
    let mut p = parser(|e| e.read_only = true);
    let mut stream = bytes(0, 1, 0, 1024);
    // A payload that looks like a request must not be taken for one.
    stream.extend(bytes(0, 0, 0, 512).into_iter().cycle().take(1024));
    stream.extend(bytes(0, 0, 4096, 512));
    let (used, parsed) = p.parse(&stream).expect("a refusal");
    assert_eq!(used, REQUEST_LEN);
    assert!(matches!(parsed, Parsed::Refused(Refused { errno: Errno::Perm, command: 1, len: 1024, .. })));
    assert_eq!(p.payload_left(), 0, "nothing for the caller to take");
    assert_eq!(p.parse(&stream[28..128]), Ok((100, Parsed::NeedMore)));
    let (used, parsed) = p.parse(&stream[128..]).expect("the read");
    assert_eq!(used, 924 + REQUEST_LEN);
    assert!(matches!(parsed, Parsed::Request(Request { op: Op::Read, offset: 4096, .. })));
}

#[test]
fn nbd_request_skip_by_the_caller() {
    let mut p = parser(as_is);
    parse_one(&mut p, 0, 1, 0, 1024);
    p.payload_taken(512);
    p.skip_payload();
    assert_eq!(p.payload_left(), 0);
    assert_eq!(p.parse(&[0; 512]), Ok((512, Parsed::NeedMore)));
    p.skip_payload();
    assert!(matches!(parse_one(&mut p, 0, 0, 0, 512), Parsed::Request(_)));
}

#[test]
fn nbd_request_fatal_errors_close() {
    let mut p = parser(as_is);
    assert_eq!(p.parse(&[0x5a; 40]), Err(TransmissionError::Magic(0x5a5a_5a5a)));
    assert_eq!(p.parse(&[1; 40]), Ok((40, Parsed::Disconnect)));

    let mut p = parser(as_is);
    let huge = bytes(0, 1, 0, MAX_PAYLOAD + 512);
    assert_eq!(p.parse(&huge), Err(TransmissionError::Payload(MAX_PAYLOAD + 512)));

    let mut p = parser(as_is);
    assert_eq!(parse_one(&mut p, 0, 2, 0, 0), Parsed::Disconnect);
    assert_eq!(p.parse(&bytes(0, 0, 0, 512)), Ok((28, Parsed::Disconnect)));
    assert_eq!(p.payload_left(), 0);
}
