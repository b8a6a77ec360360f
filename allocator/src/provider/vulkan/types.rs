//! Which memory types the guest sees.
//!
//! Pure arithmetic on what the device says and the probe found, so that tables of devices that are not at hand can be
//! tested.
//!
//! **Window types** are the host's types that the probe attached and read back. Their bytes are pages of a memfd which
//! the guest's CPU reaches through the VMM's ordinary cached mapping, whatever the driver does on its side. So:
//! - `HOST_VISIBLE | HOST_CACHED` is said of each: it describes the CPU's mapping, and that one is ours.
//! - `HOST_COHERENT` is the driver's promise about the GPU's accesses, and cannot be made up for: a host type without it is
//!   not offered. (There is no message to flush or invalidate, and no known driver imports into such a type
//!   only.) So all window types are coherent and no atom size matters.
//! - `DEVICE_LOCAL` stays as the host has it: true where processor and GPU share their memory.
//!
//! **Device types** are one per device-local heap, for private memory without window use. Where a card has device-local
//! types that the CPU cannot see, those it can see are left out: they live in a small BAR heap (or are the same
//! memory again).
//!
//! **Exported types** are the device-local types of the host that the probe exported as a dma-buf, mapped, and found to be the same bytes.
//! The guest's CPU reaches them as the driver's own mapping would, so they keep the host's flags. They come last, for guests that
//! cannot map them; a type whose flags are only a part of an earlier one's must not stand there, and is left out.

use ash::vk;

use crate::provider::{Heap, MemoryType, Placement, property};

/// The flags that a guest can meet. A type with any other (protected, lazily allocated, AMD's device-coherent, NVIDIA's
/// RDMA) needs a feature that is not enabled, or has a purpose of its own.
const KNOWN: u32 = property::DEVICE_LOCAL
    | property::HOST_VISIBLE
    | property::HOST_COHERENT
    | property::HOST_CACHED;

/// What a host type must say to be offered for the window.
const SHARED: u32 = property::HOST_VISIBLE | property::HOST_COHERENT;

/// The guest's view of a host's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) heaps: Vec<Heap>,
    pub(super) types: Vec<MemoryType>,
    /// For each of `types`, the host's own index.
    pub(super) host: Vec<u32>,
}

impl View {
    /// For each type, the host's own index, and where its bytes live.
    pub(super) fn host_types(&self) -> Vec<(u32, Placement)> {
        let placements = self.types.iter().map(|kind| kind.placement);
        self.host.iter().copied().zip(placements).collect()
    }
}

/// What the host says: `(property flags, heap)` and `(size, heap flags)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostMemory<'a> {
    pub(super) types: &'a [(u32, u32)],
    pub(super) heaps: &'a [(u64, u32)],
}

struct Chosen {
    host: u32,
    flags: u32,
    heap: u32,
    placement: Placement,
}

/// What the probe found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found<'a> {
    /// Types that are attached to the window.
    pub(super) attachable: &'a [u32],
    /// Types whose memory is exported.
    pub(super) exportable: &'a [u32],
    /// Types that a buffer of ours may live in, as a bit mask.
    pub(super) buffers: u32,
}

/// Whether memory of a host type may be offered once it is exported.
pub(super) fn may_be_exported(flags: u32) -> bool {
    may_be_window(flags) && flags & property::DEVICE_LOCAL != 0
}

/// Whether a host type may be offered for the window once it is attached.
pub(super) fn may_be_window(flags: u32) -> bool {
    flags & !KNOWN == 0 && flags & SHARED == SHARED
}

/// The guest's view of what was found.
pub(super) fn view(host: HostMemory<'_>, found: Found<'_>, memory_limit: Option<u64>) -> View {
    let mut chosen = window_types(host, found.attachable);
    chosen.extend(device_types(host, found.buffers));
    // The specification lists a type before those whose flags are a superset of its own; a stable sort by the
    // number of flags does that and keeps the host's order otherwise.
    chosen.sort_by_key(|kind| kind.flags.count_ones());
    let mut used: Vec<u32> = chosen.iter().map(|kind| kind.heap).collect();
    used.sort_unstable();
    used.dedup();
    for exported in exported_types(host, found.exportable, &chosen) {
        if !used.contains(&exported.heap) {
            used.push(exported.heap);
        }
        chosen.push(exported);
    }
    let heaps = used
        .iter()
        .filter_map(|heap| host.heaps.get(usize::try_from(*heap).ok()?))
        .map(|(size, flags)| Heap {
            size: memory_limit.map_or(*size, |limit| limit.min(*size)),
            flags: flags & vk::MemoryHeapFlags::DEVICE_LOCAL.as_raw(),
        })
        .collect();
    let types = chosen
        .iter()
        .map(|kind| MemoryType {
            property_flags: kind.flags,
            heap: used
                .iter()
                .position(|heap| *heap == kind.heap)
                .and_then(|index| u32::try_from(index).ok())
                .unwrap_or(0),
            placement: kind.placement,
        })
        .collect();
    View {
        heaps,
        types,
        host: chosen.iter().map(|kind| kind.host).collect(),
    }
}

