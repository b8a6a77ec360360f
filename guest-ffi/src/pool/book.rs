//! Which bytes of which block are taken. Pure bookkeeping: no memory, no host, no lock.
//!
//! Blocks are cut in units of [`UNIT`] bytes by `offset-allocator`. Requests go to the first block that has room, so that late blocks
//! become empty. An empty block is given back when another empty one is there to
//! serve the next request, so that a lone allocate-and-free pair never asks the host for anything.

use offset_allocator::{Allocation, Allocator};

use super::recent::Recent;

/// Every allocation starts at a multiple of it, in bytes (`minMemoryMapAlignment` of every Vulkan driver we know).
pub(crate) const UNIT: u64 = 64;
/// One allocation per this many bytes of a block: bounds the bookkeeping to some 3 % of the block.
const BYTES_PER_NODE: u64 = 1024;
/// Nodes of the smallest block.
const LEAST_NODES: u32 = 1024;

/// An allocation, until [`Book::free`].
#[derive(Clone, Copy)]
pub(crate) struct Place {
    block: u32,
    allocation: Allocation,
    /// Of the block, alignment included.
    units: u32,
    /// Where it begins, in units: aligned.
    start: u32,
}

impl Place {
    /// The first byte, in its block.
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.start) * UNIT
    }

    /// Units of the block that it takes, alignment included.
    pub(super) fn units(&self) -> u32 {
        self.units
    }

    /// Whether a request of `units` at a multiple of `alignment`, a power of two, would have been given this very place.
    pub(super) fn fits(&self, units: u32, alignment: u32) -> bool {
        self.units == units && self.start & (alignment - 1) == 0
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Place({}: {}+{})", self.block, self.start, self.units)
    }
}

struct Block<T> {
    space: Allocator,
    /// With those of [`Recent`].
    free_units: u32,
    units: u32,
    payload: T,
}

/// The blocks of one list. `T` is what a block is to the caller.
pub(crate) struct Book<T> {
    /// Holes keep the indices of [`Place`]s true.
    blocks: Vec<Option<Block<T>>>,
    recent: Recent,
    live: u64,
    live_units: u64,
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self {
            blocks: Vec::new(),
            recent: Recent::default(),
            live: 0,
            live_units: 0,
        }
    }
}

fn units(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(UNIT)).ok()
}

/// Bytes of free space in which a request of `size` is found for sure: up to an eighth more. `None` where no block can have them.
///
/// The allocator files free space under its size rounded down to four significant bits, and looks for a request from its size
/// rounded up: by itself, it does not find the space that a request would just fill.
pub(crate) fn room(size: u64) -> Option<u64> {
    let wanted = units(size)?;
    let room = offset_allocator::ext::min_allocator_size(wanted);
    // It wraps around where the sum has no 32 bits.
    (room >= wanted).then(|| u64::from(room) * UNIT)
}

impl<T> Block<T> {
    fn cut(&mut self, index: u32, units: u32, alignment: u32) -> Option<Place> {
        if units > self.free_units {
            return None;
        }
        let allocation = self.space.allocate(units)?;
        let place = |allocation: Allocation, units| Place {
            block: index,
            allocation,
            units,
            start: allocation.offset.next_multiple_of(alignment),
        };
        if allocation.offset.is_multiple_of(alignment) {
            return Some(place(allocation, units));
        }
        self.space.free(allocation);
        let padded = units
            .checked_add(alignment - 1)
            .filter(|&padded| padded <= self.free_units)?;
        Some(place(self.space.allocate(padded)?, padded))
    }
}

impl<T> Book<T> {
    /// Takes `size` bytes at a multiple of `alignment` (a power of two) of some block: where, and of which block.
    /// `None` when no block has room.
    #[inline]
    pub(crate) fn allocate(&mut self, size: u64, alignment: u64) -> Option<(Place, &T)> {
        let (wanted, alignment) = (units(size.max(1))?, units(alignment.max(1))?);
        let place = match self.recent.take(wanted, alignment) {
            Some(place) => place,
            None => self.cut(wanted, alignment).or_else(|| {
                self.settle(|_| true);
                self.cut(wanted, alignment)
            })?,
        };
        self.live += 1;
        self.live_units += u64::from(place.units);
        let block = self.blocks.get_mut(place.block as usize)?.as_mut()?;
        block.free_units -= place.units;
        Some((place, &block.payload))
    }

