use super::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 8;

fn command(kind: u32, body: &(impl IntoBytes + zerocopy::Immutable)) -> Vec<u8> {
    let header = CtrlHdr {
        cmd_type: kind.into(),
        ..CtrlHdr::default()
    };
    [header.as_bytes(), body.as_bytes()].concat()
}

/// A client's commands, and a device that says yes or no to them.
struct Client(Offsets);

impl Client {
    fn new() -> Self {
        Self::with(PAGES)
    }

    fn with(pages: u64) -> Self {
        Self(Offsets::new(pages * PAGE))
    }

    fn done(&mut self, mut command: Vec<u8>, response: u32) -> Option<u64> {
        let step = self.0.prepare(&mut command).ok().expect("room");
        self.0.finish(step, response)
    }

    fn create(&mut self, id: u32, pages: u64) {
        let asked = ResourceCreateBlob {
            resource_id: id.into(),
            size: (pages * PAGE).into(),
            ..Default::default()
        };
        let command = command(cmd::RESOURCE_CREATE_BLOB, &asked);
        assert_eq!(self.done(command, resp::OK_NODATA), None);
    }

    /// The offset that the device sees; none where there is no room.
    fn map(&mut self, id: u32, response: u32) -> Option<u64> {
        let mut command = command(cmd::RESOURCE_MAP_BLOB, &map(id, ANY_OFFSET));
        let step = self.0.prepare(&mut command).ok()?;
        let (_, body) = CtrlHdr::read_from_prefix(&command).unwrap();
        let (asked, _) = ResourceMapBlob::read_from_prefix(body).unwrap();
        let told = self.0.finish(step, response);
        assert!(
            told.is_none_or(|told| told == asked.offset.get()),
            "{told:?}"
        );
        Some(asked.offset.get())
    }

    fn end(&mut self, kind: u32, id: u32, response: u32) {
        let asked = ResourceOnly {
            resource_id: id.into(),
            ..Default::default()
        };
        assert_eq!(self.done(command(kind, &asked), response), None);
    }
}

fn map(id: u32, offset: u64) -> ResourceMapBlob {
    ResourceMapBlob {
        resource_id: id.into(),
        offset: offset.into(),
        ..Default::default()
    }
}

#[test]
fn a_place_is_free_again_when_nothing_is_there() {
    let mut client = Client::new();
    client.create(1, PAGES);
    client.create(2, PAGES);
    assert_eq!(client.map(1, resp::OK_MAP_INFO), Some(0));
    assert_eq!(client.map(2, resp::OK_MAP_INFO), None, "the window is full");
    client.end(cmd::RESOURCE_UNMAP_BLOB, 1, resp::ERR_UNSPEC);
    assert_eq!(client.map(2, resp::OK_MAP_INFO), None, "the device refused");
    client.end(cmd::RESOURCE_UNMAP_BLOB, 1, resp::OK_NODATA);
    assert_eq!(client.map(2, resp::ERR_OUT_OF_MEMORY), Some(0));
    assert_eq!(
        client.map(1, resp::OK_MAP_INFO),
        Some(0),
        "it was not mapped"
    );
    client.end(cmd::RESOURCE_UNREF, 1, resp::ERR_INVALID_RESOURCE_ID);
    assert_eq!(client.map(2, resp::OK_MAP_INFO), None);
    client.end(cmd::RESOURCE_UNREF, 1, resp::OK_NODATA);
    assert_eq!(client.map(2, resp::OK_MAP_INFO), Some(0));
    // One that was never mapped has no place to give back.
    client.create(3, 1);
    client.end(cmd::RESOURCE_UNREF, 3, resp::OK_NODATA);
    assert_eq!(
        client.map(3, resp::OK_MAP_INFO),
        Some(0),
        "unknown, as ever"
    );
}

#[test]
fn blobs_have_places_of_their_own() {
    let mut client = Client::new();
    let mut places = Vec::new();
    for id in 0..8 {
        client.create(id, 1);
        places.extend(client.map(id, resp::OK_MAP_INFO));
    }
    places.sort_unstable();
    let all: Vec<u64> = (0..PAGES).map(|page| page * PAGE).collect();
    assert_eq!(places, all);
}

/// Whatever the sizes: what the guest's kernel finds, we find.
#[test]
fn what_just_fits_has_a_place() {
    let mut client = Client::with(1000);
    for (id, pages) in [(1, 1), (2, 601), (3, 2), (4, 396)] {
        client.create(id, pages);
        assert!(client.map(id, resp::OK_MAP_INFO).is_some(), "{pages} pages");
    }
    client.end(cmd::RESOURCE_UNREF, 2, resp::OK_NODATA);
    client.end(cmd::RESOURCE_UNREF, 4, resp::OK_NODATA);
    client.create(5, 396);
    assert_eq!(client.map(5, resp::OK_MAP_INFO), Some(604 * PAGE));
    client.create(6, 601);
    assert_eq!(client.map(6, resp::OK_MAP_INFO), Some(PAGE));
    client.create(7, 1);
    assert_eq!(client.map(7, resp::OK_MAP_INFO), None, "the window is full");
}

/// What the device is to refuse gets there, and takes no room.
#[test]
fn what_makes_no_sense_is_left_to_the_device() {
    let mut client = Client::new();
    client.create(1, PAGES);
    assert_eq!(
        client.map(9, resp::ERR_INVALID_RESOURCE_ID),
        Some(0),
        "unknown"
    );
    let own = command(cmd::RESOURCE_MAP_BLOB, &map(1, PAGE));
    assert_eq!(client.done(own, resp::ERR_INVALID_PARAMETER), None);
    let cut = command(cmd::RESOURCE_MAP_BLOB, &map(1, ANY_OFFSET));
    for length in 0..cut.len() {
        assert_eq!(client.done(cut[..length].to_vec(), resp::ERR_UNSPEC), None);
    }
    assert_eq!(
        client.map(1, resp::OK_MAP_INFO),
        Some(0),
        "all of it is free"
    );
    assert_eq!(client.map(1, resp::ERR_UNSPEC), Some(0), "mapped already");
    client.end(cmd::RESOURCE_UNMAP_BLOB, 1, resp::OK_NODATA);
    assert_eq!(client.map(1, resp::OK_MAP_INFO), Some(0));
    // A blob that is larger than any window.
    client.create(2, 1 << 50);
    assert_eq!(client.map(2, resp::OK_MAP_INFO), None);
}