fn window_types(host: HostMemory<'_>, attachable: &[u32]) -> Vec<Chosen> {
    let mut chosen: Vec<Chosen> = Vec::new();
    let mut candidates: Vec<(u32, u32, u32)> = indexed(host.types)
        .filter(|(index, flags, _)| attachable.contains(index) && may_be_window(*flags))
        .collect();
    // Of two types that look alike to the guest, the one that the host calls cached is meant for reading back.
    candidates.sort_by_key(|(_, flags, _)| flags & property::HOST_CACHED == 0);
    for (index, flags, heap) in candidates {
        let flags = flags | property::HOST_CACHED;
        if !chosen.iter().any(|c| c.flags == flags && c.heap == heap) {
            chosen.push(Chosen {
                host: index,
                flags,
                heap,
                placement: Placement::Window,
            });
        }
    }
    chosen.sort_by_key(|kind| kind.host);
    chosen
}

/// The exported types that may follow `before`, as the specification orders types.
fn exported_types(host: HostMemory<'_>, exportable: &[u32], before: &[Chosen]) -> Vec<Chosen> {
    let mut chosen: Vec<Chosen> = Vec::new();
    for (index, flags, heap) in indexed(host.types) {
        let fits = exportable.contains(&index) && may_be_exported(flags);
        let is_part = |kind: &Chosen| kind.flags & flags == flags && kind.flags != flags;
        if !fits
            || before.iter().any(is_part)
            || chosen.iter().any(|c| c.flags == flags && c.heap == heap)
        {
            continue;
        }
        chosen.push(Chosen {
            host: index,
            flags,
            heap,
            placement: Placement::Exported,
        });
    }
    chosen.sort_by_key(|kind| kind.flags.count_ones());
    chosen
}

fn device_types(host: HostMemory<'_>, buffer_types: u32) -> Vec<Chosen> {
    let local: Vec<(u32, u32, u32)> = indexed(host.types)
        .filter(|(index, flags, _)| {
            let allowed = 1_u32
                .checked_shl(*index)
                .is_some_and(|bit| buffer_types & bit != 0);
            allowed && flags & !KNOWN == 0 && flags & property::DEVICE_LOCAL != 0
        })
        .collect();
    let hidden = |flags: u32| flags & property::HOST_VISIBLE == 0;
    let any_hidden = local.iter().any(|(_, flags, _)| hidden(*flags));
    let mut chosen: Vec<Chosen> = Vec::new();
    for (index, flags, heap) in local {
        if any_hidden && !hidden(flags) || chosen.iter().any(|c| c.heap == heap) {
            continue;
        }
        chosen.push(Chosen {
            host: index,
            flags: property::DEVICE_LOCAL,
            heap,
            placement: Placement::Device,
        });
    }
    chosen
}