    /// A new place of the first block that has room.
    fn cut(&mut self, wanted: u32, alignment: u32) -> Option<Place> {
        let mut blocks = (0..).zip(&mut self.blocks);
        blocks.find_map(|(index, block)| block.as_mut()?.cut(index, wanted, alignment))
    }

    /// Tells blocks of their places that were freed.
    fn settle(&mut self, which: impl Fn(&Place) -> bool) {
        for place in self.recent.drain(which) {
            if let Some(Some(block)) = self.blocks.get_mut(place.block as usize) {
                block.space.free(place.allocation);
            }
        }
    }

    /// Adds a block of `size` bytes. `None`, and the payload is dropped, where it is too large to be cut.
    pub(crate) fn add(&mut self, size: u64, payload: T) -> Option<()> {
        let units = u32::try_from(size / UNIT).ok()?;
        let nodes = u32::try_from(size / BYTES_PER_NODE).ok()?.max(LEAST_NODES);
        let space = Allocator::with_max_allocs(units, nodes);
        let block = Block {
            space,
            free_units: units,
            units,
            payload,
        };
        let hole = self.blocks.iter().position(Option::is_none);
        match hole.and_then(|hole| self.blocks.get_mut(hole)) {
            Some(slot) => *slot = Some(block),
            None => self.blocks.push(Some(block)),
        }
        Some(())
    }

    /// Gives an allocation back, and returns the payload of a block that is no longer needed.
    #[inline]
    pub(crate) fn free(&mut self, place: Place) -> Option<T> {
        let block = self.blocks.get_mut(place.block as usize)?.as_mut()?;
        block.free_units += place.units;
        let empty = block.free_units == block.units;
        self.live -= 1;
        self.live_units -= u64::from(place.units);
        // All of it is free again, with what alignment took.
        let start = place.allocation.offset;
        if let Some(older) = self.recent.put(Place { start, ..place })
            && let Some(Some(block)) = self.blocks.get_mut(older.block as usize)
        {
            block.space.free(older.allocation);
        }
        if !empty {
            return None;
        }
        let is_empty = |block: &Block<T>| block.free_units == block.units;
        let empty_ones = self
            .blocks
            .iter()
            .flatten()
            .filter(|block| is_empty(block))
            .count();
        if empty_ones <= 1 {
            return None;
        }
        // Of two empty ones the smaller goes: it is the worse guess at what comes next.
        let (smallest, _) = self
            .blocks
            .iter()
            .enumerate()
            .filter_map(|(index, block)| Some((index, block.as_ref()?)))
            .filter(|(_, block)| is_empty(block))
            .min_by_key(|(_, block)| block.units)?;
        self.settle(|place| place.block as usize == smallest);
        Some(self.blocks.get_mut(smallest)?.take()?.payload)
    }

    /// What the block of a live allocation is to the caller.
    pub(crate) fn payload(&self, place: &Place) -> Option<&T> {
        Some(&self.blocks.get(place.block as usize)?.as_ref()?.payload)
    }

    /// Blocks that live, and their bytes.
    pub(crate) fn blocks(&self) -> (u64, u64) {
        let live = self.blocks.iter().flatten();
        live.fold((0, 0), |(count, bytes), b| {
            (count + 1, bytes + u64::from(b.units) * UNIT)
        })
    }

    /// Allocations that live, and their bytes, alignment included.
    pub(crate) fn live(&self) -> (u64, u64) {
        (self.live, self.live_units * UNIT)
    }

    /// Takes every empty block out.
    pub(crate) fn trim(&mut self) -> Vec<T> {
        self.settle(|_| true);
        let is_empty = |block: &Option<Block<T>>| {
            block
                .as_ref()
                .is_some_and(|block| block.free_units == block.units)
        };
        let empty = self.blocks.iter_mut().filter(|block| is_empty(block));
        empty
            .filter_map(Option::take)
            .map(|block| block.payload)
            .collect()
    }
}

#[cfg(test)]
mod tests;
