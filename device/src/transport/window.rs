//! The window where it is not the guest's from the beginning: mapped late, by messages to the VMM.
//!
//! Over vfio-user and the local socket the window is mapped once and for all. Over vhost-user the VMM is asked for it when the
//! first blob is mapped, and asked to take it back when nothing of the guest is left: QEMU 11.1 crashes when it resets a guest
//! while a mapping is live. It is asked for the whole window, or, in the window mode "on demand", for the place of each blob.

use std::os::fd::OwnedFd;

use hostblob_allocator::Mapping;
use hostblob_allocator::window::{Span, SpanError};
use thiserror::Error;

use super::mappings::{MAX_MAPPINGS, NoRoom, Plan, Table};
use crate::gpu::WindowChange;

/// Asks the VMM for ranges of the window, and for what other devices have. Used by the queue thread, under no lock: an answer may take its
/// time.
pub trait WindowMapper {
    /// Maps a range. When it returns, the guest reaches it.
    fn map(&mut self, mapping: &Mapping) -> Result<(), MapperError>;
    /// Takes back exactly what was mapped there.
    fn unmap(&mut self, span: Span) -> Result<(), MapperError>;
    /// Whether the VMM can be asked for objects of its other devices.
    fn can_look_up(&mut self) -> bool {
        false
    }
    /// A descriptor of such an object. Why there is none is logged.
    fn look_up(&mut self, _uuid: [u8; 16]) -> Option<OwnedFd> {
        None
    }
}

/// Why the VMM did not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapperError {
    /// It could not be asked. Nothing has changed.
    NotAsked,
    /// It says no. Nothing has changed.
    Refused,
    /// Nobody knows: perhaps it did, or will.
    Unknown,
}

/// Why a blob was not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum NotMapped {
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("the VMM does not map it")]
    Vmm,
}

/// The window, and for which generation of the guest it is mapped.
pub(super) struct LateWindow<'a>(Mode<'a>);

enum Mode<'a> {
    /// Always.
    Premapped,
    /// As a whole.
    Whole {
        window: Mapping,
        mappings: Mappings<'a>,
        mapped_in: Option<u32>,
    },
    /// Each blob by itself.
    OnDemand {
        mappings: Mappings<'a>,
        /// Whose the mappings are; none while nothing is mapped.
        generation: Option<u32>,
    },
}

impl<'a> LateWindow<'a> {
    /// Mapped from the beginning.
    pub(super) fn premapped() -> Self {
        Self(Mode::Premapped)
    }

    /// Mapped as a whole when it is needed.
    pub(super) fn whole(mapper: &'a mut dyn WindowMapper, size: u64) -> Result<Self, SpanError> {
        let span = Span::new(0, size, size)?;
        Ok(Self(Mode::Whole {
            window: Mapping {
                span,
                elsewhere: None,
            },
            mappings: Mappings::new(mapper, 1),
            mapped_in: None,
        }))
    }

    /// Mapped blob by blob.
    pub(super) fn on_demand(mapper: &'a mut dyn WindowMapper) -> Self {
        Self(Mode::OnDemand {
            mappings: Mappings::new(mapper, MAX_MAPPINGS),
            generation: None,
        })
    }

    /// Maps the whole of it for the guest of this generation, unless it is. Whether it is then; `None` where nothing was to be done.
    pub(super) fn map(&mut self, generation: u32) -> Option<bool> {
        let Mode::Whole {
            window,
            mappings,
            mapped_in,
        } = &mut self.0
        else {
            return None;
        };
        match *mapped_in {
            Some(mapped_in) if mapped_in == generation => return None,
            Some(_) => mappings.table.doubt_all(),
            None => {}
        }
        let mapped = mappings.map(window).is_ok();
        *mapped_in = mapped.then_some(generation);
        Some(mapped)
    }

    /// Finds the object of another device that is wanted. Whether one is, is asked only where it can be found.
    pub(super) fn look_up(
        &mut self,
        wanted: impl FnOnce() -> Option<[u8; 16]>,
    ) -> Option<([u8; 16], OwnedFd)> {
        let mapper = match &mut self.0 {
            Mode::Premapped => return None,
            Mode::Whole { mappings, .. } | Mode::OnDemand { mappings, .. } => &mut mappings.mapper,
        };
        let uuid = mapper.can_look_up().then(wanted)??;
        Some((uuid, mapper.look_up(uuid)?))
    }

