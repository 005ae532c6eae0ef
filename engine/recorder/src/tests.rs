//! Recorder and replay together, without files.

use std::ops::ControlFlow;

use proptest::prelude::*;
use zea_core::Resource;
use zea_core::config::{DiskOptions, ResourceConfig, VolumeConfig};
use zea_core::io::{AdminTag, Command, Input, LinkId, LinkLost, Outbox, Rng, Time};
use zea_wire::ids::{NodeId, VolumeNr};

use crate::limits::{CHUNK_MS, GAP_RETRY_MS, MAX_WAITING_BYTES, MIN_RING_BYTES, TOO_LARGE_RETRY_MS};
use crate::{Begin, Chunk, Ending, Moment, Recorded, Recorder, replay};

struct Zero;

impl Rng for Zero {
    fn next_u64(&mut self) -> u64 {
        0
    }
}

/// A core, its recorder, and the segments that it made.
struct Pair {
    core: Resource,
    recorder: Recorder,
    segments: Vec<Vec<u8>>,
    now: Time,
    /// Chunks are taken.
    takes: bool,
}

impl Pair {
    fn new(ring_bytes: u64) -> Pair {
        let core = Resource::new(ResourceConfig::new("r0", NodeId(0)));
        let recorder = Recorder::new("r0", ring_bytes, Time(0), 0);
        Pair { core, recorder, segments: Vec::new(), now: Time(0), takes: true }
    }

    /// Gives an input; true if recorded entries were dropped.
    fn give(&mut self, input: Input<'_>) -> bool {
        self.now = self.now.plus_ms(1);
        self.recorder.handle(&mut self.core, self.now, &mut Zero, input, &mut Outbox::new());
        self.end_turn()
    }

    fn end_turn(&mut self) -> bool {
        let (segments, takes) = (&mut self.segments, self.takes);
        self.recorder.hand_over(self.now, |chunk| {
            if !takes {
                return Err(chunk);
            }
            let Chunk { segment, bytes } = chunk;
            segments.resize(segments.len().max(segment as usize + 1), Vec::new());
            segments[segment as usize].extend(bytes);
            Ok(())
        })
    }

    /// A command that changes something: a volume more, or one less.
    fn change(&mut self) -> bool {
        let volume = VolumeNr(0);
        let command = if self.core.status().devices.is_empty() {
            Command::AddVolume(VolumeConfig { volume, size_sectors: None, disk: DiskOptions::default() })
        } else {
            Command::RemoveVolume { volume }
        };
        self.give(Input::Admin { tag: AdminTag(7), command })
    }

    fn state(&self) -> Vec<u8> {
        let mut state = Vec::new();
        self.core.snapshot(usize::MAX, &mut state).unwrap();
        state
    }
}

/// How it begins, how it ends, and the last state.
fn play(segments: Vec<Vec<u8>>) -> (Vec<Begin>, Vec<Ending>, Vec<u8>) {
    let (mut begins, mut endings, mut state) = (Vec::new(), Vec::new(), Vec::new());
    replay(&Recorded::of(segments), |moment| {
        match moment {
            Moment::Begins { how, .. } => begins.push(how),
            Moment::Input { .. } | Moment::Done { .. } => {}
            Moment::Ends { ending, core } => {
                endings.push(ending.clone());
                state.clear();
                if let Some(core) = core {
                    core.snapshot(usize::MAX, &mut state).unwrap();
                }
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    (begins, endings, state)
}

#[test]
fn recorder_names_what_a_slow_writer_did_not_take() {
    let mut pair = Pair::new(1 << 30);
    for _ in 0..50 {
        pair.change();
    }
    pair.takes = false;
    let mut inputs = 0_u64;
    let long = "x".repeat(2000);
    let lost = || LinkLost::Network(long.clone());
    while !pair.give(Input::LinkDown { peer: NodeId(1), link: LinkId(1), lost: lost() }) {
        inputs += 1;
        assert!(inputs < (MAX_WAITING_BYTES / long.len()) as u64 + 100, "what waits is bounded");
    }
    assert!(inputs > 1_000, "a moment of slowness is no loss");
    pair.takes = true;
    for _ in 0..GAP_RETRY_MS + 50 {
        pair.change();
    }
    pair.recorder.end();
    pair.end_turn();
    let state = pair.state();
    let (begins, endings, replayed) = play(pair.segments);
    let [Begin::Start, Begin::Gap(missing)] = begins[..] else { panic!("{begins:?}") };
    assert!(missing > inputs && missing < inputs + 2 * GAP_RETRY_MS, "{missing} of {inputs}");
    assert_eq!(endings, [Ending::Stopped, Ending::Ended]);
    assert!(replayed == state);
}

#[test]
fn recorder_of_a_state_that_is_too_large_begins_when_it_is_not() {
    // The quarter of which holds a resource without volumes.
    let mut pair = Pair::new(8192);
    for _ in 0..99 {
        pair.change();
    }
    assert_eq!(pair.core.status().devices.len(), 1);
    for _ in 0..3 * TOO_LARGE_RETRY_MS {
        pair.give(Input::Timer);
    }
    let segments = pair.segments.len();
    pair.change();
    for _ in 0..TOO_LARGE_RETRY_MS {
        pair.give(Input::Timer);
    }
    pair.now = pair.now.plus_ms(CHUNK_MS);
    pair.end_turn();
    assert!(pair.segments.len() > segments, "it is small again");
    let state = pair.state();
    assert!(play(pair.segments).2 == state);
}

#[test]
fn recorder_shows_a_panic_of_the_core_where_it_was() {
    let mut pair = Pair::new(MIN_RING_BYTES);
    for _ in 0..9 {
        pair.change();
    }
    // No disk command is under way: the completion is a bug of the runtime.
    let tag = zea_core::io::DiskTag(5);
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pair.give(Input::DiskDone { tag, result: Ok(()), buf: None, meta: &[], block: None })
    }));
    assert!(died.is_err());
    pair.now = pair.now.plus_ms(CHUNK_MS);
    pair.end_turn();
    let (_, endings, _) = play(pair.segments);
    assert_eq!(endings, [Ending::Panicked("no entry 5".into())]);
}

#[test]
fn recorder_refuses_other_files_by_name() {
    let unreadable = |bytes: &[u8]| match &play(vec![bytes.to_vec()]).1[..] {
        [Ending::Unreadable(why)] => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(unreadable(b"something else").contains("no recording"));
    assert!(unreadable(b"").contains("no beginning"));
    assert!(unreadable(b"zeaflt01").contains("no beginning"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn recorder_files_of_anything_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let file = [if magic { &b"zeaflt01"[..] } else { &[] }, &bytes].concat();
        play(vec![file]);
    }
}
