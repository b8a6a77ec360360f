//! What the guest sees of an OpenGL host's memory, from what the context says and the probe found.
//!
//! GL tells little: no memory types, and a size only by two vendors' extensions. So there are one type of each placement:
//! - the **device type**, immutable storage that the CPU never reaches;
//! - the **window type**, where pinned memory works: pages of a memfd that the guest's CPU reaches through an ordinary cached
//!   mapping (HOST_CACHED) and that GL_AMD_pinned_memory keeps coherent (HOST_COHERENT). It is DEVICE_LOCAL where the
//!   renderer is the CPU.
//!
//! Without pinned memory nothing is offered for the window. There is an **exported type** then, persistent mapped buffers
//! (GL_ARB_buffer_storage): pages of the driver's own, which have an address in this process. A VMM that is this process can map
//! them for its guest. Whether they are cached GL does not say, but where the renderer is the CPU.

use super::facts::GlFacts;
use crate::provider::{
    Description, ExportKind, Heap, MemoryType, Placement, ProviderKind, property,
    system::physical_memory,
};

/// As in [`Description::attach_strategy`].
const PINNED: &str = "pinned memory";
const NOT_PINNED: &str = "nothing (no pinned memory: device-local memory only)";
const PERSISTENT: &str =
    "nothing (no pinned memory: persistent mapped buffers for a VMM in this process)";

/// How the CPU gets at memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    /// It pins the window's.
    Pinned,
    /// It maps the driver's.
    Persistent,
    /// Not at all.
    No,
}

/// What is offered.
pub(super) fn describe(facts: &GlFacts, how: Shared, memory_limit: Option<u64>) -> Description {
    let (heaps, memory_types) = view(facts, how, memory_limit, physical_memory());
    Description {
        kind: ProviderKind::Gl,
        device_name: facts.renderer.clone(),
        driver_name: facts.driver(),
        attach_strategy: match how {
            Shared::Pinned => PINNED,
            Shared::Persistent => PERSISTENT,
            Shared::No => NOT_PINNED,
        }
        .into(),
        // GL has no query for either.
        vendor_id: 0,
        device_id: 0,
        device_uuid: facts
            .device_uuid
            .unwrap_or_else(|| made_up(&[&facts.renderer])),
        driver_uuid: facts
            .driver_uuid
            .unwrap_or_else(|| made_up(&[&facts.vendor, &facts.version])),
        heaps,
        memory_types,
        exports: ExportKind::Address,
        attach_alignment: rustix::param::page_size() as u64,
        non_coherent_atom_size: 1,
        max_allocation_size: super::buffer::largest(),
    }
}

/// Bytes of the heap that device-local memory comes from.
pub(super) fn device_heap(description: &Description) -> u64 {
    description.heaps.first().map_or(0, |heap| heap.size)
}

fn view(
    facts: &GlFacts,
    how: Shared,
    memory_limit: Option<u64>,
    physical: u64,
) -> (Vec<Heap>, Vec<MemoryType>) {
    let limited = |size: u64| memory_limit.map_or(size, |limit| limit.min(size));
    let own = facts.video_memory.filter(|_| !facts.software);
    let mut heaps = vec![Heap {
        size: limited(own.unwrap_or(physical)),
        flags: property::HEAP_DEVICE_LOCAL,
    }];
    let mut types = vec![MemoryType {
        property_flags: property::DEVICE_LOCAL,
        heap: 0,
        placement: Placement::Device,
    }];
    if how != Shared::No {
        let heap = u32::from(own.is_some());
        if own.is_some() {
            heaps.push(Heap {
                size: limited(physical),
                flags: 0,
            });
        }
        let mut property_flags = property::HOST_VISIBLE | property::HOST_COHERENT;
        if facts.software {
            property_flags |= property::DEVICE_LOCAL;
        }
        if facts.software || how == Shared::Pinned {
            property_flags |= property::HOST_CACHED;
        }
        types.push(MemoryType {
            property_flags,
            heap,
            placement: match how {
                Shared::Pinned => Placement::Window,
                Shared::Persistent | Shared::No => Placement::Exported,
            },
        });
    }
    (heaps, types)
}

