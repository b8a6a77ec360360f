//! What a guest reads: bytes as a capset, and a page that anybody writes as an answers ring.

#![no_main]

use std::sync::atomic::AtomicU64;

use hostblob_capset::{
    BlobMem, Capset, ENCODED_SIZE, MAX_HEAPS, MAX_TYPES, NAME_SIZE, Offer, negotiate,
};
use hostblob_protocol::Status;
use hostblob_protocol::answers::{MIN_SIZE, Ring};
use libfuzzer_sys::fuzz_target;

fn check_capset(bytes: &[u8]) {
    let Ok(capset) = Capset::decode(bytes) else {
        return;
    };
    assert!(capset.page_size.is_power_of_two() && capset.page_size >= 4096);
    assert!(capset.non_coherent_atom_size.is_power_of_two());
    assert!(capset.heaps.len() <= MAX_HEAPS && capset.types.len() <= MAX_TYPES);
    for memory_type in &capset.types {
        assert!((memory_type.heap as usize) < capset.heaps.len());
    }
    assert!(capset.device_name.len() < NAME_SIZE && capset.driver_name.len() < NAME_SIZE);
    assert!(capset.blob_mem.contains(BlobMem::HOST3D));

    let encoded = capset.encode();
    assert_eq!(encoded.len(), ENCODED_SIZE);
    assert_eq!(Capset::decode(&encoded), Ok(capset.clone()));
    // A newer host says more at the end.
    let longer = [encoded.as_slice(), &[0xee; 8]].concat();
    assert_eq!(Capset::decode(&longer), Ok(capset.clone()));

    let (ours, theirs) = (Offer::EVERYTHING, capset.offer);
    let agreed = negotiate(&ours, &theirs);
    assert_eq!(agreed.is_ok(), negotiate(&theirs, &ours).is_ok());
    if let Ok(agreed) = agreed {
        assert_eq!(agreed.requests & !(ours.requests & theirs.requests), 0);
        assert!(theirs.create_flags.contains(agreed.create_flags));
        assert_eq!(Ok(agreed), negotiate(&theirs, &ours));
    }
}

fn check_ring(bytes: &[u8]) {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
    let page: Vec<AtomicU64> = (0..MIN_SIZE / 8)
        .map(|at| AtomicU64::new(word(at).to_le()))
        .collect();
    let ring = Ring::new(&page).expect("a page");
    let _ = ring.is_initialised();
    // Each sequence that stands anywhere, and its neighbours.
    for at in 0..words.len().min(page.len()) {
        for sequence in [word(at), word(at).wrapping_add(1)] {
            let Some(answer) = ring.read(sequence) else {
                continue;
            };
            assert!(sequence != 0 && answer.sequence == sequence);
            assert_eq!(
                Status::from_number(answer.status.number()),
                Some(answer.status)
            );
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    check_capset(bytes);
    check_ring(bytes);
});
