//! CTX_DETACH_RESOURCE takes away what CTX_ATTACH_RESOURCE gave.

use super::*;

#[test]
fn what_is_detached_is_not_reached_any_more() {
    let mut world = World::new(WindowMode::Premapped);
    world.ok(cmd::CTX_CREATE, THEIRS, &cross_domain());
    world.ring(QUERY, 0);
    world.ring(CHANNEL, CHANNEL_PAGE);
    for kind in [cmd::CTX_ATTACH_RESOURCE, cmd::CTX_DETACH_RESOURCE] {
        // Once more changes nothing.
        world.ok(kind, THEIRS, &only(CHANNEL));
        world.ok(kind, THEIRS, &only(CHANNEL));
    }
    let refused = world.run(cmd::SUBMIT_3D, THEIRS, submit(&init(1)).as_slice());
    assert_ne!(refused, resp::OK_NODATA, "its ring is not its own");
    assert_eq!(world.page(CHANNEL_PAGE), [0; 4096]);
    for (kind, context, resource) in [
        (cmd::CTX_DETACH_RESOURCE, THEIRS, QUERY),
        (cmd::RESOURCE_UNREF, 0, QUERY),
        (cmd::RESOURCE_UNREF, 0, CHANNEL),
    ] {
        world.ok(kind, context, &only(resource));
    }
    world.ok(cmd::CTX_DESTROY, THEIRS, &());
    let compositor = world.connect();
    let hello = submit(&send(b"hello", None));
    world.ok(cmd::SUBMIT_3D, THEIRS, hello.as_slice());
    assert_eq!(receive(&compositor).0, b"hello");
}

/// Pages are for blobs of guest pages, and for no others.
#[test]
fn a_blob_has_pages_as_its_kind_says() {
    let mut world = World::new(WindowMode::Premapped);
    world.ok(cmd::CTX_CREATE, THEIRS, &cross_domain());
    let entry = MemEntry {
        addr: 0.into(),
        length: 4096.into(),
        padding: 0.into(),
    };
    let of_the_guest = ResourceCreateBlob {
        blob_mem: blob_mem::GUEST.into(),
        ..blob(30, 1, 1)
    };
    let of_the_host = ResourceCreateBlob {
        nr_entries: 1.into(),
        ..blob(30, 1, 1)
    };
    let with_pages = [of_the_host.as_bytes(), entry.as_bytes()].concat();
    for body in [of_the_guest.as_bytes(), &with_pages] {
        let refused = world.run(cmd::RESOURCE_CREATE_BLOB, THEIRS, body);
        assert_eq!(refused, resp::ERR_INVALID_PARAMETER);
        let unknown = world.run(cmd::RESOURCE_UNREF, 0, &only(30));
        assert_eq!(unknown, resp::ERR_INVALID_RESOURCE_ID);
    }
    assert_eq!(world.host.used(), 0);
}