/// An identity for hosts that tell none: equal for equal names only. FNV-1a, twice from different beginnings.
fn made_up(names: &[&str]) -> [u8; 16] {
    let hash = |seed: u64| {
        names
            .iter()
            .flat_map(|name| name.bytes().chain([0]))
            .fold(seed, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
            })
    };
    let halves = [
        hash(0xCBF2_9CE4_8422_2325),
        hash(u64::from_le_bytes(*b"hostblob")),
    ];
    let mut uuid = [0; 16];
    for (to, from) in uuid
        .iter_mut()
        .zip(halves.into_iter().flat_map(u64::to_le_bytes))
    {
        *to = from;
    }
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const SHARED: u32 = property::HOST_VISIBLE | property::HOST_COHERENT | property::HOST_CACHED;

    fn facts(renderer: &str, software: bool, video_memory: Option<u64>) -> GlFacts {
        GlFacts {
            renderer: renderer.to_owned(),
            vendor: "vendor".to_owned(),
            version: "4.5".to_owned(),
            pinned_memory: true,
            buffer_storage: true,
            memory_object_fd: false,
            software,
            video_memory,
            device_uuid: None,
            driver_uuid: None,
        }
    }

    fn flags(types: &[MemoryType]) -> Vec<(u32, u32, Placement)> {
        types
            .iter()
            .map(|kind| (kind.property_flags, kind.heap, kind.placement))
            .collect()
    }

    #[test]
    fn the_cpu_shares_all_memory() {
        let (heaps, types) = view(
            &facts("llvmpipe", true, Some(GIB)),
            Shared::Pinned,
            None,
            24 * GIB,
        );
        assert_eq!(heaps.len(), 1);
        assert_eq!(heaps[0].size, 24 * GIB);
        assert_eq!(
            flags(&types),
            [
                (property::DEVICE_LOCAL, 0, Placement::Device),
                (SHARED | property::DEVICE_LOCAL, 0, Placement::Window)
            ]
        );
    }

    #[test]
    fn a_card_has_a_heap_of_its_own() {
        let card = facts("card", false, Some(8 * GIB));
        let (heaps, types) = view(&card, Shared::Pinned, Some(16 * GIB), 24 * GIB);
        let sizes: Vec<(u64, u32)> = heaps.iter().map(|heap| (heap.size, heap.flags)).collect();
        assert_eq!(sizes, [(8 * GIB, 1), (16 * GIB, 0)]);
        assert_eq!(
            flags(&types),
            [
                (property::DEVICE_LOCAL, 0, Placement::Device),
                (SHARED, 1, Placement::Window)
            ]
        );
    }

    #[test]
    fn without_pinned_memory_the_window_gets_nothing() {
        let card = facts("card", false, None);
        let (heaps, types) = view(&card, Shared::No, None, 24 * GIB);
        assert_eq!(heaps.len(), 1);
        assert_eq!(
            flags(&types),
            [(property::DEVICE_LOCAL, 0, Placement::Device)]
        );
        let description = describe(&card, Shared::No, None);
        assert!(description.attach_strategy.contains("no pinned memory"));
        let (heaps, types) = view(
            &facts("card", false, Some(8 * GIB)),
            Shared::Persistent,
            None,
            24 * GIB,
        );
        assert_eq!(heaps.len(), 2);
        assert_eq!(
            flags(&types)[1],
            (SHARED & !property::HOST_CACHED, 1, Placement::Exported)
        );
    }

    #[test]
    fn hosts_without_an_identity_get_one_by_name() {
        assert_eq!(made_up(&["a", "b"]), made_up(&["a", "b"]));
        assert_ne!(made_up(&["a", "b"]), made_up(&["ab", ""]));
        assert_ne!(made_up(&["a"]), [0; 16]);
    }
}
