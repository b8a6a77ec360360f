//! The GL provider on a real driver (llvmpipe where there is no GPU), in a debug context.

use super::*;
use crate::provider::contract::{self, Guest};
use crate::provider::{
    AttachmentId, Choice, ProviderError, ProviderKind, Request, inventory, open,
};

mod both;
mod busy;
mod faults;
mod missing;

pub(super) const INSTALL: &str = "install libegl1 libgl1-mesa-dri or run cargo xtask setup";

const MIB: u64 = 1 << 20;

fn provider(options: &Options) -> GlProvider {
    let _ = env_logger::builder().is_test(true).try_init();
    match GlProvider::new(options) {
        Ok(provider) => provider,
        Err(error) => panic!("{error}\n{INSTALL}"),
    }
}

fn validated() -> GlProvider {
    let provider = provider(&Options {
        validation: true,
        ..Options::default()
    });
    assert!(
        provider.serves_window(),
        "{}: {}",
        provider.facts().renderer,
        provider.pinned()
    );
    provider
}

/// Drops a provider and asserts that the driver had nothing to say, also about what is left at the end.
fn finish(provider: GlProvider) {
    let counter = provider.message_counter();
    let threads = Arc::downgrade(&provider.threads);
    drop(provider);
    assert_eq!(threads.strong_count(), 0, "a session is left");
    assert_eq!(counter.count(), 0, "debug messages, see the log");
}

fn fill(attachment: AttachmentId, offset: u64, length: u64, value: u32) -> Request {
    Request::Fill {
        attachment,
        offset,
        length,
        value,
    }
}

#[test]
fn gl_keeps_the_contract() {
    let provider = validated();
    contract::suite(&provider);
    finish(provider);
}

#[test]
fn what_the_probe_found_is_offered() {
    let provider = validated();
    let description = provider.description();
    assert_eq!(description.kind, ProviderKind::Gl);
    assert_eq!(provider.pinned(), &ProbeOutcome::Works);
    assert_eq!(description.attach_strategy, "pinned memory");
    assert_eq!(description.memory_types.len(), 2);
    assert_eq!(description.device_name, provider.facts().renderer);
    if let Some(uuid) = provider.facts().device_uuid {
        assert_eq!(description.device_uuid, uuid);
    }
    assert_ne!(description.driver_uuid, [0; 16]);
    finish(provider);
}

#[test]
fn sessions_may_outlive_the_provider() {
    let provider = validated();
    let counter = provider.message_counter();
    let mut guest = Guest::new(&provider, MIB);
    drop(provider);
    let a = guest.attach(0, MIB);
    guest.ok(fill(a, 0, MIB, 1));
    // With work in flight: the last one to go waits for it.
    guest.submit(fill(a, 0, MIB, 2));
    drop(guest);
    assert_eq!(counter.count(), 0);
}

#[test]
fn devices_are_chosen_by_number_and_name() {
    let first = provider(&Options::default());
    let renderer = first.facts().renderer.clone();
    let by = |device| {
        GlProvider::new(&Options {
            device: Some(device),
            ..Options::default()
        })
    };
    let part = renderer[..4].to_uppercase();
    for device in [DeviceSelector::Index(0), DeviceSelector::Name(part)] {
        assert_eq!(by(device).unwrap().facts().renderer, renderer);
    }
    for device in [
        DeviceSelector::Index(99),
        DeviceSelector::Name("none such".to_owned()),
    ] {
        let error = by(device).unwrap_err();
        assert!(matches!(error, GlError::NoSuchDevice { .. }), "{error}");
        assert!(error.to_string().contains(&renderer), "{error}");
    }
}

#[test]
fn heaps_are_reported_with_the_limit() {
    let provider = provider(&Options {
        memory_limit: Some(32 * MIB),
        ..Options::default()
    });
    for heap in &provider.description().heaps {
        assert!(heap.size <= 32 * MIB);
    }
    // What is live is counted, although the driver would grant it, and given back.
    let mut guest = Guest::new(&provider, MIB);
    for _ in 0..3 {
        let (first, request) = guest.allocate_request(20 * MIB);
        guest.ok(request);
        let (_, request) = guest.allocate_request(20 * MIB);
        assert!(matches!(
            guest.call(request),
            Err(ProviderError::OutOfDeviceMemory(_))
        ));
        guest.ok(Request::Release { attachment: first });
    }
}

