//! Negotiation between any two peers.

use hostblob_capset::{Mismatch, Offer, negotiate};
use hostblob_protocol::request::{CreateFlags, Request, request_bit};
use proptest::prelude::*;

const BASIC: u64 = request_bit::OPEN_ANSWERS | request_bit::CREATE | request_bit::FREE;

fn offer() -> impl Strategy<Value = Offer> {
    // Mostly peers that can talk.
    let major = prop_oneof![4 => Just(1), 1 => any::<u16>()];
    let requests = prop_oneof![4 => any::<u64>().prop_map(|set| set | BASIC), 1 => any::<u64>()];
    (major, any::<u16>(), requests, any::<u32>()).prop_map(|(major, minor, requests, flags)| {
        Offer {
            major,
            minor,
            requests,
            create_flags: CreateFlags::from_bits_truncate(flags),
        }
    })
}

proptest! {
    #[test]
    fn both_ends_agree_on_what_both_know(ours in offer(), theirs in offer()) {
        match (negotiate(&ours, &theirs), negotiate(&theirs, &ours)) {
            (Ok(agreed), Ok(same)) => {
                prop_assert_eq!(agreed, same);
                prop_assert_eq!(ours.major, theirs.major);
                prop_assert_eq!(agreed.minor, ours.minor.min(theirs.minor));
                prop_assert_eq!(agreed.requests, ours.requests & theirs.requests);
                prop_assert_eq!(agreed.create_flags.bits(), ours.create_flags.bits() & theirs.create_flags.bits());
                // What the guest then sends as its own offer leads to the same.
                let sent = Offer { major: ours.major, minor: agreed.minor, requests: agreed.requests, create_flags: agreed.create_flags };
                prop_assert_eq!(negotiate(&theirs, &sent), Ok(agreed));
            }
            (Err(Mismatch::Major { ours: a, theirs: b }), Err(Mismatch::Major { ours: c, theirs: d })) => {
                prop_assert_eq!((a, b), (ours.major, theirs.major));
                prop_assert_eq!((d, c), (a, b));
                prop_assert_ne!(a, b);
            }
            (Err(Mismatch::MissingRequests(missing)), Err(Mismatch::MissingRequests(same))) => {
                prop_assert_eq!(missing, same);
                prop_assert_ne!(missing, 0);
                prop_assert_eq!(missing & !BASIC, 0);
                prop_assert_eq!(missing & ours.requests & theirs.requests, 0);
            }
            (one, other) => prop_assert!(false, "{one:?} and {other:?}"),
        }
    }
}

#[test]
fn this_build_talks_to_itself() {
    let agreed = negotiate(&Offer::EVERYTHING, &Offer::EVERYTHING).unwrap();
    assert_eq!(agreed.requests, Request::ALL);
    assert_eq!(agreed.create_flags, CreateFlags::all());
}
