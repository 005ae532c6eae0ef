//! The machine step by step. Two machines against each other: `simulation`.

use proptest::prelude::*;

use super::*;

const HEADS: u32 = 1 << 31;
const TAILS: u32 = 0;

fn rules(first_outgoing: Stream) -> Rules {
    Rules { connect_int_ms: 1_000, connect_timeout_ms: 3_000, check_ms: 100, first_outgoing }
}

struct Bench {
    machine: Establish,
    now_ms: u64,
}

impl Bench {
    fn started(first: Stream) -> Bench {
        let mut bench = Bench { machine: Establish::new(rules(first)), now_ms: 0 };
        assert_eq!(bench.input(Input::Start), [Output::Connect]);
        bench
    }

    fn flip(&mut self, random: u32, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.machine.handle(self.now_ms, random, input, &mut out);
        out
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.flip(TAILS, input)
    }

    /// Time until the deadline, and what happens then.
    fn wait(&mut self) -> (u64, Vec<Output>) {
        let deadline = self.machine.deadline_ms().unwrap();
        let waited = deadline - self.now_ms;
        self.now_ms = deadline;
        (waited, self.input(Input::Timer))
    }
}

const A: SocketId = SocketId(1);
const B: SocketId = SocketId(2);
const C: SocketId = SocketId(3);

#[test]
fn tcp_establish_one_socket_each_way_is_confirmed_after_the_check_time() {
    let mut greater = Bench::started(Stream::Data);
    assert_eq!(greater.input(Input::Connected(A)), [Output::SendInitial(A, Stream::Data)]);
    assert_eq!(greater.input(Input::Accepted(B, Stream::Control)), []);
    assert_eq!(greater.input(Input::Timer), [], "not before its time");
    let pair = Pair { data: A, control: B, resolve_conflicts: true };
    assert_eq!(greater.wait(), (100, vec![Output::Confirmed(pair)]));
    assert!(!greater.machine.is_wanted());
    assert_eq!(greater.machine.held().count(), 0);

    let mut smaller = Bench::started(Stream::Control);
    assert_eq!(smaller.input(Input::Connected(A)), [Output::SendInitial(A, Stream::Control)]);
    assert_eq!(smaller.input(Input::Accepted(B, Stream::Data)), []);
    let pair = Pair { data: B, control: A, resolve_conflicts: false };
    assert_eq!(smaller.wait(), (100, vec![Output::Confirmed(pair)]));
}

#[test]
fn tcp_establish_takes_both_sockets_from_the_peer() {
    let mut bench = Bench::started(Stream::Data);
    assert_eq!(bench.input(Input::Accepted(A, Stream::Control)), []);
    assert_eq!(bench.input(Input::Accepted(B, Stream::Data)), [Output::CancelConnect]);
    let (_, out) = bench.wait();
    assert!(matches!(out[..], [Output::Confirmed(Pair { resolve_conflicts: true, .. })]));
}

#[test]
fn tcp_establish_initiates_both_if_the_peer_cannot() {
    let mut bench = Bench::started(Stream::Control);
    bench.input(Input::Connected(A));
    let (waited, out) = bench.wait();
    assert!((857..=1143).contains(&waited), "a whole connect-int: {waited}");
    assert_eq!(out, [Output::Connect]);
    assert_eq!(bench.input(Input::Connected(B)), [Output::SendInitial(B, Stream::Data)]);
    let (_, out) = bench.wait();
    assert!(matches!(out[..], [Output::Confirmed(Pair { resolve_conflicts: false, .. })]));
}

#[test]
fn tcp_establish_fills_the_missing_role_at_once_after_an_incoming_socket() {
    let mut bench = Bench::started(Stream::Control);
    bench.input(Input::ConnectFailed);
    assert_eq!(bench.input(Input::Accepted(A, Stream::Control)), [Output::Connect]);
    assert_eq!(bench.input(Input::Connected(B)), [Output::SendInitial(B, Stream::Data)]);
}

