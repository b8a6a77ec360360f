//! The Vulkan provider on a real driver (lavapipe where there is no GPU), under the validation layer.

use super::*;
use crate::provider::contract::{self, Guest};
use crate::provider::{Choice, ProviderError, Request, inventory};

const INSTALL: &str =
    "install libvulkan1 mesa-vulkan-drivers vulkan-validationlayers or run cargo xtask setup";

fn provider(options: &Options) -> VulkanProvider {
    let _ = env_logger::builder().is_test(true).try_init();
    match VulkanProvider::new(options) {
        Ok(provider) => provider,
        Err(error) => panic!("{error}\n{INSTALL}"),
    }
}

fn validated() -> VulkanProvider {
    provider(&Options {
        validation: true,
        ..Options::default()
    })
}

/// Drops a provider and asserts that validation had nothing to say, also about what is left at the end.
fn finish(provider: VulkanProvider) {
    let counter = provider.validation_counter();
    let threads = Arc::downgrade(&provider.threads);
    drop(provider);
    assert_eq!(threads.strong_count(), 0, "a session is left");
    assert_eq!(counter.count(), 0, "validation messages, see the log");
}

#[test]
fn vulkan_keeps_the_contract() {
    let provider = validated();
    contract::suite(&provider);
    finish(provider);
}

#[test]
fn a_device_that_is_passed_over_for_a_worse_one_is_told_of() {
    let card = (
        "a card".to_owned(),
        DeviceClass::Discrete,
        VulkanError::NoDevice,
    );
    let told = not_as_good(&card, "a processor", DeviceClass::Cpu).unwrap();
    let expected = "a card (discrete) does not serve, and a processor (cpu) does: no Vulkan device";
    assert!(told.starts_with(expected), "{told}");
    assert_eq!(not_as_good(&card, "another", DeviceClass::Discrete), None);
}

#[test]
fn the_probe_says_what_is_offered() {
    let provider = validated();
    let probe = provider.probe();
    let strategy = probe.best().expect("a way to attach");
    assert_eq!(provider.description().attach_strategy, strategy.as_str());
    let types = &provider.facts().types;
    let shared = property::HOST_VISIBLE | property::HOST_COHERENT | property::DEVICE_LOCAL;
    let local = types.iter().filter(|(flags, _)| flags & shared == shared);
    assert_eq!(
        probe.rows.len(),
        2 * types.len() + local.count(),
        "each type with each strategy, and exports of those of the device"
    );
    let windows = provider
        .description()
        .memory_types
        .iter()
        .filter(|kind| kind.placement == Placement::Window)
        .count();
    assert!((1..=probe.attachable(strategy).len()).contains(&windows));
    finish(provider);
}

#[test]
fn sessions_may_outlive_the_provider() {
    let provider = validated();
    let counter = provider.validation_counter();
    let mut guest = Guest::new(&provider, 1 << 20);
    drop(provider);
    let a = guest.attach(0, 1 << 20);
    guest.ok(Request::Fill {
        attachment: a,
        offset: 0,
        length: 1 << 20,
        value: 1,
    });
    // With work in flight: the last one to go waits for it.
    guest.submit(Request::Fill {
        attachment: a,
        offset: 0,
        length: 1 << 20,
        value: 2,
    });
    drop(guest);
    assert_eq!(counter.count(), 0);
}

#[test]
fn devices_are_chosen_by_number_and_name() {
    let first = provider(&Options::default());
    let facts = first.facts().clone();
    let by = |device| {
        VulkanProvider::new(&Options {
            device: Some(device),
            ..Options::default()
        })
    };
    let part = facts.name[..4].to_uppercase();
    for device in [
        DeviceSelector::Index(facts.index),
        DeviceSelector::Name(part),
        facts.index.to_string().parse().unwrap(),
    ] {
        let chosen = by(device).unwrap();
        assert_eq!(chosen.facts().name, facts.name);
    }
    let error = by(DeviceSelector::Index(99)).unwrap_err();
    assert!(matches!(error, VulkanError::NoSuchDevice { .. }), "{error}");
    assert!(error.to_string().contains(&facts.name), "{error}");
}

#[test]
fn heaps_are_reported_with_the_limit() {
    let provider = provider(&Options {
        memory_limit: Some(32 << 20),
        ..Options::default()
    });
    for heap in &provider.description().heaps {
        assert!(heap.size <= 32 << 20);
    }
    // What is live is counted, although the driver would grant it.
    let mut guest = Guest::new(&provider, 1 << 20);
    let memory_type = u32::try_from(
        provider
            .description()
            .memory_types
            .iter()
            .position(|kind| kind.placement == Placement::Device)
            .unwrap(),
    )
    .unwrap();
    let mut allocate = |name| {
        guest.call(Request::Allocate {
            attachment: crate::provider::AttachmentId(name),
            length: 20 << 20,
            memory_type,
        })
    };
    assert_eq!(allocate(1000), Ok(()));
    assert!(matches!(
        allocate(1001),
        Err(ProviderError::OutOfDeviceMemory(_))
    ));
}

#[test]
fn the_inventory_lists_what_the_provider_uses() {
    let provider = provider(&Options::default());
    let inventory = inventory();
    let text = inventory.to_string();
    let devices = inventory.vulkan.expect(INSTALL);
    let report = &devices[provider.facts().index];
    assert_eq!(&report.facts, provider.facts());
    assert_eq!(report.probe.as_ref().unwrap(), provider.probe());
    assert!(text.contains(&provider.facts().name), "{text}");
    assert!(text.contains("udmabuf"), "{text}");
    println!("{text}");
}

