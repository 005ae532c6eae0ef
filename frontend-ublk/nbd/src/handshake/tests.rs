use super::*;
use crate::export::tests::export;

const SIZE: u64 = 1 << 20;
const FLAGS: [u8; 4] = [0, 0, 0, 3];

struct Lookup;

impl Exports for Lookup {
    fn list(&self) -> Vec<String> {
        vec!["r0".into(), "r1".into()]
    }

    fn open(&self, name: &str) -> Result<ExportInfo, OpenError> {
        match name {
            "" | "r0" => Ok(export(SIZE)),
            "r1" => Err(OpenError::Refused("resource r1 is Secondary here: promote it first".into())),
            "odd" => Ok(export(SIZE + 1)),
            "late" => Err(OpenError::ShuttingDown("going down".into())),
            other => Err(OpenError::Unknown(format!("no export {other}"))),
        }
    }
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|w| w.to_be_bytes()));
    data
}

/// The replies in `out`: option, type, data.
fn replies(mut out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !out.is_empty() {
        assert_eq!(out[..8], [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]);
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().expect("4 bytes"));
        let end = 20 + word(16) as usize;
        all.push((word(8), word(12), out[20..end].to_vec()));
        out = &out[end..];
    }
    all
}

/// A handshake behind its client flags.
fn greeted() -> Handshake {
    let mut handshake = Handshake::new();
    let fed = handshake.feed(&Lookup, &FLAGS, &mut Vec::new());
    assert_eq!(fed, Ok((4, Progress::NeedInput)));
    handshake
}

/// Feeds one whole option.
fn ask(handshake: &mut Handshake, input: &[u8]) -> (Progress, Vec<(u32, u32, Vec<u8>)>) {
    let mut out = Vec::new();
    let (consumed, progress) = handshake.feed(&Lookup, input, &mut out).expect("no fatal error");
    assert_eq!(consumed, input.len());
    (progress, replies(&out))
}

/// The type of the one error reply to an option, and its message.
fn error(input: &[u8]) -> (u32, String) {
    let (progress, mut replies) = ask(&mut greeted(), input);
    assert_eq!((&progress, replies.len()), (&Progress::Answered, 1));
    let (_, kind, message) = replies.remove(0);
    assert!(kind >= 1 << 31, "type {kind:#x} is no error");
    (kind & !(1 << 31), String::from_utf8(message).expect("text"))
}

fn fatal(input: &[u8]) -> HandshakeError {
    greeted().feed(&Lookup, input, &mut Vec::new()).expect_err("a fatal error")
}