#[test]
fn tcp_establish_crossing_keeps_the_new_socket_and_restarts_the_check() {
    let mut bench = Bench::started(Stream::Data);
    bench.input(Input::Connected(A));
    bench.input(Input::Accepted(B, Stream::Control));
    bench.now_ms += 90;
    assert_eq!(bench.input(Input::Accepted(C, Stream::Data)), [Output::Close(A)]);
    let pair = Pair { data: C, control: B, resolve_conflicts: true };
    assert_eq!(bench.wait(), (100, vec![Output::Confirmed(pair)]));
}

#[test]
fn tcp_establish_crossed_control_moves_the_tie_break() {
    let mut bench = Bench::started(Stream::Control);
    bench.input(Input::Connected(A));
    bench.input(Input::Accepted(B, Stream::Data));
    assert_eq!(bench.input(Input::Accepted(C, Stream::Control)), [Output::Close(A)]);
    let (_, out) = bench.wait();
    assert!(matches!(out[..], [Output::Confirmed(Pair { resolve_conflicts: true, .. })]));
}

#[test]
fn tcp_establish_waits_again_after_half_of_the_crossings() {
    for (random, connects) in [(TAILS, true), (HEADS, false)] {
        let mut bench = Bench::started(Stream::Data);
        bench.input(Input::Connected(A));
        let out = bench.flip(random, Input::Accepted(B, Stream::Data));
        assert_eq!(out[0], Output::Close(A));
        assert_eq!(out.contains(&Output::Connect), connects);
    }
    // The wait outlives the loss of the sockets, else both nodes would stay in step.
    let mut bench = Bench::started(Stream::Data);
    bench.input(Input::Connected(A));
    bench.flip(HEADS, Input::Accepted(B, Stream::Data));
    bench.input(Input::Lost(B));
    let (waited, out) = bench.wait();
    assert!(waited >= 857, "{waited}");
    assert_eq!(out, [Output::Connect]);
}

#[test]
fn tcp_establish_losing_a_socket_ends_the_check() {
    let mut bench = Bench::started(Stream::Data);
    bench.input(Input::Connected(A));
    bench.input(Input::Accepted(B, Stream::Control));
    assert_eq!(bench.input(Input::Lost(A)), []);
    let (waited, out) = bench.wait();
    assert!(waited <= 58, "{waited}");
    assert_eq!(out, [Output::Connect]);
    assert_eq!(bench.input(Input::Connected(C)), [Output::SendInitial(C, Stream::Data)]);
}

#[test]
fn tcp_establish_backs_off_and_starts_over_after_success() {
    let mut bench = Bench::started(Stream::Data);
    let mut waits = Vec::new();
    for _ in 0..20 {
        assert_eq!(bench.input(Input::ConnectFailed), []);
        let (waited, out) = bench.wait();
        assert_eq!(out, [Output::Connect]);
        waits.push(waited);
    }
    assert!((43..=57).contains(&waits[0]), "{waits:?}");
    assert!(waits.is_sorted(), "{waits:?}");
    assert!((857..=1143).contains(&waits[19]), "{waits:?}");

    bench.input(Input::Accepted(A, Stream::Data));
    bench.input(Input::Accepted(B, Stream::Control));
    bench.wait();
    bench.input(Input::Start);
    bench.input(Input::ConnectFailed);
    assert!(bench.wait().0 <= 57);
}

#[test]
fn tcp_establish_gives_a_hanging_attempt_up() {
    let mut bench = Bench::started(Stream::Data);
    assert_eq!(bench.wait(), (3_000, vec![Output::CancelConnect]));
    assert_eq!(bench.wait().1, [Output::Connect]);
}

#[test]
fn tcp_establish_stopped_takes_nothing_and_closes_all() {
    let mut bench = Bench::started(Stream::Data);
    assert_eq!(bench.input(Input::Start), [], "idempotent");
    bench.input(Input::Accepted(A, Stream::Control));
    assert_eq!(bench.input(Input::Stop), [Output::CancelConnect, Output::Close(A)]);
    assert_eq!(bench.machine.deadline_ms(), None);
    assert_eq!(bench.input(Input::Accepted(B, Stream::Data)), [Output::Close(B)]);
    assert_eq!(bench.input(Input::Connected(C)), [Output::Close(C)]);
    assert_eq!(bench.input(Input::Lost(C)), []);
    assert_eq!(bench.input(Input::Stop), []);
}