fn indexed(types: &[(u32, u32)]) -> impl Iterator<Item = (u32, u32, u32)> {
    (0_u32..)
        .zip(types)
        .map(|(index, (flags, heap))| (index, *flags, *heap))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DL: u32 = property::DEVICE_LOCAL;
    const HV: u32 = property::HOST_VISIBLE;
    const HC: u32 = property::HOST_COHERENT;
    const CA: u32 = property::HOST_CACHED;
    const GIB: u64 = 1 << 30;

    fn found<'a>(attachable: &'a [u32], exportable: &'a [u32], buffers: u32) -> Found<'a> {
        Found {
            attachable,
            exportable,
            buffers,
        }
    }

    fn summary(view: &View) -> Vec<(u32, u32, Placement, u32)> {
        view.types
            .iter()
            .zip(&view.host)
            .map(|(t, host)| (t.property_flags, t.heap, t.placement, *host))
            .collect()
    }

    #[test]
    fn lavapipe_gives_both_placements_of_its_one_type() {
        let host = HostMemory {
            types: &[(DL | HV | HC | CA, 0)],
            heaps: &[(24 * GIB, 1)],
        };
        let view = view(host, found(&[0], &[], 1), Some(4 * GIB));
        assert_eq!(
            summary(&view),
            [
                (DL, 0, Placement::Device, 0),
                (DL | HV | HC | CA, 0, Placement::Window, 0)
            ]
        );
        assert_eq!(
            view.heaps,
            [Heap {
                size: 4 * GIB,
                flags: 1
            }]
        );
    }

    #[test]
    fn a_card_gives_its_own_heap_for_device_memory_and_the_hosts_for_the_window() {
        // The shape of a table of NVIDIA's driver: a plain type, device-local, system uncached and cached, and the BAR heap.
        let host = HostMemory {
            types: &[
                (0, 1),
                (DL, 0),
                (HV | HC, 1),
                (HV | HC | CA, 1),
                (DL | HV | HC, 2),
            ],
            heaps: &[(8 * GIB, 1), (16 * GIB, 0), (GIB / 4, 1)],
        };
        let view = view(host, found(&[2, 3], &[], 0b11111), None);
        assert_eq!(
            summary(&view),
            [
                (DL, 0, Placement::Device, 1),
                (HV | HC | CA, 1, Placement::Window, 3)
            ]
        );
        assert_eq!(view.heaps.len(), 2);
        assert_eq!(
            view.heaps[1],
            Heap {
                size: 16 * GIB,
                flags: 0
            }
        );
    }

    #[test]
    fn what_needs_a_feature_or_is_not_coherent_is_left_out() {
        let protected = 1 << 5;
        let device_coherent = 1 << 6;
        let host = HostMemory {
            types: &[
                (HV | CA, 0),
                (HV | HC | CA | device_coherent, 0),
                (DL | protected, 0),
                (HV | HC, 0),
            ],
            heaps: &[(GIB, 0)],
        };
        let view = view(host, found(&[0, 1, 2, 3], &[], u32::MAX), None);
        assert_eq!(summary(&view), [(HV | HC | CA, 0, Placement::Window, 3)]);
    }

    #[test]
    fn subsets_come_before_supersets() {
        let host = HostMemory {
            types: &[(DL | HV | HC | CA, 0), (HV | HC | CA, 1), (DL, 0)],
            heaps: &[(GIB, 1), (GIB, 0)],
        };
        let view = view(host, found(&[0, 1], &[], 0b111), None);
        let flags: Vec<u32> = view.types.iter().map(|t| t.property_flags).collect();
        for (i, x) in flags.iter().enumerate() {
            for y in &flags[..i] {
                assert!(!(x & y == *x && x != y), "{flags:?}");
            }
        }
    }

    #[test]
    fn nothing_attachable_leaves_no_window_type() {
        let host = HostMemory {
            types: &[(DL | HV | HC | CA, 0)],
            heaps: &[(GIB, 1)],
        };
        let view = view(host, found(&[], &[], 1), None);
        assert!(view.types.iter().all(|t| t.placement == Placement::Device));
    }

    #[test]
    fn a_card_exports_what_the_processor_sees_of_its_memory() {
        let host = HostMemory {
            types: &[
                (DL, 1),
                (HV | HC, 2),
                (HV | HC | CA, 2),
                (DL | HV | HC, 0),
                (DL | HV | CA, 0),
            ],
            heaps: &[(GIB / 4, 1), (8 * GIB, 1), (16 * GIB, 0)],
        };
        let view = view(host, found(&[1, 2], &[1, 3, 4], 0b11111), None);
        assert_eq!(
            summary(&view),
            [
                (DL, 0, Placement::Device, 0),
                (HV | HC | CA, 1, Placement::Window, 2),
                // The plain heap of the BAR comes after those that all guests see.
                (DL | HV | HC, 2, Placement::Exported, 3)
            ]
        );
        assert_eq!(view.heaps[2].size, GIB / 4);
    }

    #[test]
    fn where_memory_is_one_it_is_exported_beside_the_window() {
        let host = HostMemory {
            types: &[(DL | HV | HC, 0), (DL | HV | HC | CA, 0)],
            heaps: &[(24 * GIB, 1)],
        };
        let view = view(host, found(&[0, 1], &[0, 1], 0b11), None);
        assert_eq!(
            summary(&view),
            [
                (DL, 0, Placement::Device, 0),
                (DL | HV | HC | CA, 0, Placement::Window, 1),
                (DL | HV | HC | CA, 0, Placement::Exported, 1)
            ]
        );
    }
}
