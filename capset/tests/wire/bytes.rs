//! Whatever the bytes, a capset or an error; whatever the capset, its bytes and the capset again.

use hostblob_capset::{Capset, DecodeError, ENCODED_SIZE, Heap, MAX_HEAPS, MAX_TYPES, NAME_SIZE};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::layout::reference;
use crate::values::{capset, sample};

/// Bytes of version 1: the least that any version has.
const VERSION_1: usize = 1016;

/// Decodes, and checks what must hold of any outcome.
fn decode(bytes: &[u8]) -> Result<Capset, DecodeError> {
    let decoded = Capset::decode(bytes);
    if let Ok(capset) = &decoded {
        assert!(capset.heaps.len() <= MAX_HEAPS && capset.types.len() <= MAX_TYPES);
        assert!(
            capset
                .types
                .iter()
                .all(|t| (t.heap as usize) < capset.heaps.len())
        );
        assert!(capset.page_size.is_power_of_two() && capset.page_size >= 4096);
        assert!(capset.non_coherent_atom_size.is_power_of_two());
        for name in [&capset.device_name, &capset.driver_name] {
            assert!(name.len() < NAME_SIZE && !name.contains('\0'), "{name:?}");
        }
        let again = capset.encode();
        assert_eq!(Capset::decode(&again).as_ref(), Ok(capset));
    }
    decoded
}

