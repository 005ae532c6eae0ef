//! Every packet comes back as it was sent, and every cut of it asks for more.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use zea_wire::framer::{Framer, Progress};
use zea_wire::fuzz::AGREEMENTS;
use zea_wire::header::Header;
use zea_wire::packet::{DecodeError, MAX_PREFIX_BYTES, Packet, prefix_len, rule};

use crate::strategy::{Sent, any_sent, commands, sent};

fn framer(sent: &Sent) -> Framer {
    let mut framer = Framer::new(sent.packet.stream());
    framer.set_negotiated(sent.neg);
    framer
}

fn check_round_trip(sent: &Sent) {
    let bytes = sent.encode();
    assert!(bytes.len() <= MAX_PREFIX_BYTES);
    let progress = framer(sent).next(&bytes).unwrap_or_else(|e| panic!("{sent:?}: {e}"));
    let Progress::Packet { consumed, header, packet, digest_len, payload_len } = progress else {
        panic!("{sent:?}: {progress:?}")
    };
    assert_eq!(consumed, bytes.len());
    assert_eq!((&packet, payload_len), (&sent.packet, sent.payload_len));
    assert_eq!(bytes[consumed - digest_len..], sent.digest);
    assert_eq!(header.volume(), sent.volume);
    assert_eq!(header.length as usize, consumed - header.format.len() + payload_len);
}

fn check_cuts(sent: &Sent) {
    let bytes = sent.encode();
    let header = Header::decode(&bytes).unwrap();
    let head = header.format.len();
    let need = prefix_len(&header, &sent.neg).unwrap();
    let step = (bytes.len() / 64).max(1);
    for cut in (0..bytes.len()).step_by(step).chain([bytes.len() - 1]) {
        match framer(sent).next(&bytes[..cut]) {
            Ok(Progress::NeedMore { at_least }) => {
                assert!(cut < at_least && at_least <= bytes.len(), "{at_least} at {cut}");
            }
            other => panic!("{cut} of {} bytes: {other:?}", bytes.len()),
        }
        if let Some(have) = cut.checked_sub(head) {
            let stream = sent.packet.stream();
            let error = Packet::decode(&header, stream, &sent.neg, &bytes[head..cut]);
            assert_eq!(error, Err(DecodeError::Truncated { need, have }));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn wire_packets_come_back_as_they_were_sent(sent in any_sent()) {
        check_round_trip(&sent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn wire_cut_packets_ask_for_more(sent in any_sent()) {
        check_cuts(&sent);
    }
}

#[test]
fn wire_every_command_round_trips_under_every_agreement() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for neg in AGREEMENTS {
        for command in commands().filter(|&c| rule(c).unwrap().is_legal(&neg)) {
            for _ in 0..4 {
                let sent = sent(command, neg).new_tree(&mut runner).unwrap().current();
                assert_eq!(sent.packet.command(), command);
                check_round_trip(&sent);
                seen.insert(command);
            }
        }
    }
    assert!(commands().eq(seen), "a command is legal under no agreement");
}

#[test]
fn wire_encoding_into_a_roomy_buffer_does_not_move_it() {
    let mut runner = TestRunner::deterministic();
    let mut out = Vec::with_capacity(64 * 1024);
    let at = out.as_ptr();
    for command in commands() {
        let neg = AGREEMENTS.into_iter().find(|n| rule(command).unwrap().is_legal(n)).unwrap();
        let sent = sent(command, neg).new_tree(&mut runner).unwrap().current();
        out.clear();
        sent.packet.encode_with_digest(&sent.neg, sent.volume, &sent.digest, sent.payload_len, &mut out);
        assert_eq!((out.as_ptr(), out.capacity()), (at, 64 * 1024));
    }
}
