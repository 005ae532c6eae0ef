//! The model on small histories.

use super::*;

const K: Key = (0, 8);

fn read(model: &mut Model, node: usize, tag: Tag) -> Result<(), String> {
    let ticket = model.read_begins(node, &[node], K, 1);
    model.read_ended(&ticket, &[tag], true)
}

fn acked(model: &mut Model, holders: &[usize]) -> Tag {
    let (index, tags) = model.write_begins(0, &[], K, 1, false);
    model.write_acked(index, holders, &[]);
    tags[0]
}

#[test]
fn sim_model_wants_the_last_acknowledged_write() {
    let mut m = Model::new(2);
    assert!(read(&mut m, 0, 0).is_ok());
    let old = acked(&mut m, &[0, 1]);
    let new = acked(&mut m, &[0, 1]);
    assert!(read(&mut m, 0, new).is_ok());
    assert!(read(&mut m, 0, old).is_err());
    assert!(read(&mut m, 1, 0).is_err());
}

#[test]
fn sim_model_allows_either_order_of_writes_in_flight_together() {
    let mut m = Model::new(1);
    let (a, tag_a) = m.write_begins(0, &[], K, 1, false);
    let (b, tag_b) = m.write_begins(0, &[], K, 1, false);
    assert!(read(&mut m, 0, 0).is_ok());
    m.write_acked(a, &[0], &[]);
    m.write_acked(b, &[0], &[]);
    assert!(read(&mut m, 0, 0).is_err());
    assert!(read(&mut m, 0, tag_a[0]).is_ok());
    assert!(read(&mut m, 0, tag_b[0]).is_ok(), "nothing orders the two");
}

#[test]
fn sim_model_lets_a_crash_take_what_no_flush_covered() {
    let mut m = Model::new(2);
    let first = acked(&mut m, &[0, 1]);
    let flush = m.flush_begins();
    m.flush_acked(flush, 0, 0, &[0, 1]);
    let second = acked(&mut m, &[0, 1]);
    m.node_crashed(0, &[1]);
    assert!(read(&mut m, 0, second).is_ok());
    assert!(read(&mut m, 1, first).is_err());
    m.node_crashed(0, &[1]);
    assert!(read(&mut m, 0, first).is_ok());
    assert!(read(&mut m, 0, 0).is_err());
}

#[test]
fn sim_model_finds_a_resync_in_the_wrong_direction() {
    let mut m = Model::new(2);
    let old = acked(&mut m, &[0, 1]);
    acked(&mut m, &[0]);
    assert!(m.resynced(0, 1, 0, u64::MAX, |_| old, |_| old).is_some());
    let mut m = Model::new(2);
    let old = acked(&mut m, &[0, 1]);
    let new = acked(&mut m, &[0]);
    assert!(m.resynced(1, 0, 0, u64::MAX, |_| new, |_| new).is_none());
    acked(&mut m, &[0]);
    m.forgive(0);
    assert!(m.resynced(0, 1, 0, u64::MAX, |_| old, |_| old).is_none());
}

#[test]
fn sim_model_keeps_a_promise_that_a_resync_found_kept() {
    let mut m = Model::new(2);
    acked(&mut m, &[0, 1]);
    let flush = m.flush_begins();
    m.flush_acked(flush, 0, 0, &[0]);
    let new = acked(&mut m, &[0]);
    m.node_crashed(1, &[]);
    assert!(m.resynced(0, 1, 0, u64::MAX, |_| new, |_| new).is_none());
    assert!(read(&mut m, 1, 0).is_err(), "the write is there, and stays");
}

#[test]
fn sim_model_promises_nothing_of_a_node_that_crashed_after_its_ack() {
    let mut m = Model::new(2);
    let (index, tags) = m.write_begins(0, &[], K, 1, false);
    m.node_crashed(1, &[0]);
    m.write_acked(index, &[0, 1], &[]);
    assert!(read(&mut m, 0, tags[0]).is_ok());
    assert!(read(&mut m, 1, 0).is_ok());
}

#[test]
fn sim_model_remembers_what_a_power_loss_took_whatever_happens_to_another_volume() {
    let mut m = Model::new(2);
    let old = acked(&mut m, &[0, 1]);
    let flush = m.flush_begins();
    m.flush_acked(flush, 0, 0, &[0, 1]);
    acked(&mut m, &[0, 1]);
    m.node_crashed(0, &[]);
    assert!(m.resynced(0, 1, 1, u64::MAX, |_| 0, |_| 0).is_none());
    assert!(m.resynced(1, 0, 0, u64::MAX, |_| old, |_| old).is_none());
}

#[test]
fn sim_model_excuses_for_good_what_a_promotion_alone_gave_up() {
    for goes_on_alone in [false, true] {
        let mut m = Model::new(2);
        let old = acked(&mut m, &[0, 1]);
        let flush = m.flush_begins();
        m.flush_acked(flush, 0, 0, &[0, 1]);
        acked(&mut m, &[0, 1]);
        m.node_crashed(0, &[1]);
        if goes_on_alone {
            m.promoted(0, &[], true);
        }
        m.node_crashed(0, &[]);
        assert_eq!(m.resynced(1, 0, 0, u64::MAX, |_| old, |_| old).is_none(), goes_on_alone);
    }
}