fn set_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// A prefix of at most 63 bytes that ends between characters, and is the longest such.
fn is_cut_of(cut: &str, name: &str) -> bool {
    let next = name.get(cut.len()..).and_then(|rest| rest.chars().next());
    name.starts_with(cut) && next.is_none_or(|next| cut.len() + next.len_utf8() >= NAME_SIZE)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(mut bytes in vec(any::<u8>(), 0..VERSION_1 + 100)) {
        let _ = decode(&bytes);
        if bytes.len() >= VERSION_1 {
            set_u32(&mut bytes, 0, u32::MAX);
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn mutations(capset in capset(), flips in vec((any::<Index>(), 1..=255_u8), 1..6), extension in vec(any::<u8>(), 0..40)) {
        let mut bytes = capset.encode();
        for (index, mask) in &flips {
            let at = index.index(bytes.len());
            bytes[at] ^= mask;
        }
        let _ = decode(&bytes);
        bytes.extend_from_slice(&extension);
        let _ = decode(&bytes);
    }

    /// A capset is encoded as the document says, and decodes to what it was, but for names that do not fit.
    #[test]
    fn values_and_bytes(capset in capset()) {
        let bytes = capset.encode();
        prop_assert_eq!(bytes.len(), ENCODED_SIZE);
        let decoded = decode(&bytes).unwrap();
        prop_assert!(is_cut_of(&decoded.device_name, &capset.device_name));
        prop_assert!(is_cut_of(&decoded.driver_name, &capset.driver_name));
        prop_assert_eq!(&bytes, &reference(&decoded));
        let (device_name, driver_name) = (capset.device_name, capset.driver_name);
        let decoded = Capset { device_name, driver_name, ..decoded };
        let (device_name, driver_name) = (decoded.device_name.clone(), decoded.driver_name.clone());
        prop_assert_eq!(decoded, Capset { device_name, driver_name, ..capset });
    }
}

#[test]
fn every_single_flipped_bit() {
    let bytes = sample().encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = decode(&flipped);
    }
}

#[test]
fn shorter_than_version_1_is_refused() {
    let bytes = sample().encode();
    for length in 0..VERSION_1 {
        assert_eq!(
            decode(&bytes[..length]),
            Err(DecodeError::Truncated(length))
        );
        let mut announced = bytes.clone();
        set_u32(&mut announced, 0, length as u32);
        assert_eq!(decode(&announced), Err(DecodeError::Truncated(length)));
    }
    // The kernel hands over as many bytes as it was asked for, and the capset may announce more than that.
    let mut announced = bytes;
    set_u32(&mut announced, 0, u32::MAX);
    assert_eq!(decode(&announced), Ok(sample()));
}

#[test]
fn longer_than_known_is_read() {
    for extra in [1, 8, 4096] {
        for announced in [ENCODED_SIZE, ENCODED_SIZE + extra] {
            let mut bytes = sample().encode();
            bytes.resize(ENCODED_SIZE + extra, 0xee);
            set_u32(&mut bytes, 0, announced as u32);
            assert_eq!(
                decode(&bytes),
                Ok(sample()),
                "{extra} more bytes, {announced} announced"
            );
        }
    }
}

#[test]
fn what_a_host_cannot_have_meant_is_an_error() {
    // Offset, value, field.
    for (offset, value, field) in [
        (20, 2, "window_mode"),
        (20, u32::MAX, "window_mode"),
        (60, 0, "page_size"),
        (60, 2048, "page_size"),
        (60, 4097, "page_size"),
        (64, 0, "non_coherent_atom_size"),
        (64, 48, "non_coherent_atom_size"),
        (68, 3, "provider"),
        (240, MAX_HEAPS as u32 + 1, "heap_count"),
        (240, u32::MAX, "heap_count"),
        (244, MAX_TYPES as u32 + 1, "type_count"),
        (244, u32::MAX, "type_count"),
        (504 + 4, 2, "types.heap"),
        (504 + 8, 0, "types.cache"),
        (504 + 8, 4, "types.cache"),
    ] {
        let mut bytes = sample().encode();
        set_u32(&mut bytes, offset, value);
        assert_eq!(
            decode(&bytes),
            Err(DecodeError::Field {
                field,
                value: value.into()
            })
        );
    }
    // What lies past the counts does not count.
    let mut bytes = sample().encode();
    set_u32(&mut bytes, 504 + 3 * 16 + 8, 99);
    assert_eq!(decode(&bytes), Ok(sample()));
}

/// A newer host's requests are kept and its create flags dropped; neither is an error.
#[test]
fn a_newer_hosts_bits_are_no_error() {
    let mut bytes = sample().encode();
    set_u32(&mut bytes, 12, u32::MAX);
    set_u32(&mut bytes, 16, u32::MAX);
    let decoded = decode(&bytes).unwrap();
    assert_eq!(decoded.offer.requests, 0xffff_ffff_0000_17fe);
    assert!(decoded.offer.create_flags.is_all());
}

#[test]
fn heaps_and_types_past_the_layout_are_cut() {
    let heap = |size| Heap { size, flags: 0 };
    let mut capset = sample();
    capset.heaps = (0..20).map(heap).collect();
    capset.types = vec![capset.types[0]; 40];
    let decoded = decode(&capset.encode()).unwrap();
    assert_eq!(decoded.heaps, capset.heaps[..MAX_HEAPS]);
    assert_eq!(decoded.types, capset.types[..MAX_TYPES]);
}

#[test]
fn names_are_cut_between_characters_and_at_zero() {
    let through = |name: &str| {
        let capset = Capset {
            device_name: name.to_owned(),
            ..sample()
        };
        decode(&capset.encode()).unwrap().device_name
    };
    assert_eq!(through(&"x".repeat(63)), "x".repeat(63));
    assert_eq!(through(&"x".repeat(64)), "x".repeat(63));
    assert_eq!(
        through(&format!("{}ß", "x".repeat(61))),
        format!("{}ß", "x".repeat(61))
    );
    assert_eq!(through(&format!("{}ß", "x".repeat(62))), "x".repeat(62));
    assert_eq!(through("one\0two"), "one");
}

/// A host that writes 64 bytes of no UTF-8 and no zero: still a name that can be encoded.
#[test]
fn names_of_another_host_fit() {
    let mut bytes = sample().encode();
    bytes[112..176].fill(0xff);
    assert_eq!(decode(&bytes).unwrap().device_name, "\u{fffd}".repeat(21));
    bytes[112..176].fill(b'x');
    assert_eq!(decode(&bytes).unwrap().device_name, "x".repeat(63));
}

#[test]
fn the_first_type_that_fits_is_found() {
    let capset = sample();
    assert_eq!(capset.find_type(0), Some(0));
    assert_eq!(capset.find_type(0x2), Some(1));
    assert_eq!(capset.find_type(0x8), Some(2));
    assert_eq!(capset.find_type(0x9), None);
    assert_eq!(
        capset
            .types
            .iter()
            .map(|t| t.is_host_visible())
            .collect::<Vec<_>>(),
        [false, true, true]
    );
}
