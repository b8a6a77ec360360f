//! Places that were freed a moment ago, by their size: who frees and allocates the same again pays for no search, no split and no merge.

use super::book::Place;

/// Sizes that are told apart, about.
const BINS: usize = 64;
/// Places of a bin.
const DEPTH: usize = 4;
/// Units of the largest that is kept, 16 KiB: what is in here cannot be joined with its neighbours, and using them takes far longer than the search.
const LARGEST: u32 = 256;

/// The last few places of each size that were freed. Their blocks do not know yet.
#[derive(Debug)]
pub(super) struct Recent {
    bins: Box<[[Option<Place>; DEPTH]; BINS]>,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            bins: Box::new([[None; DEPTH]; BINS]),
        }
    }
}

impl Recent {
    fn bin(&mut self, units: u32) -> &mut [Option<Place>; DEPTH] {
        // Sizes are multiples of each other more often than not: Knuth's multiplicative hash tells them apart.
        let hash = units.wrapping_mul(0x9e37_79b1) >> (u32::BITS - BINS.ilog2());
        #[allow(
            clippy::indexing_slicing,
            reason = "the hash has no more bits than BINS"
        )]
        &mut self.bins[hash as usize]
    }

    /// A place of exactly `units` at a multiple of `alignment`, which is its caller's from now on.
    #[inline]
    pub(super) fn take(&mut self, units: u32, alignment: u32) -> Option<Place> {
        if units > LARGEST {
            return None;
        }
        let fits = |place: &mut Place| place.fits(units, alignment);
        let mut bin = self.bin(units).iter_mut();
        bin.find_map(|slot| slot.take_if(fits))
    }

    /// Keeps a freed place. What comes back, an older one or the same, is to be freed in its block.
    #[inline]
    pub(super) fn put(&mut self, place: Place) -> Option<Place> {
        if place.units() > LARGEST {
            return Some(place);
        }
        let bin = self.bin(place.units());
        if let Some(slot) = bin.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(place);
            return None;
        }
        bin.rotate_right(1);
        bin.first_mut()?.replace(place)
    }

    /// Takes all places out of which `which` is true.
    pub(super) fn drain(&mut self, which: impl Fn(&Place) -> bool) -> impl Iterator<Item = Place> {
        let slots = self.bins.iter_mut().flatten();
        slots.filter_map(move |slot| slot.take_if(|place| which(place)))
    }
}
