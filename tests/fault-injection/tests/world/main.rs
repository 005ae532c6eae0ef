//! The world and its checkers, tried on a simple core: a sound one passes, each broken one is caught.

mod mirror;

use mirror::{Mutation, mirror};
use zea_core::io::{Command, Op};
use zea_sim::faults::Crash;
use zea_sim::node::MakeCore;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::World;

fn world(make_core: MakeCore) -> World {
    let cluster = Cluster { make_core, ..Cluster::new(2) };
    let mut world = cluster.start();
    world.checks.roles_untold = true;
    world.must(0, Command::Promote { force: true });
    world
}

fn sound() -> World {
    world(|config| mirror(Mutation::None, config))
}

fn load(world: &mut World) {
    for sector in [0, 8, 64, 8, 0] {
        world.write_ok(0, sector, 1);
        world.read_ok(0, sector, 1);
    }
}

#[test]
fn sim_world_a_sound_mirror_passes() {
    let mut w = sound();
    load(&mut w);
    w.settle();
    w.cut(0, 1);
    w.run_ms(500);
    load(&mut w);
    w.checkpoint();
    w.crash(0, Crash::Process);
    w.run_ms(500);
    w.must(1, Command::Promote { force: false });
}

#[test]
fn sim_world_is_deterministic() {
    let hash = |seed| {
        let cluster = Cluster { seed, make_core: |config| mirror(Mutation::None, config), ..Cluster::new(3) };
        let mut w = cluster.start();
        w.must(0, Command::Promote { force: true });
        load(&mut w);
        w.crash(1, Crash::Process);
        load(&mut w);
        w.trace.hash()
    };
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}

#[test]
#[should_panic(expected = "the disk at node 1")]
fn sim_world_catches_an_early_ack() {
    let mut w = world(|config| mirror(Mutation::AckEarly, config));
    w.stall(0, 1);
    w.write_ok(0, 8, 1);
    w.crash(0, Crash::Power);
    w.must(1, Command::Promote { force: false });
}

#[test]
#[should_panic(expected = "no bit says so")]
fn sim_world_catches_a_missing_bit() {
    let mut w = world(|config| mirror(Mutation::SkipBits, config));
    w.stall(0, 1);
    let req = w.write(0, 8, 1);
    w.run_ms(100);
    w.cut(0, 1);
    assert_eq!(w.wait(req), Ok(()));
    w.checkpoint();
}

#[test]
#[should_panic(expected = "leaks buffers")]
fn sim_world_catches_a_leak() {
    let mut w = world(|config| mirror(Mutation::Leak, config));
    load(&mut w);
    w.settle();
}

#[test]
#[should_panic(expected = "the disk at node 1")]
fn sim_world_catches_a_misplaced_write() {
    let mut w = world(|config| mirror(Mutation::WrongSector, config));
    load(&mut w);
    w.settle();
}

#[test]
#[should_panic(expected = "the disk at node 0")]
fn sim_world_catches_a_flush_that_does_nothing() {
    let mut w = world(|config| mirror(Mutation::SkipFlush, config));
    for block in 0..50 {
        w.write_ok(0, block * 8, 1);
    }
    w.flush_ok(0);
    w.crash(0, Crash::Power);
    w.start(0);
    w.must(0, Command::Promote { force: false });
}

#[test]
#[should_panic(expected = "are both Primary")]
fn sim_world_catches_two_primaries() {
    let mut w = world(|config| mirror(Mutation::TwoPrimaries, config));
    w.must(1, Command::Promote { force: false });
}

#[test]
#[should_panic(expected = "[stuck]")]
fn sim_world_catches_a_request_that_never_ends() {
    let mut w = world(|config| mirror(Mutation::LoseRequests, config));
    w.write_ok(0, 8, 1);
}

#[test]
#[should_panic(expected = "[equality]")]
fn sim_world_catches_a_difference_where_nobody_wrote() {
    let mut w = sound();
    load(&mut w);
    w.nodes[1].disks.get_mut(&V0).expect("a disk").preset(4096, &[7 << 36]);
    w.settle();
}

#[test]
fn sim_world_requests_of_a_dead_node_are_lost() {
    let mut w = sound();
    let req = w.write(0, 8, 1);
    w.crash(0, Crash::Process);
    assert_eq!(w.outcomes[&req], zea_sim::world::Outcome::Lost);
    let flush = w.submit(1, V0, Op::Flush, 0, 0, false);
    assert_eq!(w.wait(flush), Ok(()));
}