#[test]
fn nbd_handshake_greeting() {
    assert_eq!(&Handshake::GREETING, b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn nbd_handshake_go() {
    let (progress, replies) = ask(&mut greeted(), &option(7, &info_data("r0", &[3])));
    let Progress::Ready(negotiated) = progress else { panic!("{progress:?}") };
    assert_eq!(negotiated, Negotiated { export: export(SIZE), style: ReplyStyle::Simple });
    let info = b"\0\0\0\0\0\0\0\x10\0\0\x09\x6d".to_vec();
    let blocks = b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0".to_vec();
    assert_eq!(replies, [(7, 3, info), (7, 3, blocks), (7, 1, vec![])]);
}

#[test]
fn nbd_handshake_info_stays_in_haggling() {
    let mut handshake = greeted();
    assert_eq!(ask(&mut handshake, &option(8, b"")), (Progress::Answered, vec![(8, 1, vec![])]));
    let (progress, replies) = ask(&mut handshake, &option(6, &info_data("", &[1, 9])));
    assert_eq!(progress, Progress::Answered);
    assert_eq!(replies.len(), 4);
    assert_eq!(replies[0].2[10..], [0x09, 0xed], "DF is offered once replies are structured");
    assert_eq!(replies[1].2, b"\0\x01r0", "the canonical name of the default export");
    let (progress, _) = ask(&mut handshake, &option(7, &info_data("r0", &[])));
    assert!(matches!(progress, Progress::Ready(Negotiated { style: ReplyStyle::Structured, .. })));
}

#[test]
fn nbd_handshake_list_and_abort() {
    let mut handshake = greeted();
    let (progress, replies) = ask(&mut handshake, &option(3, b""));
    assert_eq!(progress, Progress::Answered);
    let entry = |name: &[u8]| [b"\0\0\0\x02", name].concat();
    assert_eq!(replies, [(3, 2, entry(b"r0")), (3, 2, entry(b"r1")), (3, 1, vec![])]);
    let aborted = ask(&mut handshake, &option(2, b"ignored"));
    assert_eq!(aborted, (Progress::Aborted, vec![(2, 1, vec![])]));
}

#[test]
fn nbd_handshake_reasons_reach_the_client() {
    for opt in [6, 7] {
        let go = |name| error(&option(opt, &info_data(name, &[])));
        assert_eq!(go("r1"), (2, "resource r1 is Secondary here: promote it first".into()));
        assert_eq!(go("nix"), (6, "no export nix".into()));
        assert_eq!(go("late"), (7, "going down".into()));
        let odd = "export size 1048577 is not a multiple of the minimum block size below 2^63";
        assert_eq!(go("odd"), (2, odd.into()));
        assert_eq!(error(&option(opt, b"\0\0\0\x09r0\0\0")).0, 3);
    }
}

#[test]
fn nbd_handshake_options_that_are_not_served() {
    assert_eq!(error(&option(5, b"")), (2, "TLS is not offered here".into()));
    assert_eq!(error(&option(5, b"x")).0, 3);
    assert_eq!(error(&option(3, b"x")).0, 3);
    assert_eq!(error(&option(8, b"x")).0, 3);
    assert_eq!(error(&option(11, b"")).0, 1, "extended headers");
    assert_eq!(error(&option(4, b"xyz")).0, 1);
    assert_eq!(error(&option(u32::MAX, &vec![0; MAX_SKIPPED_LEN as usize])).0, 1);
    assert_eq!(error(&option(7, &vec![0; MAX_OPTION_LEN as usize + 1])).0, 9);
}

#[test]
fn nbd_handshake_meta_contexts_are_an_empty_list() {
    let query = b"\0\0\0\x02r0\0\0\0\x01\0\0\0\x0fbase:allocation";
    assert_eq!(error(&option(10, query)).0, 3, "structured replies first");
    let mut handshake = greeted();
    ask(&mut handshake, &option(8, b""));
    for opt in [9, 10] {
        assert_eq!(ask(&mut handshake, &option(opt, query)), (Progress::Answered, vec![(opt, 1, vec![])]));
        assert_eq!(ask(&mut handshake, &option(opt, &query[..20])).1[0].1, (1 << 31) + 3);
    }
}

#[test]
fn nbd_handshake_export_name() {
    for (flags, zeroes) in [(3, 0), (2, 0), (1, 124), (0, 124)] {
        let mut handshake = Handshake::new();
        let mut out = Vec::new();
        let input = [&[0, 0, 0, flags], &option(1, b"r0")[..], b"next"].concat();
        let (consumed, progress) = handshake.feed(&Lookup, &input, &mut out).expect("an export");
        assert_eq!(consumed, input.len() - 4, "what follows belongs to the transmission phase");
        assert!(matches!(progress, Progress::Ready(_)));
        assert_eq!(out[..10], *b"\0\0\0\0\0\x10\0\0\x09\x6d");
        assert_eq!(out[10..], vec![0; zeroes]);
    }
    let refused = fatal(&option(1, b"r1"));
    assert!(refused.to_string().contains("promote it first"), "{refused}");
    assert_eq!(fatal(&option(1, b"\xff")), HandshakeError::ExportName("a string is not UTF-8"));
    let len = MAX_OPTION_LEN + 1;
    assert_eq!(fatal(&option(1, &vec![b'a'; len as usize])), HandshakeError::OptionLen { option: 1, len });
}

#[test]
fn nbd_handshake_fatal_errors() {
    let mut handshake = Handshake::new();
    let fed = handshake.feed(&Lookup, &[0, 0, 0, 4], &mut Vec::new());
    assert_eq!(fed, Err(HandshakeError::ClientFlags(4)));
    assert_eq!(fatal(b"NBDMAGIC00000000"), HandshakeError::Magic(0x4e42_444d_4147_4943));
    let len = MAX_SKIPPED_LEN + 1;
    let header = [b"IHAVEOPT\0\0\0\x09", &len.to_be_bytes()[..]].concat();
    assert_eq!(fatal(&header), HandshakeError::OptionLen { option: 9, len });
}

#[test]
fn nbd_handshake_ends_endless_haggling() {
    let mut handshake = greeted();
    for _ in 0..MAX_OPTIONS {
        ask(&mut handshake, &option(99, b""));
    }
    let fed = handshake.feed(&Lookup, &option(99, b""), &mut Vec::new());
    assert_eq!(fed, Err(HandshakeError::TooManyOptions));
}

#[test]
fn nbd_handshake_answers_one_option_a_call() {
    let mut handshake = greeted();
    let mut out = Vec::new();
    let input = [option(8, b""), option(3, b"")].concat();
    assert_eq!(handshake.feed(&Lookup, &input, &mut out), Ok((16, Progress::Answered)));
    assert_eq!(out.len(), 20);
    assert_eq!(handshake.feed(&Lookup, &input[16..], &mut out), Ok((16, Progress::Answered)));
    assert_eq!(handshake.feed(&Lookup, &[], &mut out), Ok((0, Progress::NeedInput)));
}

#[test]
#[should_panic(expected = "the handshake has ended")]
fn nbd_handshake_has_an_end() {
    let mut handshake = greeted();
    ask(&mut handshake, &option(2, b""));
    let _ = handshake.feed(&Lookup, &[], &mut Vec::new());
}
