//! A VMM that is cut off at each of its messages, and in the middle of it.

use std::fs::File;
use std::path::Path;

use vfio_user::Client;

use super::hostile::Machine;
use super::*;
use crate::transport::cut::{self, Framing, Frontend};

/// A header is 16 bytes, with the message's size after 4 of them.
const FRAMING: Framing = Framing {
    header: 16,
    length: |header| u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize,
    by_byte: false,
};

impl Frontend for Driver {
    fn ask(&mut self, command: &[u8]) -> Vec<u8> {
        self.offer(0, 0, command);
        self.notify(0);
        let mut used = self.used(0);
        assert_eq!(used.len(), 1);
        used.remove(0).1
    }

    fn leave(&mut self, command: &[u8]) {
        self.offer(0, 2, command);
        self.notify(0);
    }

    fn window(&self) -> File {
        let window = self.client.region(layout::WINDOW_BAR).unwrap();
        let file = window.file_offset.as_ref().unwrap();
        file.file().try_clone().unwrap()
    }

    fn reset(&mut self) -> bool {
        self.negotiate(super::super::fake::FEATURES | F_VERSION_1);
        true
    }
}

fn connect(path: &Path) -> Driver {
    let (_, control) = FakeDevice::new(Arc::new(|| {}));
    let mut driver = Driver::new(Client::new(path).unwrap(), control);
    driver.map_memory();
    driver.enable_interrupts();
    driver.negotiate(super::super::fake::FEATURES | F_VERSION_1);
    driver
}

#[test]
fn a_vmm_that_is_cut_off_anywhere_costs_its_own_device() {
    let name =
        "transport::vfio_user::tests::cut::a_vmm_that_is_cut_off_anywhere_costs_its_own_device";
    cut::alone(name, || {
        let machine = Machine::start("cut");
        cut::at_each_message(
            FRAMING,
            &machine.path,
            &machine.host,
            &machine.fake,
            connect,
        );
    });
}
