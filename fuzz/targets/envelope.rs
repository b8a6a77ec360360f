//! Bytes as an envelope of requests: they are refused, or are a value whose own bytes say the same.

#![no_main]

use hostblob_protocol::envelope::{MAX_LENGTH, MAX_STRUCTURES};
use hostblob_protocol::request::{Import, MAX_DEBUG_NAME};
use hostblob_protocol::{Envelope, EnvelopeBuilder, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let sequence = Envelope::peek_sequence(bytes);
    let imports = Envelope::imports(bytes);
    let Ok(envelope) = Envelope::decode(bytes) else {
        return;
    };
    assert!(bytes.len() <= MAX_LENGTH && envelope.requests.len() <= MAX_STRUCTURES);
    assert_eq!(sequence, Some(envelope.sequence));
    let uuid = |request: &Request| match request {
        Request::Import(Import { uuid, .. }) => Some(*uuid),
        _ => None,
    };
    let found: Vec<_> = envelope.requests.iter().filter_map(uuid).collect();
    assert_eq!(imports, found);

    let mut builder = EnvelopeBuilder::new(envelope.sequence);
    for request in &envelope.requests {
        builder = builder.request(*request);
    }
    if let Some(name) = &envelope.debug_name {
        assert!(name.name.len() <= MAX_DEBUG_NAME);
        builder = builder.debug_name(&name.name);
    }
    let again = builder.build();
    // What is skipped, and names that a later one replaces, are left out.
    assert!(again.len() <= bytes.len());
    assert_eq!(Envelope::decode(&again), Ok(envelope));
});