fn any_input() -> impl Strategy<Value = Input> {
    let stream = prop_oneof![Just(Stream::Data), Just(Stream::Control)];
    prop_oneof![
        2 => Just(Input::Start),
        1 => Just(Input::Stop),
        4 => Just(Input::Connected(SocketId(0))),
        2 => Just(Input::ConnectFailed),
        4 => stream.prop_map(|s| Input::Accepted(SocketId(0), s)),
        2 => (0..40u64).prop_map(|id| Input::Lost(SocketId(id))),
        6 => Just(Input::Timer),
    ]
}

proptest! {
    /// Whatever happens in whatever order: no panic, one attempt at a time, every socket that comes in is
    /// closed, lost or handed over exactly once, and a wanted pair always has a deadline.
    #[test]
    fn tcp_establish_accounts_for_every_socket(
        steps in proptest::collection::vec((any_input(), any::<u32>(), 0..400u64), 1..120),
        extreme in any::<bool>(),
    ) {
        let mut rules = rules(Stream::Data);
        if extreme {
            rules.connect_int_ms = 0;
            rules.connect_timeout_ms = u64::MAX;
            rules.check_ms = u64::MAX;
        }
        let mut machine = Establish::new(rules);
        let mut open = std::collections::BTreeSet::new();
        let mut connecting = false;
        let mut now_ms = 0;
        for (step, (input, random, pause)) in steps.into_iter().enumerate() {
            now_ms += pause;
            let fresh = SocketId(step as u64 + 100);
            let input = match input {
                Input::Connected(_) if !connecting => continue,
                Input::ConnectFailed if !connecting => continue,
                Input::Connected(_) => { connecting = false; open.insert(fresh); Input::Connected(fresh) }
                Input::ConnectFailed => { connecting = false; Input::ConnectFailed }
                Input::Accepted(_, s) => { open.insert(fresh); Input::Accepted(fresh, s) }
                Input::Lost(SocketId(n)) => match open.iter().nth(n as usize % 3).copied() {
                    Some(id) => { open.remove(&id); Input::Lost(id) }
                    None => continue,
                },
                other => other,
            };
            let mut out = Vec::new();
            machine.handle(now_ms, random, input, &mut out);
            for output in out {
                match output {
                    Output::Connect => { prop_assert!(!connecting); connecting = true; }
                    Output::CancelConnect => { prop_assert!(connecting); connecting = false; }
                    Output::SendInitial(id, _) => prop_assert!(open.contains(&id)),
                    Output::Close(id) => prop_assert!(open.remove(&id)),
                    Output::Confirmed(pair) => {
                        prop_assert!(open.remove(&pair.data) && open.remove(&pair.control));
                        prop_assert!(!machine.is_wanted());
                    }
                }
            }
            prop_assert_eq!(machine.held().collect::<std::collections::BTreeSet<_>>(), open.clone());
            prop_assert_eq!(machine.is_wanted(), machine.deadline_ms().is_some());
            prop_assert!(machine.is_wanted() || (!connecting && open.is_empty()));
        }
    }

    #[test]
    fn tcp_jitter_uses_the_whole_seventh(base in 7..100_000u64) {
        let span = u32::try_from(2 * (base / 7)).unwrap();
        prop_assert_eq!(jitter(base, 0), base - base / 7);
        prop_assert_eq!(jitter(base, span | HEADS), base + base / 7);
    }

    #[test]
    fn tcp_jitter_stays_within_a_seventh(base in 0..100_000u64, random in any::<u32>()) {
        let wait = jitter(base, random);
        prop_assert!(wait >= base - base / 7 && wait <= base + base / 7);
    }
}