#[test]
fn the_largest_buffer_is_reached_to_its_end() {
    let provider = validated();
    let largest = provider.description().max_allocation_size;
    let page = provider.description().attach_alignment;
    // Sparse: only what is filled takes memory.
    let mut guest = Guest::new(&provider, largest + page);
    let a = guest.attach(0, largest);
    let b = guest.attach(largest, page);
    guest.ok(fill(a, largest - 8, 8, 0x0403_0201));
    guest.ok(Request::Copy {
        source: a,
        source_offset: largest - 8,
        destination: b,
        destination_offset: 16,
        length: 8,
    });
    assert_eq!(guest.read(largest + 16, 8), [1, 2, 3, 4, 1, 2, 3, 4]);
    guest.ok(Request::Release { attachment: a });
    let (_, request) = guest.attach_request(0, largest + page);
    assert!(matches!(
        guest.call(request),
        Err(ProviderError::Invalid(_))
    ));
    drop(guest);
    finish(provider);
}

#[test]
fn the_inventory_lists_what_the_provider_uses() {
    let provider = provider(&Options::default());
    let inventory = inventory();
    let text = inventory.to_string();
    let devices = inventory.gl.expect(INSTALL);
    let report = devices.first().expect(INSTALL);
    // What is free may have changed.
    let facts = GlFacts {
        video_memory: provider.facts().video_memory,
        ..report.facts.clone()
    };
    assert_eq!(&facts, provider.facts());
    assert_eq!(&report.pinned, provider.pinned());
    assert!(text.contains(&provider.facts().renderer), "{text}");
    assert!(
        text.contains("window memory by pinned memory: works"),
        "{text}"
    );
}

#[test]
fn gl_is_opened_by_name() {
    assert_eq!("gl".parse(), Ok(Choice::Gl));
    assert_eq!(Choice::Gl.to_string(), "gl");
    let opened = open(Choice::Gl, &Options::default()).expect(INSTALL);
    assert_eq!(opened.provider.description().kind, ProviderKind::Gl);
    assert!(opened.reason.starts_with("OpenGL on "), "{}", opened.reason);
    assert!(!opened.reason.contains('\n'), "{}", opened.reason);
}

/// Looking at the host does not end the display of a provider that serves.
#[test]
fn a_survey_leaves_a_provider_alone() {
    let provider = validated();
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, MIB);
    for i in 0..3 {
        survey().expect(INSTALL);
        drop(validated());
        guest.ok(fill(a, 0, MIB, i));
        assert_eq!(guest.read(MIB - 4, 4), i.to_le_bytes());
    }
    drop(guest);
    finish(provider);
}

/// The fallback, for hosts without the surfaceless platform; Mesa offers both.
#[test]
fn egl_devices_serve_as_well() {
    let egl = egl::load().expect(INSTALL);
    let found = egl::devices(egl).expect(INSTALL);
    assert!(!found.is_empty(), "no EGL device: {INSTALL}");
    let counter = Arc::new(MessageCounter::default());
    for display in &found {
        let engine = Engine::new(egl, display, true, None, &counter).unwrap();
        assert_eq!(
            engine.facts().software,
            engine.facts().renderer.contains("pipe")
        );
        assert!(rank(&engine) <= (true, true));
        drop(engine);
    }
    assert_eq!(counter.count(), 0);
}

#[test]
fn the_counter_counts() {
    let egl = egl::load().expect(INSTALL);
    let display = egl::displays(egl).expect(INSTALL).remove(0);
    let counter = Arc::new(MessageCounter::default());
    let gl = Gl::new(egl, &display, true, &counter).unwrap();
    assert_eq!(counter.count(), 0);
    // SAFETY: a call that GL refuses: there is no such buffer.
    let refused = gl.call("nonsense", |gl| unsafe {
        (gl.copy_named_buffer_sub_data)(12345, 12346, 0, 0, 4);
    });
    assert!(
        matches!(refused, Err(ProviderError::Driver(_))),
        "{refused:?}"
    );
    assert!(counter.count() > 0);
    // The error is not there for the next call.
    assert_eq!(gl.finish(), Ok(()));
}
