//! The flight recorder beside every core of random clusters with faults: what it wrote has to replay to the state that the core
//! had when its process died, through the same actions, from the first segment or from any later one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

use zea_core::Resource;
use zea_core::config::ResourceConfig;
use zea_core::event::Status;
use zea_core::io::{Action, Input, Outbox, Rng, Time};
use zea_core::mutation::{self, Mutation};
use zea_recorder::limits::MIN_RING_BYTES;
use zea_recorder::{Begin, Ending, Moment, Recorded, Recorder, replay};
use zea_sim::node::Core;
use zea_sim::random::Run;
use zea_sim::rng::Stream;
use zea_wire::ids::{NodeId, VolumeNr};

/// So small that a run has several segments.
const RING_BYTES: u64 = MIN_RING_BYTES;

/// What came of one process of a node.
#[derive(Debug, Default)]
struct Flight {
    /// Bytes by segment.
    segments: BTreeMap<u64, Vec<u8>>,
    /// Hashes of the actions of each input.
    actions: Vec<u64>,
    /// Snapshot at the end.
    state: Vec<u8>,
}

thread_local! {
    /// Of the processes that ended.
    static FLIGHTS: RefCell<Vec<Flight>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct RecordedCore {
    core: Resource,
    recorder: Recorder,
    flight: Flight,
}

fn recorded_core(config: ResourceConfig) -> Box<dyn Core> {
    let recorder = Recorder::new(&config.name, RING_BYTES, Time(0), 0);
    Box::new(RecordedCore { core: Resource::new(config), recorder, flight: Flight::default() })
}

fn hash(actions: &[Action]) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{actions:?}").hash(&mut hasher);
    hasher.finish()
}

impl Core for RecordedCore {
    fn handle(&mut self, now: Time, rng: &mut dyn Rng, input: Input<'_>, out: &mut Outbox) {
        self.recorder.handle(&mut self.core, now, rng, input, out);
        self.flight.actions.push(hash(out));
        let segments = &mut self.flight.segments;
        self.recorder.hand_over(Time(u64::MAX), |chunk| {
            segments.entry(chunk.segment).or_default().extend(chunk.bytes);
            Ok(())
        });
    }

    fn deadline(&self) -> Option<Time> {
        self.core.deadline()
    }

    fn status(&self) -> Status {
        self.core.status()
    }

    fn check_invariants(&self) {
        self.core.check_invariants();
    }

    fn is_out_of_sync(&self, volume: VolumeNr, peer: NodeId, sector: u64) -> Option<bool> {
        self.core.is_out_of_sync(volume, peer, sector)
    }

    fn is_al_active(&self, volume: VolumeNr, sector: u64) -> bool {
        self.core.is_al_active(volume, sector)
    }

    fn is_al_in_use(&self, volume: VolumeNr, sector: u64) -> bool {
        self.core.is_al_in_use(volume, sector)
    }
}

impl Drop for RecordedCore {
    fn drop(&mut self) {
        let mut flight = std::mem::take(&mut self.flight);
        self.core.snapshot(usize::MAX, &mut flight.state).expect("it fits memory");
        FLIGHTS.with_borrow_mut(|flights| flights.push(flight));
    }
}

/// Runs a seed with a recorder beside each core.
fn flights(run: Run) -> Vec<Flight> {
    FLIGHTS.with_borrow_mut(Vec::clear);
    drop(Run { make_core: recorded_core, ..run }.run());
    FLIGHTS.take()
}

/// What a replay showed.
#[derive(Debug, Default)]
struct Seen {
    begins: Vec<Begin>,
    inputs: u64,
    last: u64,
    wrong_actions: u64,
    ending: Option<Ending>,
    state: Vec<u8>,
}