    /// Makes true what a command of the guest of this generation changed. Called after each command, so that what an earlier
    /// generation had mapped is gone by its first response. Nothing is to be done where blobs are not mapped one by one.
    pub(super) fn change(
        &mut self,
        generation: u32,
        change: Option<WindowChange>,
    ) -> Result<(), NotMapped> {
        let Mode::OnDemand {
            mappings,
            generation: of,
        } = &mut self.0
        else {
            return Ok(());
        };
        if of.is_some_and(|of| of != generation) {
            *of = None;
            mappings.table.doubt_all();
            mappings.unmap_all();
        }
        match change {
            None => Ok(()),
            Some(WindowChange::Map(mapping)) => {
                *of = Some(generation);
                mappings.map(&mapping)
            }
            Some(WindowChange::Unmap(mapping)) => {
                if mappings.table.release(mapping.span) {
                    // If it does not go now, it will when the place is needed.
                    let _ = mappings.unmap(mapping.span);
                }
                Ok(())
            }
        }
    }

    /// Whether there is something to unmap when the guest uses the window no longer.
    pub(super) fn is_mapped(&self) -> bool {
        match &self.0 {
            Mode::Premapped => false,
            Mode::Whole { mapped_in, .. } => mapped_in.is_some(),
            Mode::OnDemand { generation, .. } => generation.is_some(),
        }
    }

    /// Unmaps all that the guest has: nothing of this generation is left.
    pub(super) fn unmap(&mut self, generation: u32) {
        let (mappings, of) = match &mut self.0 {
            Mode::Premapped => return,
            Mode::Whole {
                mappings,
                mapped_in,
                ..
            } => (mappings, mapped_in),
            Mode::OnDemand {
                mappings,
                generation,
            } => (mappings, generation),
        };
        // Once, however it goes: a VMM that does not answer is not asked again with each command.
        if let Some(of) = of.take() {
            if of != generation {
                mappings.table.doubt_all();
            }
            mappings.unmap_all();
        }
    }
}

/// The table, and the messages that keep it true.
struct Mappings<'a> {
    mapper: &'a mut dyn WindowMapper,
    table: Table,
}

impl<'a> Mappings<'a> {
    fn new(mapper: &'a mut dyn WindowMapper, limit: usize) -> Self {
        Self {
            mapper,
            table: Table::new(limit),
        }
    }

    /// What may be in the way is unmapped first. A VMM refuses to unmap what is not there, and nothing has happened; one that maps over
    /// another mapping without a word would make the table wrong.
    fn map(&mut self, wanted: &Mapping) -> Result<(), NotMapped> {
        let in_the_way = match self.table.plan(wanted)? {
            Plan::Cached => return Ok(()),
            Plan::MapAfter(spans) => spans,
        };
        for span in in_the_way {
            self.unmap(span).map_err(|_| NotMapped::Vmm)?;
        }
        match self.mapper.map(wanted) {
            Ok(()) => {
                self.table.insert(wanted.clone(), true);
                Ok(())
            }
            Err(error) => {
                if error == MapperError::Unknown {
                    self.table.insert(wanted.clone(), false);
                }
                Err(NotMapped::Vmm)
            }
        }
    }

    fn unmap(&mut self, span: Span) -> Result<(), MapperError> {
        match self.mapper.unmap(span) {
            // A VMM that refuses does not have it.
            Ok(()) | Err(MapperError::Refused) => {
                self.table.remove(span);
                Ok(())
            }
            Err(error) => {
                self.table.doubt(span);
                Err(error)
            }
        }
    }

    /// Ends with the first that is not answered: so would the others be.
    fn unmap_all(&mut self) {
        let _ = self
            .table
            .all()
            .into_iter()
            .try_for_each(|span| self.unmap(span));
    }
}

#[cfg(test)]
mod tests;
