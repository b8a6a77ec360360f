//! Commands with a fence on a ring, executed and refused.

use super::*;

fn on_ring<T: IntoBytes + Immutable + ?Sized>(kind: u32, ring: u8, body: &T) -> Vec<u8> {
    let fenced = CtrlHdr {
        flags: (FLAG_FENCE | FLAG_INFO_RING_IDX).into(),
        ring_idx: ring,
        ..header(kind, THEIRS)
    };
    bytes(fenced, body)
}

#[test]
fn a_ring_that_is_not_there_is_told_before_anything_is_done() {
    let (mut world, compositor) = World::connected(WindowMode::OnDemand);
    world.image();
    let used = world.host.used();
    let ring_2 = |world: &mut World, kind: u32, body: &[u8]| {
        let command = on_ring(kind, 2, body);
        let refused = world.gpu.execute(1, &command, &world.memory);
        assert_eq!(refused.unwrap().kind(), resp::ERR_INVALID_PARAMETER);
    };
    let guest_page = ResourceCreateBlob {
        blob_mem: blob_mem::GUEST.into(),
        nr_entries: 1.into(),
        ..blob(50, 0, 1)
    };
    let entry = MemEntry {
        addr: (9 * PAGE).into(),
        length: 4096.into(),
        padding: 0.into(),
    };
    let create = [guest_page.as_bytes(), entry.as_bytes()].concat();
    ring_2(&mut world, cmd::RESOURCE_CREATE_BLOB, &create);
    assert!(!world.gpu.has_resource(50));
    ring_2(&mut world, cmd::RESOURCE_MAP_BLOB, map(IMAGE, 0).as_bytes());
    assert_eq!(world.gpu.window_change(), None);
    ring_2(&mut world, cmd::RESOURCE_UNREF, only(IMAGE).as_bytes());
    ring_2(&mut world, cmd::SUBMIT_3D, &submit(&send(b"unsent", None)));
    assert_eq!(world.host.used(), used);
    // All of it can be done now, and nothing was sent.
    world.ok(cmd::RESOURCE_CREATE_BLOB, 0, create.as_slice());
    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(IMAGE, 0)),
        resp::OK_MAP_INFO
    );
    world.ok(
        cmd::SUBMIT_3D,
        THEIRS,
        submit(&send(b"sent", None)).as_slice(),
    );
    assert_eq!(receive(&compositor).0, b"sent");
}

/// Linux takes a fence that is reached for all before it on the ring: a refusal that comes first says that the work is done.
#[test]
fn a_refusal_waits_for_what_was_begun_before_it_and_begins_nothing() {
    let (mut world, mut compositor) = World::connected(WindowMode::Premapped);
    assert_eq!(world.poll(1, 1), None);
    let nonsense = |ring| on_ring(cmd::SUBMIT_3D, ring, submit(&[0; 64]).as_slice());
    assert_eq!(world.gpu.execute(2, &nonsense(1), &world.memory), None);
    // On the other ring nothing is under way.
    let other = world.gpu.execute(3, &nonsense(0), &world.memory);
    assert_eq!(other.unwrap().kind(), resp::ERR_INVALID_PARAMETER);
    assert!(world.late(Duration::from_millis(20)).is_empty());
    compositor.write_all(b"one").unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [1, 2]);
    // What came next was for nobody who was refused.
    let at_once = world.gpu.execute(4, &nonsense(1), &world.memory);
    assert_eq!(at_once.unwrap().kind(), resp::ERR_INVALID_PARAMETER);
    assert_eq!(world.poll(5, 1), None);
    compositor.write_all(b"two").unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [5]);
}