fn play(segments: Vec<Vec<u8>>, actions: &[u64]) -> Seen {
    let mut seen = Seen::default();
    let watch = |moment: Moment<'_>| {
        match moment {
            Moment::Begins { how, .. } => seen.begins.push(how),
            Moment::Input { .. } => {}
            Moment::Done { step, actions: done, .. } => {
                seen.inputs += 1;
                seen.last = step.nr;
                seen.wrong_actions += u64::from(actions.get(step.nr as usize - 1) != Some(&hash(done)));
            }
            Moment::Ends { ending, core } => {
                seen.ending = Some(ending.clone());
                seen.state.clear();
                if let Some(core) = core {
                    core.snapshot(usize::MAX, &mut seen.state).expect("it fits memory");
                }
            }
        }
        ControlFlow::Continue(())
    };
    replay(&Recorded::of(segments), watch).expect("nothing is read from files");
    seen
}

#[test]
fn sim_recordings_of_crashed_nodes_replay_to_the_state_that_they_had() {
    let (mut processes, mut inputs, mut segments, mut bytes, mut from_the_middle) = (0, 0, 0, 0, 0);
    for seed in 0..12 {
        for flight in flights(Run::of(seed)) {
            let all: Vec<Vec<u8>> = flight.segments.into_values().collect();
            let seen = play(all.clone(), &flight.actions);
            assert_eq!(seen.ending, Some(Ending::Stopped), "seed {seed}");
            assert_eq!(seen.begins, [Begin::Start], "seed {seed}: segments follow each other without a gap");
            assert_eq!(seen.inputs, flight.actions.len() as u64, "seed {seed}");
            assert_eq!(seen.wrong_actions, 0, "seed {seed}");
            assert!(seen.state == flight.state, "seed {seed}: the state of the replay is not that of the node");
            if all.len() > 1 {
                // The ring has wrapped: only the last segment is left.
                let last = play(all[all.len() - 1..].to_vec(), &flight.actions);
                assert_eq!((last.begins, last.wrong_actions), (vec![Begin::Middle], 0), "seed {seed}");
                assert!(last.inputs < seen.inputs, "seed {seed}");
                assert!(last.state == flight.state, "seed {seed}: from the last segment");
                from_the_middle += 1;
            }
            processes += 1;
            inputs += seen.inputs;
            segments += all.len();
            bytes += all.iter().map(Vec::len).sum::<usize>();
        }
    }
    println!(
        "{processes} processes, {inputs} inputs, {bytes} bytes, {segments} segments, {from_the_middle} times from the last one"
    );
    assert!(processes > 40 && inputs > 50_000 && segments > 80 && from_the_middle > 20);
}

#[test]
fn sim_a_core_with_randomness_of_its_own_does_not_replay() {
    mutation::set(Some(Mutation::OwnRandomness));
    let flights = flights(Run::of(3));
    mutation::set(None);
    let replays = |flight: &Flight| {
        let seen = play(flight.segments.values().cloned().collect(), &flight.actions);
        seen.ending == Some(Ending::Stopped) && seen.wrong_actions == 0 && seen.state == flight.state
    };
    assert!(!flights.iter().all(replays), "the replay notices");
}

/// A recording with several segments, made once.
fn one_flight() -> Flight {
    let flights = flights(Run::of(5));
    flights.into_iter().max_by_key(|flight| flight.segments.len()).expect("nodes ran")
}

#[test]
fn sim_recordings_that_are_cut_replay_to_where_they_are_cut() {
    let flight = one_flight();
    let all: Vec<Vec<u8>> = flight.segments.values().cloned().collect();
    assert!(all.len() > 2);
    let whole = play(all.clone(), &flight.actions);
    let mut lengths = BTreeSet::new();
    let mut rng = Stream::new(7, "damage");
    for _ in 0..60 {
        let mut damaged = all.clone();
        let segment = rng.below(all.len() as u64) as usize;
        let at = rng.below(all[segment].len() as u64) as usize;
        if rng.chance(500) {
            damaged[segment].truncate(at);
        } else {
            damaged[segment][at] ^= 1 << rng.below(8);
        }
        let seen = play(damaged, &flight.actions);
        // What is shown is right, up to the damage and behind it.
        assert_eq!(seen.wrong_actions, 0);
        assert!(seen.inputs <= whole.inputs);
        if segment + 1 < all.len() {
            assert!(seen.state == whole.state, "later segments begin with the whole state");
        }
        lengths.insert(seen.inputs);
    }
    assert!(lengths.len() > 5, "damage costs what lies behind it in its segment: {lengths:?}");
}
