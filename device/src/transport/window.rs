//! The window where it is not the guest's from the beginning: mapped late, by a message to the VMM.
//!
//! Over vfio-user and the local socket the window is mapped once and for all. Over vhost-user the VMM is asked for it when the
//! first blob is mapped, and asked to take it back when nothing of the guest is left: QEMU 11.1 crashes when it resets a guest
//! while a mapping is live.

use std::io;

/// Asks the VMM for the window. Used by the queue thread, under no lock: an answer may take its time.
pub trait WindowMapper {
    /// Maps the whole window. When it returns, the guest reaches it.
    fn map(&mut self) -> io::Result<()>;
    /// Takes it back.
    fn unmap(&mut self);
    /// The guest was reset: whether the VMM has taken the window back is its own affair.
    fn forget(&mut self);
}

/// Whether the window is mapped, and for which generation of the guest.
pub(super) struct LateWindow<'a> {
    /// None where it is always mapped.
    mapper: Option<&'a mut dyn WindowMapper>,
    mapped_in: Option<u32>,
}

impl<'a> LateWindow<'a> {
    /// Mapped from the beginning.
    pub(super) fn premapped() -> Self {
        Self {
            mapper: None,
            mapped_in: None,
        }
    }

    /// Mapped when it is needed.
    pub(super) fn new(mapper: &'a mut dyn WindowMapper) -> Self {
        Self {
            mapper: Some(mapper),
            mapped_in: None,
        }
    }

    /// Maps it for the guest of this generation, unless it is. Whether it is then; `None` where nothing was to be done.
    pub(super) fn map(&mut self, generation: u32) -> Option<bool> {
        let mapper = self.mapper.as_mut()?;
        match self.mapped_in {
            Some(mapped_in) if mapped_in == generation => return None,
            Some(_) => mapper.forget(),
            None => {}
        }
        let mapped = mapper.map().is_ok();
        self.mapped_in = mapped.then_some(generation);
        Some(mapped)
    }

    /// Unmaps what the guest of this generation has.
    pub(super) fn unmap(&mut self, generation: u32) {
        if let Some(mapper) = self.mapper.as_mut()
            && let Some(mapped_in) = self.mapped_in.take()
        {
            if mapped_in == generation {
                mapper.unmap();
            } else {
                mapper.forget();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Vec<&'static str>, bool);

    impl WindowMapper for Log {
        fn map(&mut self) -> io::Result<()> {
            self.0.push("map");
            if self.1 {
                Err(io::ErrorKind::TimedOut.into())
            } else {
                Ok(())
            }
        }

        fn unmap(&mut self) {
            self.0.push("unmap");
        }

        fn forget(&mut self) {
            self.0.push("forget");
        }
    }

    #[test]
    fn a_mapping_belongs_to_one_generation_of_the_guest() {
        let mut log = Log::default();
        let mut window = LateWindow::new(&mut log);
        window.unmap(0);
        assert_eq!(window.map(0), Some(true));
        assert_eq!(window.map(0), None);
        window.unmap(0);
        window.unmap(0);
        assert_eq!(window.map(0), Some(true));
        assert_eq!(window.map(1), Some(true));
        window.unmap(2);
        assert_eq!(log.0, ["map", "unmap", "map", "forget", "map", "forget"]);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let mut log = Log(Vec::new(), true);
        let mut window = LateWindow::new(&mut log);
        assert_eq!(window.map(0), Some(false));
        window.unmap(0);
        assert_eq!(window.map(0), Some(false));
        assert_eq!(log.0, ["map", "map"]);
        assert_eq!(LateWindow::premapped().map(0), None);
    }
}