#[test]
fn auto_opens_vulkan_and_says_why() {
    let opened = crate::provider::open(Choice::Auto, &Options::default()).unwrap();
    assert_eq!(
        opened.provider.description().kind,
        ProviderKind::Vulkan,
        "{}: {INSTALL}",
        opened.reason
    );
    assert!(!opened.reason.contains('\n'), "{}", opened.reason);
    let opened = crate::provider::open(Choice::System, &Options::default()).unwrap();
    assert_eq!(opened.provider.description().kind, ProviderKind::System);
}

#[test]
fn the_counter_counts() {
    let instance = Instance::new(true).expect(INSTALL);
    let candidate = physical::candidates(&instance).unwrap().remove(0);
    let device = Device::new(&candidate).unwrap();
    let counter = Arc::clone(instance.counter());
    assert_eq!(counter.count(), 0);
    let info = ash::vk::SemaphoreCreateInfo::default();
    // SAFETY: a valid call; what is wrong is that nobody destroys the semaphore.
    unsafe { device.raw.create_semaphore(&info, None) }.unwrap();
    drop((candidate, device, instance));
    assert!(counter.count() > 0, "a leak at the end is seen");
}

/// A stream of requests of each kind; answers come in order and in time, whatever they are.
fn scenario(guest: &mut Guest) -> Vec<Result<(), ProviderError>> {
    const SIZE: u64 = 1 << 20;
    let (a, attach) = guest.attach_request(0, SIZE);
    let (b, again) = guest.attach_request(SIZE, SIZE);
    let (c, allocate) = guest.allocate_request(SIZE);
    let fill = |attachment, value| Request::Fill {
        attachment,
        offset: 0,
        length: SIZE,
        value,
    };
    let copy = |source, destination| Request::Copy {
        source,
        source_offset: 0,
        destination,
        destination_offset: 0,
        length: SIZE,
    };
    let requests = [
        attach,
        again,
        allocate,
        fill(a, 0x1111_1111),
        copy(a, c),
        fill(a, 0x2222_2222),
        copy(c, b),
        Request::Release { attachment: c },
        Request::Release { attachment: a },
        Request::Release { attachment: b },
    ];
    let sequences: Vec<u64> = requests.into_iter().map(|r| guest.submit(r)).collect();
    sequences
        .into_iter()
        .map(|sequence| {
            let completion = guest.next();
            assert_eq!(completion.sequence, sequence);
            completion.result.map(drop)
        })
        .collect()
}

#[test]
fn each_driver_call_may_fail_once() {
    let provider = validated();
    let device = provider.device.upgrade().unwrap();
    let mut guest = Guest::new(&provider, 2 << 20);
    let before = device.faults.calls();
    assert!(scenario(&mut guest).iter().all(Result::is_ok));
    let calls = device.faults.calls() - before;
    assert!(calls >= 12, "{calls} calls");
    for result in [
        ash::vk::Result::ERROR_OUT_OF_HOST_MEMORY,
        ash::vk::Result::ERROR_OUT_OF_DEVICE_MEMORY,
    ] {
        // A few more than in the good run: how requests are gathered varies.
        for call in 0..calls + 6 {
            device.faults.arm(call, result);
            for answer in scenario(&mut guest) {
                assert!(
                    !matches!(answer, Err(ProviderError::DeviceLost(_))),
                    "call {call}: {answer:?}"
                );
            }
        }
    }
    // Past the last armed call all is well again.
    for _ in 0..2 {
        scenario(&mut guest);
    }
    assert!(scenario(&mut guest).iter().all(Result::is_ok));
    drop((guest, device));
    finish(provider);
}

#[test]
fn memory_that_was_not_zeroed_is_not_allocated() {
    let provider = validated();
    let device = provider.device.upgrade().unwrap();
    let mut guest = Guest::new(&provider, 1 << 20);
    let mut refused = 0;
    for call in 0..10 {
        device
            .faults
            .arm(call, ash::vk::Result::ERROR_OUT_OF_DEVICE_MEMORY);
        let (attachment, request) = guest.allocate_request(1 << 20);
        let allocated = guest.call(request);
        let released = guest.call(Request::Release { attachment });
        if allocated.is_ok() {
            assert_eq!(released, Ok(()));
        } else {
            refused += 1;
            assert!(
                matches!(released, Err(ProviderError::Invalid(_))),
                "call {call}: {released:?}"
            );
        }
    }
    assert!(refused >= 5, "{refused} refused");
    drop((guest, device));
    finish(provider);
}

#[test]
fn a_lost_device_answers_everything_and_ends() {
    for call in 0..14 {
        let provider = validated();
        let device = provider.device.upgrade().unwrap();
        let mut guest = Guest::new(&provider, 2 << 20);
        let mut other = Guest::new(&provider, 2 << 20);
        assert!(scenario(&mut other).iter().all(Result::is_ok));
        device.faults.arm(call, ash::vk::Result::ERROR_DEVICE_LOST);
        scenario(&mut guest);
        scenario(&mut guest);
        for guest in [&mut guest, &mut other] {
            for answer in scenario(guest) {
                assert!(
                    matches!(answer, Err(ProviderError::DeviceLost(_))),
                    "call {call}: {answer:?}"
                );
            }
        }
        drop((guest, other, device));
        finish(provider);
    }
}
