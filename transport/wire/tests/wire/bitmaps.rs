//! A whole bitmap through the exchange, against a plain list of bits.

use proptest::collection::vec;
use proptest::prelude::*;
use zea_wire::bitmap::{Receiver, SendStep, Sender, max_code_bytes};
use zea_wire::header::HeaderFormat;
use zea_wire::packet::Bitmap;
use zea_wire::vli;

/// The lengths of the runs of equal bits.
fn run_lengths(bits: &[bool]) -> Vec<u64> {
    bits.chunk_by(|a, b| a == b).map(|run| run.len() as u64).collect()
}

fn words(bits: &[bool], bytes: usize) -> Bitmap {
    let mut words = vec![0; bytes];
    for (i, _) in bits.iter().enumerate().take(8 * bytes).filter(|(_, set)| **set) {
        words[i / 8] |= 1 << (i % 8);
    }
    Bitmap { words: words.into() }
}

/// Bits made of runs, so that both kinds of parts pay off.
fn bits() -> impl Strategy<Value = Vec<bool>> {
    let run = prop_oneof![1..3_usize, 1..70_usize, 1..5000_usize];
    (any::<bool>(), vec(run, 1..200)).prop_map(|(first, runs)| {
        let polarity = (0..).map(|i| (i % 2 == 0) == first);
        runs.into_iter().zip(polarity).flat_map(|(len, set)| std::iter::repeat_n(set, len)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn wire_bitmap_arrives_whatever_the_parts(
        bits in bits(), kinds in vec(any::<bool>(), 64), budget in 8..200_usize, scale in 0..5_u32
    ) {
        let format = HeaderFormat::H100;
        let total = bits.len() as u64;
        let mut sender = Sender::new(total, format, scale);
        let mut receiver = Receiver::new(total);
        let mut got = vec![false; bits.len()];
        let mut kinds = kinds.into_iter().cycle();
        loop {
            match sender.step() {
                SendStep::Part { bit, .. } if kinds.next().unwrap() => {
                    let rest = &bits[bit as usize..];
                    let room = budget.min(max_code_bytes(format));
                    let part = vli::encode_part(run_lengths(rest), rest[0], room).unwrap();
                    prop_assert!(part.part.code.len() <= room);
                    for run in receiver.compressed(&part.part).unwrap().filter(|r| r.set) {
                        got[run.start as usize..][..run.len as usize].fill(true);
                    }
                    sender.sent_compressed(part.bits);
                }
                SendStep::Part { word_bit, plain_bytes, .. } => {
                    let part = words(&bits[word_bit as usize..], plain_bytes);
                    for (bit, word) in receiver.plain(&part).unwrap() {
                        for i in (0..64).filter(|i| word >> i & 1 == 1) {
                            got[(bit + i) as usize] = true;
                        }
                    }
                    sender.sent_plain();
                }
                SendStep::EmptyPlain => {
                    prop_assert!(!receiver.is_finished());
                    prop_assert_eq!(receiver.plain(&Bitmap::default()).unwrap().count(), 0);
                    sender.sent_plain();
                }
                SendStep::Done => break,
            }
        }
        prop_assert!(receiver.is_finished());
        prop_assert_eq!(got, bits);
    }

    #[test]
    fn wire_vli_runs_round_trip(runs in vec(1..=vli::MAX_RUN >> 8, 1..100), set in any::<bool>()) {
        let part = vli::encode_part(runs.iter().copied(), set, 4079).unwrap();
        prop_assert_eq!(part.runs, runs.len());
        let decoded: Vec<_> =
            vli::decode_part(&part.part, 5, u64::MAX).unwrap().map(Result::unwrap).collect();
        prop_assert!(decoded.iter().map(|r| r.len).eq(runs));
        prop_assert!(decoded.iter().enumerate().all(|(i, r)| r.set == (set == (i % 2 == 0))));
        prop_assert_eq!(decoded[0].start, 5);
    }
}
